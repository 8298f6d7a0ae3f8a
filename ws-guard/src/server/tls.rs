//! TLS by rustls, with a certificate that may change while connections are open.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};

use crate::config::watch::Watch;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0}: {1}; a file in PEM is wanted")]
    File(PathBuf, pem::Error),
    #[error("{0} holds no certificate in PEM")]
    Empty(PathBuf),
    #[error("the certificate in {0} and the key in {1} cannot be used: {2}")]
    Unusable(PathBuf, PathBuf, rustls::Error),
}

/// Certificate and key, and the files they come from.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// Read a chain of certificates, the server's own first, and its private key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let current = RwLock::new(Arc::new(read(certificate, key)?));
        Ok(Tls { certificate: certificate.into(), key: key.into(), current })
    }

    /// For the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Read the files again. Connections that are open keep what they have; where the files cannot
    /// be used, so does everybody else.
    pub fn reload(&self) -> Result<(), TlsError> {
        let new = Arc::new(read(&self.certificate, &self.key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Reload whenever one of the files changes, for ever.
    pub async fn follow(&self) {
        let mut certificate = Watch::new(self.certificate.clone());
        let mut key = Watch::new(self.key.clone());
        loop {
            tokio::select! {
                () = certificate.changed() => {}
                () = key.changed() => {}
            }
            match self.reload() {
                Ok(()) => {
                    tracing::info!("took over the certificate in {}", self.certificate.display())
                }
                // Also between the change of one file and that of the other.
                Err(error) => tracing::warn!("the old certificate stays in use: {error}"),
            }
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let in_file = |path: &Path| {
        let path = path.to_owned();
        move |error| TlsError::File(path.clone(), error)
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(in_file(certificate))?;
    let chain: Result<Vec<_>, _> = chain.collect();
    let chain = chain.map_err(in_file(certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(certificate.into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(in_file(key))?;
    let unusable = |error| TlsError::Unusable(certificate.into(), key.into(), error);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

//! TLS by rustls, with a certificate that may change while connections are open.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};

use crate::{
    pem::{PemError, certificates, private_key},
    watch::{self, Watch},
};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the certificates in {0} cannot vouch for clients: {1}")]
    Vouchers(PathBuf, String),
    #[error("the certificate in {0} and the key in {1} cannot be used: {2}")]
    Unusable(PathBuf, PathBuf, rustls::Error),
}

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// Certificates that vouch for theirs, in PEM.
    pub authorities: PathBuf,
    /// Without a certificate there is no connection. One that is shown has to be good in any case.
    pub required: bool,
}

/// Certificate and key, and the files they come from.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    clients: Option<Clients>,
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
        Tls::with_clients(certificate, key, None)
    }

    /// The same, with certificates of clients.
    pub fn with_clients(
        certificate: &Path,
        key: &Path,
        clients: Option<Clients>,
    ) -> Result<Tls, TlsError> {
        let current = RwLock::new(Arc::new(read(certificate, key, clients.as_ref())?));
        Ok(Tls { certificate: certificate.into(), key: key.into(), clients, current })
    }

    /// For the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Read the files again. Connections that are open keep what they have; where the files cannot
    /// be used, so does everybody else.
    pub fn reload(&self) -> Result<(), TlsError> {
        let new = Arc::new(read(&self.certificate, &self.key, self.clients.as_ref())?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Reload whenever one of the files changes, for ever.
    pub async fn follow(&self) {
        let mut certificate = Watch::new(self.certificate.clone());
        let mut key = Watch::new(self.key.clone());
        let authorities = self.clients.as_ref().map(|clients| clients.authorities.clone());
        let mut authorities = authorities.map(Watch::new);
        loop {
            tokio::select! {
                () = certificate.changed() => {}
                () = key.changed() => {}
                () = watch::changed(&mut authorities) => {}
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

/// Who checks the certificates of clients.
fn verifier(
    clients: Option<&Clients>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(Clients { authorities, required }) = clients else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authorities)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::Vouchers(authorities.clone(), error.to_string()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if !required {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| TlsError::Vouchers(authorities.clone(), error.to_string()))
}

fn read(
    certificate: &Path,
    key: &Path,
    clients: Option<&Clients>,
) -> Result<ServerConfig, TlsError> {
    let chain = certificates(certificate)?;
    let private = private_key(key)?;
    let unusable = |error| TlsError::Unusable(certificate.into(), key.into(), error);
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier(clients, provider)?)
        .with_single_cert(chain, private)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

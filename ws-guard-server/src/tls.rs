//! TLS by rustls, with a certificate that may change while connections are open.

use std::{
    fmt,
    fs::File,
    io,
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
    pem::{self, PemError, certificates_in, private_key_in},
    regular,
    watch::{self, Watch},
};

/// Reason why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the certificates in {0} cannot vouch for clients: {1}")]
    Vouchers(PathBuf, String),
    #[error("the certificate in {0} and the key in {1} cannot be used: {2}")]
    Unusable(PathBuf, PathBuf, rustls::Error),
}

/// Authentication of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// Authorities of their certificates, in PEM.
    pub authorities: PathBuf,
    /// `true` if a certificate is required; one that is shown has to be valid anyway.
    pub required: bool,
}

/// Certificate and key, and their files.
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

/// Bytes of the files.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Option<Vec<u8>>,
}

impl Contents {
    fn read(
        certificate: &Path,
        key: &Path,
        clients: Option<&Clients>,
    ) -> Result<Contents, TlsError> {
        let (certificate, key) = (pem::read(certificate)?, pem::read(key)?);
        let authorities = clients.map(|clients| pem::read(&clients.authorities)).transpose()?;
        Ok(Contents { certificate, key, authorities })
    }
}

/// Watch on all files of a [`Tls`].
pub struct Watching {
    certificate: Watch,
    key: Watch,
    authorities: Option<Watch>,
}

impl Watching {
    /// Wait until one of them changes.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.certificate.changed() => {}
            () = self.key.changed() => {}
            () = watch::changed(&mut self.authorities) => {}
        }
    }
}

impl Tls {
    /// Read a chain of certificates, the server's own first, and its private key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        Tls::with_clients(certificate, key, None)
    }

    /// Read the same, and the authorities of clients' certificates.
    pub fn with_clients(
        certificate: &Path,
        key: &Path,
        clients: Option<Clients>,
    ) -> Result<Tls, TlsError> {
        let contents = Contents::read(certificate, key, clients.as_ref())?;
        let current = build(certificate, key, clients.as_ref(), &contents)?;
        let current = RwLock::new(Arc::new(current));
        Ok(Tls { certificate: certificate.into(), key: key.into(), clients, current })
    }

    /// Return the acceptor for the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Read the files again; open connections keep what they have.
    /// If the files cannot be used, the old ones stay in use for new connections too.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.set(&Contents::read(&self.certificate, &self.key, self.clients.as_ref())?)
    }

    /// Open the files, for a process that may not open them itself.
    pub fn open(&self) -> io::Result<Vec<File>> {
        let paths = [Some(&*self.certificate), Some(&*self.key), self.authorities()];
        paths.into_iter().flatten().map(regular::open).collect()
    }

    /// Reload, as [`Tls::reload`], from files that another process has opened.
    pub fn take(&self, files: &[File]) -> Result<(), TlsError> {
        let paths = [Some(&*self.certificate), Some(&*self.key), self.authorities()];
        let mut read =
            paths.into_iter().flatten().zip(files).map(|(path, file)| {
                regular::read_open(file).map_err(|error| pem::unread(path, error))
            });
        let mut next = || read.next().transpose();
        let (certificate, key, authorities) = (next()?, next()?, next()?);
        let (certificate, key) = (certificate.unwrap_or_default(), key.unwrap_or_default());
        self.set(&Contents { certificate, key, authorities })
    }

    fn authorities(&self) -> Option<&Path> {
        self.clients.as_ref().map(|clients| &*clients.authorities)
    }

    fn set(&self, contents: &Contents) -> Result<(), TlsError> {
        let new = build(&self.certificate, &self.key, self.clients.as_ref(), contents)?;
        let new = Arc::new(new);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Watch the files from now on.
    pub fn watch(&self) -> Watching {
        Watching {
            certificate: Watch::new(self.certificate.clone()),
            key: Watch::new(self.key.clone()),
            authorities: self.authorities().map(|path| Watch::new(path.into())),
        }
    }

    /// Reload whenever one of the files changes, for ever.
    pub async fn follow(&self) {
        let mut watch = self.watch();
        loop {
            watch.changed().await;
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

/// Create the verifier of clients' certificates.
fn verifier(
    clients: Option<(&Clients, &[u8])>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some((Clients { authorities, required }, bytes)) = clients else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in(authorities, bytes)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::Vouchers(authorities.clone(), error.to_string()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if !required {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| TlsError::Vouchers(authorities.clone(), error.to_string()))
}

fn build(
    certificate: &Path,
    key: &Path,
    clients: Option<&Clients>,
    contents: &Contents,
) -> Result<ServerConfig, TlsError> {
    let chain = certificates_in(certificate, &contents.certificate)?;
    let private = private_key_in(key, &contents.key)?;
    let clients = clients.zip(contents.authorities.as_deref());
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

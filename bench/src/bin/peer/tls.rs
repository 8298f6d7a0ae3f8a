//! TLS connections with nothing on top.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(|certificates| certificates.collect())
        .with_context(|| format!("reading {}", cert.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading {}", key.display()))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Hold a connection until its client ends it.
pub async fn hold(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    let mut stream = Box::new(acceptor.accept(stream).await?);
    let mut byte = [0; 1];
    while stream.read(&mut byte).await? > 0 {}
    Ok(())
}

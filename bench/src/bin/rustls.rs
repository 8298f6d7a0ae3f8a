//! TLS and nothing over it: what a connection costs before it is a WebSocket.
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: rustls CERTIFICATE KEY");
    let chain = vec![CertificateDer::from_pem_file(next()?)?];
    let key = PrivateKeyDer::from_pem_file(next()?)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    ws_guard_bench::run(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await?;
            let mut byte = [0];
            while stream.read(&mut byte).await? > 0 {}
            Ok(())
        }
    })
}

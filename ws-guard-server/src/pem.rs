//! Certificates and private keys in PEM files.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};

use crate::regular;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("{0}: {1}; a file in PEM is wanted")]
    File(PathBuf, pem::Error),
    #[error("{0} holds no certificate in PEM")]
    Empty(PathBuf),
}

/// A chain of certificates, of at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let in_file = |error| PemError::File(path.into(), error);
    let bytes = regular::read(path).map_err(|error| in_file(pem::Error::Io(error)))?;
    let chain = CertificateDer::pem_slice_iter(&bytes);
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(in_file)?;
    if chain.is_empty() { Err(PemError::Empty(path.into())) } else { Ok(chain) }
}

/// A private key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    let bytes = regular::read(path).map_err(pem::Error::Io);
    let key = bytes.and_then(|bytes| PrivateKeyDer::from_pem_slice(&bytes));
    key.map_err(|error| PemError::File(path.into(), error))
}

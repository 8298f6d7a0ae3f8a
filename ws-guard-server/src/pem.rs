//! Certificates and private keys in PEM files.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};

use crate::regular;

/// Reason why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("{0}: {1}; a file in PEM is wanted")]
    File(PathBuf, pem::Error),
    #[error("{0} holds no certificate in PEM")]
    Empty(PathBuf),
}

/// Read a file's bytes.
pub fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    regular::read(path).map_err(|error| unread(path, error))
}

/// Convert an error of reading a file.
pub fn unread(path: &Path, error: std::io::Error) -> PemError {
    PemError::File(path.into(), pem::Error::Io(error))
}

/// Read a chain of at least one certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    certificates_in(path, &read(path)?)
}

/// Parse the chain in the bytes of `path`.
pub fn certificates_in(
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let in_file = |error| PemError::File(path.into(), error);
    let chain = CertificateDer::pem_slice_iter(bytes);
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(in_file)?;
    if chain.is_empty() { Err(PemError::Empty(path.into())) } else { Ok(chain) }
}

/// Read a private key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    private_key_in(path, &read(path)?)
}

/// Parse the private key in the bytes of `path`.
pub fn private_key_in(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| PemError::File(path.into(), error))
}

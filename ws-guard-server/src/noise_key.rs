//! Key of the server for protocols with encryption: see [`crate::coding::noise`].

use std::{fmt, path::Path};

use snow::{
    params::DHChoice,
    resolvers::{CryptoResolver, DefaultResolver},
};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use crate::regular;

/// Static X25519 key of the server.
#[derive(Clone)]
pub struct NoiseKey {
    pub(crate) private: [u8; 32],
    public: [u8; 32],
}

impl fmt::Debug for NoiseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoiseKey").field("public", &self.public_hex()).finish_non_exhaustive()
    }
}

/// Reason why a file is not a valid key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("it cannot be read")]
    File(#[from] std::io::Error),
    #[error("it is no private key in PEM")]
    Pem(#[from] tokio_rustls::rustls::pki_types::pem::Error),
    #[error("it is no X25519 key; make one with `openssl genpkey -algorithm x25519`")]
    NotX25519,
}

/// Prefix of a private X25519 key in PKCS #8 (RFC 8410, 7 and 10.3).
const PKCS8: [u8; 16] = [0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x6E, 4, 0x22, 4, 0x20];

impl NoiseKey {
    /// Read a private key in PEM, as from `openssl genpkey -algorithm x25519`.
    pub fn from_file(path: &Path) -> Result<NoiseKey, KeyError> {
        let key = PrivateKeyDer::from_pem_slice(&regular::read(path)?)?;
        let private = key.secret_der().strip_prefix(&PKCS8).ok_or(KeyError::NotX25519)?;
        let private = private.try_into().map_err(|_| KeyError::NotX25519)?;
        NoiseKey::from_private(private).ok_or(KeyError::NotX25519)
    }

    /// Create it from the private key's 32 bytes.
    pub fn from_private(private: [u8; 32]) -> Option<NoiseKey> {
        let mut curve = DefaultResolver.resolve_dh(&DHChoice::Curve25519)?;
        curve.set(&private);
        let public = curve.pubkey().try_into().ok()?;
        Some(NoiseKey { private, public })
    }

    /// Return the public key, which clients have to know.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Return the public key in hexadecimal.
    pub fn public_hex(&self) -> String {
        self.public.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alice's keys in RFC 7748, 6.1, the private one as openssl writes it.
    const ALICE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq
-----END PRIVATE KEY-----
";
    const ALICE_PUBLIC: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

    #[test]
    fn keys_of_openssl_and_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.pem");
        std::fs::write(&path, ALICE).unwrap();
        let key = NoiseKey::from_file(&path).unwrap();
        assert_eq!(key.public_hex(), ALICE_PUBLIC);
        std::fs::write(&path, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(matches!(NoiseKey::from_file(&path), Err(KeyError::NotX25519)));
        std::fs::write(&path, "no key").unwrap();
        assert!(matches!(NoiseKey::from_file(&path), Err(KeyError::Pem(_))));
        assert!(!format!("{key:?}").contains("private"));
    }
}

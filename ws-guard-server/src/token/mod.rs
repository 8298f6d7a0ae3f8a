//! Signed tokens that identify a client (JWT, RFC 7519).

pub mod key;

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Validation, decode};
use serde::Deserialize;

use self::key::{Key, KeyError};
use crate::{regular, topics::rules::Grants};

/// Key and algorithms for checking tokens.
/// The algorithms are of one family, so that a public key is never taken for a shared secret.
#[derive(Clone, Debug)]
pub struct TokenKey {
    key: Key,
    validation: Validation,
}

/// Claims read from a token.
/// It has to have an expiry that has not passed, and to be valid already if it has a start (RFC
/// 7519,
/// 4.1.4 and 4.1.5).
#[derive(Debug, Deserialize)]
pub struct Claims {
    pub sub: Option<String>,
    pub region: Option<String>,
    /// Patterns of the topics on which it permits to publish, and to subscribe to.
    #[serde(flatten)]
    pub grants: Grants,
    /// `true` for a stated audience, which is others: this server has no name.
    /// See RFC 7519, 4.1.3.
    #[serde(default, deserialize_with = "whatever")]
    aud: bool,
}

/// Demands of a token's header on its reader, of any type.
#[derive(Deserialize)]
struct Demands {
    #[serde(default, deserialize_with = "whatever")]
    crit: bool,
}

/// Return `true` if a member is present, even as null.
fn whatever<'de, D: serde::Deserializer<'de>>(member: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(member).map(|_| true)
}

impl From<Key> for TokenKey {
    fn from(key: Key) -> TokenKey {
        let mut validation = Validation::default();
        validation.algorithms.clone_from(&key.algorithms);
        validation.validate_nbf = true;
        TokenKey { key, validation }
    }
}

impl TokenKey {
    /// Read a public key in PEM.
    pub fn public(path: &Path) -> Result<TokenKey, KeyError> {
        Ok(key::public(&regular::read(path)?)?.into())
    }

    /// Read a secret shared with the signer.
    pub fn shared(path: &Path) -> Result<TokenKey, KeyError> {
        Ok(key::shared(&regular::read(path)?)?.into())
    }

    /// Return the claims of a valid token.
    /// One with demands on its reader is not valid: no extension is supported (RFC 7515, 4.1.11).
    pub fn claims(&self, token: &str) -> Option<Claims> {
        let claims = decode::<Claims>(token, &self.key.decoding, &self.validation).ok()?.claims;
        let header = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
        let demands: Demands = serde_json::from_slice(&header).ok()?;
        (!demands.crit && !claims.aud).then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSA: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAh7QT9TEmLFb7rM4d7n4h
pQMdfdMzRM9YkCfqIuO2xQFgopJJ0RZtVwAdcojrcZ8yDaztRA1Qjgi+nlfodF5C
EhobfocK4QW1VhVlxkVZLT5W1UtYFlY8MKfJG9Kk+DTrQqOCnZdfm/8npX/nkh1C
yE76Ld/nwgRKs5FpEIJokVwGRwluBOdtBwBy2KTkGQOO5dbIfLi6F1jRbZOdRkLU
PTluOLd7GyLXZDe865Pc3hQkVyfTZn6tp4u0aPYd4OkJ1AP4fk8PirN3R30vm/Kf
M33oA8le9cOps4r24jgzOWn/uzs5ofVF19HkKnZQCEOn6bnmZ8eAfnlcg/fB00/R
9QIDAQAB
-----END PUBLIC KEY-----
";
    const SHORT: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDB/DkJsSJWI28XNvjJM4lROkTO
EyJ+GLoqSkVLt7s0pF/kaei1DyxM2gFd6uIMWJsZ9usaoHppi7+umEo/7eC03Qmc
UBJ3a76M1zcFs/FEZjdTuqDq1oar6cz5uMq9KRrNdQhtwY19mb3WTE/DQI51A6pV
SxFrddrmqgz1DdPVlQIDAQAB
-----END PUBLIC KEY-----
";
    /// `{"sub":"u-7","exp":9999999999}`, signed with the key of [`RSA`].
    const TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9\
         .eyJzdWIiOiJ1LTciLCJleHAiOjk5OTk5OTk5OTl9\
         .QhYNL7Yy8jD8LmdsC6AQ_-yuff17WtF3GaXBRyCgyRcpoZKOWHAOzc8IMrMeFxVNYMXEGdpUFKUS3jsJ\
         83OeaunnsjlQUu14SwiqoYmvgUNlw2U-2VNYWLpJFzngOa8Z8AQ05Hl1Ysg1ZOtzGJP-eAaETzzt2igL\
         7dti98PhG0iOrQpqz6Ih1cBGQOH8-nGoP1SxDK4SC7Yy-EtvcvjMX6Z6PAb3oF2Uc8YcuMip1OZUde2y\
         ZnhNhSs4h9NA_DKaqkpnPIOhH6cLSkVg-Niw_tGXxrS0GOPkVPKPJRFiMK4zDM_NJhxvtuEJd1zcooRT\
         91f8bUwCLnVoTOqPDSd4kw";

    #[test]
    fn rsa_keys_of_2048_bits_verify() {
        let key = TokenKey::from(key::public(RSA.as_bytes()).unwrap());
        assert_eq!(key.claims(TOKEN).unwrap().sub.as_deref(), Some("u-7"));
        assert!(key.claims(&TOKEN.replace(".QhY", ".QhX")).is_none());
        let short = key::public(SHORT.as_bytes());
        assert!(matches!(short, Err(KeyError::Short(1024))), "{short:?}");
    }
}

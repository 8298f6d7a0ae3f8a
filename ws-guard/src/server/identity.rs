//! Who a client is, and whether a browser's page may connect: decided before the upgrade.

use std::{fmt, io, path::Path};

use hyper::{
    HeaderMap, Request,
    header::{self, HeaderName},
};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, Validation, decode};
use serde::Deserialize;

use super::handshake::Refusal;

/// Longest name of a user or region, in bytes.
const LONGEST: usize = 128;
/// Query parameter that a browser has to use, which cannot set a header (RFC 6750, 2.3).
const TOKEN_PARAMETER: &str = "access_token";

/// What is known of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user_id: Option<Box<str>>,
    pub region: Option<Box<str>>,
    /// Whose certificate it showed.
    pub certificate: Option<Box<str>>,
}

/// Where a request names something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A header, believed from trusted proxies only: anybody can set it.
    Header(HeaderName),
    /// A parameter of the query. Anybody can set it too: a label, no proof.
    Query(String),
    /// The name in the certificate that the client showed.
    Certificate,
}

impl std::str::FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Field, String> {
        match text.split_once(':') {
            Some(("header", name)) => name.parse().map(Field::Header).map_err(|_| {
                format!("{name:?} is no name of a header: write it as header:x-user-id")
            }),
            None if text == "certificate" => Ok(Field::Certificate),
            Some(("query", name)) if !name.is_empty() => Ok(Field::Query(name.to_owned())),
            _ => Err(format!("{text:?}: write it as header:NAME, query:NAME or certificate")),
        }
    }
}

/// The key that tokens are signed with (RFC 7519).
#[derive(Clone)]
pub struct TokenKey {
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("algorithms", &self.validation.algorithms).finish()
    }
}

/// What is read of a token. That it has not expired is checked, that it says when it does, and that
/// it is valid already where it says since when (RFC 7519, 4.1.4 and 4.1.5).
#[derive(Deserialize)]
struct Claims {
    sub: Option<Box<str>>,
    region: Option<Box<str>>,
}

impl TokenKey {
    /// A public key in PEM (RSA, EC or Ed25519), or else a shared secret for HMAC.
    pub fn from_bytes(bytes: &[u8]) -> TokenKey {
        let pem = [
            (DecodingKey::from_rsa_pem(bytes), AlgorithmFamily::Rsa),
            (DecodingKey::from_ec_pem(bytes), AlgorithmFamily::Ec),
            (DecodingKey::from_ed_pem(bytes), AlgorithmFamily::Ed),
        ];
        let known = pem.into_iter().find_map(|(key, family)| Some((key.ok()?, family)));
        let (key, family) = known.unwrap_or_else(|| {
            (DecodingKey::from_secret(bytes.trim_ascii()), AlgorithmFamily::Hmac)
        });
        // One family: a public key must never be taken for a shared secret.
        let mut validation = Validation::new_for_family(family);
        validation.validate_nbf = true;
        TokenKey { key, validation }
    }

    /// Read a key from a file.
    pub fn from_file(path: &Path) -> io::Result<TokenKey> {
        let bytes = std::fs::read(path)?;
        if bytes.trim_ascii().len() < 32 {
            return Err(io::Error::other("a key has at least 32 bytes"));
        }
        if bytes.starts_with(b"-----BEGIN") {
            let key = TokenKey::from_bytes(&bytes);
            if key.key.family() == AlgorithmFamily::Hmac {
                return Err(io::Error::other("this is no public key of RSA, EC or Ed25519 in PEM"));
            }
            return Ok(key);
        }
        Ok(TokenKey::from_bytes(&bytes))
    }

    fn identity(&self, token: &str) -> Option<Identity> {
        let claims = decode::<Claims>(token, &self.key, &self.validation).ok()?.claims;
        let user_id = claims.sub.filter(|name| is_name(name));
        let region = claims.region.filter(|name| is_name(name));
        Some(Identity { user_id, region, certificate: None })
    }
}

/// Who may connect.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Origins of pages that may connect, as browsers write them; any where there are none. Clients
    /// that are no browsers send none, and are not stopped.
    pub origins: Vec<String>,
    pub user: Option<Field>,
    pub region: Option<Field>,
    /// With one, a client needs a token, and its fields are not asked.
    pub token: Option<TokenKey>,
    /// A client has to say who it is.
    pub user_required: bool,
}

impl Access {
    /// Check a request. `trusted` is whether it comes through a trusted proxy, `certificate` whose
    /// certificate the client showed.
    pub fn check<B>(
        &self,
        request: &Request<B>,
        trusted: bool,
        certificate: Option<&str>,
    ) -> Result<Identity, Refusal> {
        self.check_origin(request.headers())?;
        let shown = Shown { request, trusted, certificate };
        let identity = match &self.token {
            Some(key) => {
                let token = token(request).ok_or(Refusal::NoToken)?;
                key.identity(token).ok_or(Refusal::BadToken)?
            }
            None => Identity {
                user_id: shown.field(self.user.as_ref()),
                region: shown.field(self.region.as_ref()),
                certificate: None,
            },
        };
        let identity = Identity { certificate: certificate.map(Box::from), ..identity };
        if self.user_required && identity.user_id.is_none() {
            return Err(Refusal::NoUser);
        }
        Ok(identity)
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut given = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = given.next().filter(|_| !self.origins.is_empty()) else {
            return Ok(());
        };
        let allowed = |allowed: &String| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes());
        if given.next().is_none() && self.origins.iter().any(allowed) {
            Ok(())
        } else {
            Err(Refusal::Origin)
        }
    }
}

/// `Authorization: Bearer`, or the query's `access_token`.
fn token<B>(request: &Request<B>) -> Option<&str> {
    if let Some(value) = request.headers().get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
    }
    parameter(request.uri().query()?, TOKEN_PARAMETER)
}

/// What a client shows of itself.
struct Shown<'a, B> {
    request: &'a Request<B>,
    trusted: bool,
    certificate: Option<&'a str>,
}

impl<B> Shown<'_, B> {
    fn field(&self, field: Option<&Field>) -> Option<Box<str>> {
        let value = match field? {
            Field::Header(_) if !self.trusted => None,
            Field::Header(name) => self.request.headers().get(name)?.to_str().ok(),
            Field::Query(name) => parameter(self.request.uri().query()?, name),
            Field::Certificate => self.certificate,
        };
        value.filter(|value| is_name(value)).map(Box::from)
    }
}

/// The first value of a parameter. Names of users and regions need no percent-encoding, and what is
/// encoded is no such name.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

/// Short, and of characters that need no escaping anywhere.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@:|".contains(c);
    (1..=LONGEST).contains(&text.len()) && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

    fn request(uri: &str, fields: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().uri(uri);
        let request = fields.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        request.body(()).unwrap()
    }

    fn signed(claims: &Value, secret: &[u8]) -> String {
        let key = EncodingKey::from_secret(secret);
        encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
    }

    fn user(name: &str) -> Identity {
        Identity { user_id: Some(name.into()), ..Identity::default() }
    }

    #[test]
    fn pages_of_other_origins_are_kept_out() {
        let origins = vec!["https://example.test".to_owned()];
        let access = Access { origins, ..Access::default() };
        let check = |fields: &[(&str, &str)]| access.check(&request("/", fields), false, None);
        assert!(check(&[("origin", "https://EXAMPLE.test")]).is_ok());
        assert!(check(&[]).is_ok());
        for origin in ["https://example.test.evil", "http://example.test", "null", ""] {
            assert_eq!(check(&[("origin", origin)]), Err(Refusal::Origin), "{origin}");
        }
        let two = [("origin", "https://example.test"), ("origin", "https://evil.test")];
        assert_eq!(check(&two), Err(Refusal::Origin));
        assert!(Access::default().check(&request("/", &two), false, None).is_ok());
    }

    #[test]
    fn headers_are_believed_from_trusted_proxies_only() {
        let access = Access {
            user: Some("header:x-user-id".parse().unwrap()),
            region: Some("query:region".parse().unwrap()),
            user_required: true,
            ..Access::default()
        };
        let request = request("/?a=b&region=shanghai", &[("x-user-id", "u-1")]);
        let both = Identity { region: Some("shanghai".into()), ..user("u-1") };
        assert_eq!(access.check(&request, true, None), Ok(both));
        assert_eq!(access.check(&request, false, None), Err(Refusal::NoUser));
    }

    #[test]
    fn what_is_no_name_is_none() {
        let access = Access { user: Some("query:user".parse().unwrap()), ..Access::default() };
        for value in ["", "a%20b", "\"x\"", &"x".repeat(129)] {
            let request = Request::builder().uri(format!("/?user={value}")).body(());
            // Some of them are no address either.
            if let Ok(request) = request {
                assert_eq!(access.check(&request, false, None), Ok(Identity::default()), "{value}");
            }
        }
        for wrong in ["user", "query:", "header:", "header:a b", "cookie:user"] {
            assert!(wrong.parse::<Field>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_are_verified() {
        let token = Some(TokenKey::from_bytes(SECRET));
        let access = Access { token, user_required: true, ..Access::default() };
        let soon = get_current_timestamp() + 600;
        let good = json!({ "sub": "u-7", "exp": soon });
        let bearer = |claims: &Value, secret: &[u8]| {
            let value = format!("Bearer {}", signed(claims, secret));
            access.check(&request("/", &[("authorization", &value)]), false, None)
        };
        assert_eq!(bearer(&good, SECRET), Ok(user("u-7")));
        let in_query = format!("/chat?access_token={}", signed(&good, SECRET));
        assert_eq!(access.check(&request(&in_query, &[]), false, None), Ok(user("u-7")));
        assert_eq!(access.check(&request("/", &[]), false, None), Err(Refusal::NoToken));
        let other = b"another secret of thirty-two bytes or so";
        assert_eq!(bearer(&good, other), Err(Refusal::BadToken));
        let expired = json!({ "sub": "u-7", "exp": soon - 6000 });
        assert_eq!(bearer(&expired, SECRET), Err(Refusal::BadToken));
        let early = json!({ "sub": "u-7", "exp": soon, "nbf": soon - 300 });
        assert_eq!(bearer(&early, SECRET), Err(Refusal::BadToken));
        let in_force = json!({ "sub": "u-7", "exp": soon, "nbf": soon - 900 });
        assert_eq!(bearer(&in_force, SECRET), Ok(user("u-7")));
        assert_eq!(bearer(&json!({ "sub": "u-7" }), SECRET), Err(Refusal::BadToken));
        assert_eq!(bearer(&json!({ "exp": soon }), SECRET), Err(Refusal::NoUser));
        // {"alg":"none"}, the oldest trick.
        let unsigned = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1LTciLCJleHAiOjk5OTk5OTk5OTl9.";
        let request = request("/", &[("authorization", unsigned)]);
        assert_eq!(access.check(&request, false, None), Err(Refusal::BadToken));
    }
}

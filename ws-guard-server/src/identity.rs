//! Identity of a client, and origin checks for browsers, before the upgrade.

use std::borrow::Cow;

use hyper::{
    HeaderMap, Request,
    header::{self, HeaderName},
};
use percent_encoding::percent_decode_str;

use super::{
    certificate::{LONGEST, NAMELESS},
    negotiation::offers::offers,
    origin::Origin,
    refusal::Refusal,
    token::TokenKey,
    topics::rules::Grants,
};

/// Region of clients whose own is not a valid name.
const INVALID_REGION: &str = "invalid";
/// Query parameter for browsers, which cannot set a header (RFC 6750, 2.3).
const TOKEN_PARAMETER: &str = "access_token";
/// Query parameter of the topics and positions with which a client resumes.
const RESUME_PARAMETER: &str = "resume";
/// Subprotocol for offering these as another one, which begins with it and a dot.
pub const RESUME: &str = "ws-guard.resume";

/// Identity of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user_id: Option<Box<str>>,
    pub region: Option<Box<str>>,
    /// Name in its certificate.
    pub certificate: Option<Box<str>>,
    /// Permissions of its token.
    pub grants: Grants,
}

/// Place of a value in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Header, accepted from trusted proxies only: any client can set it.
    Header(HeaderName),
    /// Query parameter; any client can set that too: a label, no proof.
    Query(String),
    /// Name in the client's certificate.
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

/// Rules of access.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Allowed origins of pages; empty for any.
    /// Clients other than browsers send none, and are not stopped.
    pub origins: Vec<Origin>,
    pub user: Option<Field>,
    pub region: Option<Field>,
    /// Token key; with one, a client needs a token, and its fields are ignored.
    pub token: Option<TokenKey>,
    /// `true` if a client has to identify itself.
    pub user_required: bool,
}

impl Access {
    /// Check a request.
    /// `trusted` is whether it comes through a trusted proxy, `certificate` the name in the
    /// client's certificate.
    pub fn check<B>(
        &self,
        request: &Request<B>,
        trusted: bool,
        certificate: Option<&str>,
    ) -> Result<Identity, Refusal> {
        self.check_origin(request.headers())?;
        let shown = Shown { request, trusted, certificate };
        let mut grants = Grants::default();
        let (user, region) = match &self.token {
            Some(key) => {
                let claims = key.claims(&token(request)?).ok_or(Refusal::BadToken)?;
                grants = claims.grants;
                (Ok(claims.sub.map(Cow::Owned)), Ok(claims.region.map(Cow::Owned)))
            }
            None => (shown.field(self.user.as_ref()), shown.field(self.region.as_ref())),
        };
        // A user's limits apply to all connections, or visibly to none.
        let user_id = user.and_then(name).map_err(|NotAName| Refusal::BadUser)?;
        let region = region.and_then(name).unwrap_or_else(|NotAName| Some(INVALID_REGION.into()));
        if self.user_required && user_id.is_none() {
            return Err(Refusal::NoUser);
        }
        Ok(Identity { user_id, region, certificate: certificate.map(Box::from), grants })
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut given = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = given.next().filter(|_| !self.origins.is_empty()) else {
            return Ok(());
        };
        let allowed = |allowed: &Origin| allowed.is(origin.as_bytes());
        if given.next().is_none() && self.origins.iter().any(allowed) {
            Ok(())
        } else {
            Err(Refusal::Origin)
        }
    }
}

/// Return the resume token in the query, or among the offered subprotocols.
pub fn resume_token<B>(request: &Request<B>) -> Option<Box<str>> {
    if let Some(token) = parameters(request.uri().query(), RESUME_PARAMETER).next() {
        return Some(token.ok()?.into_owned().into_boxed_str());
    }
    let offered = offers(request.headers()).into_iter();
    let mut tokens = offered.filter_map(|name| name.strip_prefix(RESUME)?.strip_prefix('.'));
    tokens.next().map(Box::from)
}

/// Return the token: a bearer one, or `access_token` of the query (RFC 6750, 2).
/// It has to be given exactly once.
fn token<B>(request: &Request<B>) -> Result<Cow<'_, str>, Refusal> {
    let mut fields = request.headers().get_all(header::AUTHORIZATION).iter();
    let mut parameters = parameters(request.uri().query(), TOKEN_PARAMETER);
    let token = match (fields.next(), parameters.next()) {
        (None, None) => return Err(Refusal::NoToken),
        (Some(field), None) => {
            let field = field.to_str().ok().and_then(|value| value.split_once(' '));
            let bearer = field.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            Cow::Borrowed(bearer.ok_or(Refusal::NoToken)?.1.trim())
        }
        (None, Some(parameter)) => parameter.map_err(|NotAName| Refusal::BadToken)?,
        (Some(_), Some(_)) => return Err(Refusal::BadToken),
    };
    if fields.next().is_some() || parameters.next().is_some() {
        return Err(Refusal::BadToken);
    }
    Ok(token)
}

/// Identification shown by a client.
struct Shown<'a, B> {
    request: &'a Request<B>,
    trusted: bool,
    certificate: Option<&'a str>,
}

/// Invalid name in a client's identification.
struct NotAName;

impl<'a, B> Shown<'a, B> {
    fn field(&self, field: Option<&Field>) -> Result<Option<Cow<'a, str>>, NotAName> {
        match field {
            None => Ok(None),
            Some(Field::Header(_)) if !self.trusted => Ok(None),
            Some(Field::Header(name)) => {
                let mut values = self.request.headers().get_all(name).iter();
                let value = values.next().map(|value| std::str::from_utf8(value.as_bytes()));
                // The client's own, and that of the proxy: they cannot be told apart.
                if values.next().is_some() {
                    return Err(NotAName);
                }
                value.transpose().map(|value| value.map(Cow::Borrowed)).map_err(|_| NotAName)
            }
            Some(Field::Query(name)) => {
                parameters(self.request.uri().query(), name).next().transpose()
            }
            Some(Field::Certificate) if self.certificate == Some(NAMELESS) => Err(NotAName),
            Some(Field::Certificate) => Ok(self.certificate.map(Cow::Borrowed)),
        }
    }
}

/// Return the values of a query parameter (`application/x-www-form-urlencoded`).
fn parameters<'a>(
    query: Option<&'a str>,
    name: &str,
) -> impl Iterator<Item = Result<Cow<'a, str>, NotAName>> {
    let pairs = query.unwrap_or_default().split('&').map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key), decoded(value))
    });
    pairs.filter_map(move |(key, value)| key.is_ok_and(|key| key == name).then_some(value))
}

/// Decode the percent-encoding of a key or value; a plus sign is a space.
fn decoded(text: &str) -> Result<Cow<'_, str>, NotAName> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| NotAName)?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_decode_str(text).decode_utf8().map_err(|_| NotAName)
}

/// Validate a name of a user or region: short enough for a line, no control codes.
/// An empty one is none.
fn name(text: Option<Cow<'_, str>>) -> Result<Option<Box<str>>, NotAName> {
    let text = text.filter(|text| !text.is_empty());
    match text {
        Some(text) if text.len() > LONGEST || text.chars().any(char::is_control) => Err(NotAName),
        text => Ok(text.map(|text| text.into_owned().into_boxed_str())),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
    use serde_json::{Value, json};

    use super::*;
    use crate::token::key;

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
        let origins = vec!["https://example.test/".parse().unwrap()];
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
    fn names_are_decoded_and_what_is_none_is_refused() {
        let access = Access { user: Some("query:user".parse().unwrap()), ..Access::default() };
        let check = |query: &str| {
            let identity = access.check(&request(&format!("/?{query}"), &[]), false, None);
            identity.map(|identity| identity.user_id.map(String::from))
        };
        for (query, user) in [
            ("user=me%40example.com", "me@example.com"),
            ("user=me%2Bx%40example.com", "me+x@example.com"),
            ("user=a%20b", "a b"),
            ("user=a+b", "a b"),
            ("%75ser=https%3A%2F%2Fidp%2Fu%2F1", "https://idp/u/1"),
            ("user=J%C3%BCrgen", "J\u{fc}rgen"),
            ("user=50%", "50%"),
            ("user=%22x%22", "\"x\""),
            ("a=b&user=a&user=b", "a"),
            (&format!("user={}", "x".repeat(255)), &"x".repeat(255)),
        ] {
            assert_eq!(check(query), Ok(Some(user.to_owned())), "{query}");
        }
        for query in ["", "user=", "user", "users=a"] {
            assert_eq!(check(query), Ok(None), "{query}");
        }
        let long = format!("user={}", "x".repeat(256));
        for query in ["user=a%0Ab", "user=%FF", "user=%1B%5B2J", "user=%C2%9B", &long] {
            assert_eq!(check(query), Err(Refusal::BadUser), "{query}");
        }
        for wrong in ["user", "query:", "header:", "header:a b", "cookie:user"] {
            assert!(wrong.parse::<Field>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_and_certificates_without_a_name_are_refused() {
        let mut access = Access { user: Some(Field::Certificate), ..Access::default() };
        let named = |access: &Access, certificate| {
            access.check(&request("/", &[]), true, certificate).map(|identity| identity.user_id)
        };
        assert_eq!(named(&access, Some("Jane Doe")), Ok(Some("Jane Doe".into())));
        assert_eq!(named(&access, Some(NAMELESS)), Err(Refusal::BadUser));
        assert_eq!(named(&access, None), Ok(None));
        access.user = Some("header:x-user".parse().unwrap());
        access.region = Some("query:region".parse().unwrap());
        let two = request("/", &[("x-user", "evil"), ("x-user", "u-1")]);
        assert_eq!(access.check(&two, true, None), Err(Refusal::BadUser));
        let bytes = request("/?region=%0A", &[("x-user", "J\u{fc}rgen")]);
        let identity = access.check(&bytes, true, None).unwrap();
        assert_eq!(identity.user_id.as_deref(), Some("J\u{fc}rgen"));
        assert_eq!(identity.region.as_deref(), Some(INVALID_REGION));
    }

    #[test]
    fn tokens_are_verified() {
        let token = Some(TokenKey::from(key::shared(SECRET).unwrap()));
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
        for sub in ["https://idp/u/1", "me+x@example.com", "a b"] {
            let claims = json!({ "sub": sub, "exp": soon });
            assert_eq!(bearer(&claims, SECRET), Ok(user(sub)));
        }
        let broken = json!({ "sub": "a\nb", "exp": soon });
        assert_eq!(bearer(&broken, SECRET), Err(Refusal::BadUser));
        // One way of showing it, once (RFC 6750, 2).
        let shown = format!("Bearer {}", signed(&good, SECRET));
        let both = request(&in_query, &[("authorization", &shown)]);
        assert_eq!(access.check(&both, false, None), Err(Refusal::BadToken));
        let twice = request("/", &[("authorization", &shown), ("authorization", &shown)]);
        assert_eq!(access.check(&twice, false, None), Err(Refusal::BadToken));
        // {"alg":"none"}, the oldest trick.
        let unsigned = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1LTciLCJleHAiOjk5OTk5OTk5OTl9.";
        let request = request("/", &[("authorization", unsigned)]);
        assert_eq!(access.check(&request, false, None), Err(Refusal::BadToken));
    }

    /// Critical extensions must be understood by a token's reader (RFC 7515, 4.1.11).
    #[test]
    fn critical_extensions_are_refused() {
        let access = Access {
            token: Some(TokenKey::from(key::shared(SECRET).unwrap())),
            ..Access::default()
        };
        let claims = json!({ "sub": "u-7", "exp": get_current_timestamp() + 600 });
        for crit in [Some(vec!["cnf".to_owned()]), Some(vec![]), None] {
            let header = Header { crit: crit.clone(), ..Header::new(Algorithm::HS256) };
            let token = encode(&header, &claims, &EncodingKey::from_secret(SECRET)).unwrap();
            let request = request("/", &[("authorization", &format!("Bearer {token}"))]);
            let checked = access.check(&request, false, None);
            assert_eq!(checked.is_ok(), crit.is_none(), "{crit:?}: {checked:?}");
        }
    }

    /// Members that are neither an extension's list nor a name.
    #[test]
    fn malformed_demands_are_demands() {
        let key = TokenKey::from(key::shared(SECRET).unwrap());
        let end = get_current_timestamp() + 600;
        let valid = |header: &str, more: &str| {
            let parts = [header.to_owned(), format!(r#"{{"sub":"u-7","exp":{end}{more}}}"#)];
            let signed = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            let signer = EncodingKey::from_secret(SECRET);
            let mark = jsonwebtoken::crypto::sign(signed.as_bytes(), &signer, Algorithm::HS256);
            key.claims(&format!("{signed}.{}", mark.unwrap())).is_some()
        };
        assert!(valid(r#"{"alg":"HS256","typ":"JWT"}"#, ""));
        for crit in ["null", r#""cnf""#, "[]", "{}", "7", r#"["b64"]"#] {
            assert!(!valid(&format!(r#"{{"alg":"HS256","crit":{crit}}}"#), ""), "{crit}");
        }
        for aud in ["null", "7", "{}", r#""chat""#, r#"["chat"]"#] {
            assert!(!valid(r#"{"alg":"HS256"}"#, &format!(r#","aud":{aud}"#)), "{aud}");
        }
    }
}

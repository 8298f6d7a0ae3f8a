//! Tokens with which a client goes on where its last connection was.
//!
//! A signed list of topics and positions (JWT, HS256), valid for a short time and for its user.

use std::time::Duration;

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, get_current_timestamp,
};
use serde::{Deserialize, Serialize};

use super::log::Position;

/// Longest token: it has to fit into a request's line.
const LONGEST: usize = 8 * 1024;
/// What else these servers sign is not for this.
const AUDIENCE: &str = "ws-guard-resume";

/// What signs and checks tokens. Servers that share clients share the secret.
#[derive(Clone)]
pub struct ResumeKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
    lifetime: Duration,
}

impl std::fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResumeKey").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    topics: Vec<(String, Option<(u64, u64)>)>,
}

/// A topic, and the position up to which the client has it, where the topic has positions.
pub type Kept = (String, Option<Position>);

impl ResumeKey {
    /// How long a token is valid by default.
    pub const LIFETIME: Duration = Duration::from_secs(300);

    pub fn new(secret: &[u8], lifetime: Duration) -> ResumeKey {
        let (encoding, decoding) =
            (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
        ResumeKey { encoding, decoding, lifetime }
    }

    /// A key that no other process has.
    ///
    /// # Errors
    /// Where the system has no randomness to give.
    pub fn random(lifetime: Duration) -> Result<ResumeKey, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(ResumeKey::new(&secret, lifetime))
    }

    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// A token of these topics, unless it would be too long.
    pub fn sign(&self, user: Option<&str>, topics: Vec<Kept>) -> Option<String> {
        let position = |at: Position| (at.epoch, at.offset);
        let topics = topics.into_iter().map(|(name, at)| (name, at.map(position))).collect();
        let claims = Claims {
            aud: AUDIENCE.into(),
            exp: get_current_timestamp() + self.lifetime.as_secs(),
            sub: user.map(str::to_owned),
            topics,
        };
        let token = encode(&Header::new(Algorithm::HS256), &claims, &self.encoding).ok()?;
        (token.len() <= LONGEST).then_some(token)
    }

    /// The topics of a token that is valid for this user, or what is wrong with it.
    pub fn read(&self, token: &str, user: Option<&str>) -> Result<Vec<Kept>, &'static str> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_audience(&[AUDIENCE]);
        let claims = decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|_| "the resume token is not of this service, or has expired")?
            .claims;
        if claims.sub.as_deref() != user {
            return Err("the resume token is another user's");
        }
        let position = |(epoch, offset)| Position { epoch, offset };
        Ok(claims.topics.into_iter().map(|(name, at)| (name, at.map(position))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_for_their_user_their_service_and_their_time() {
        let key = ResumeKey::new(b"one secret", ResumeKey::LIFETIME);
        let topics: Vec<Kept> = vec![
            ("chat".into(), Some(Position { epoch: 1 << 50, offset: 7 })),
            ("live".into(), None),
        ];
        let token = key.sign(Some("u-1"), topics.clone()).unwrap();
        assert_eq!(key.read(&token, Some("u-1")), Ok(topics.clone()));
        assert!(key.read(&token, Some("u-2")).is_err() && key.read(&token, None).is_err());
        let other = ResumeKey::new(b"another secret", ResumeKey::LIFETIME);
        assert!(other.read(&token, Some("u-1")).is_err());
        let altered = token.replacen('.', ".A", 1);
        assert!(key.read(&altered, Some("u-1")).is_err());
        let mut expired = Validation::new(Algorithm::HS256);
        expired.set_audience(&[AUDIENCE]);
        let past = Claims {
            aud: AUDIENCE.into(),
            exp: get_current_timestamp() - 1,
            sub: None,
            topics: vec![],
        };
        let past = encode(&Header::default(), &past, &key.encoding).unwrap();
        assert!(key.read(&past, None).is_err());
        let many = (0..200).map(|n| (format!("{n:0100}"), None)).collect();
        assert_eq!(key.sign(None, many), None);
    }
}

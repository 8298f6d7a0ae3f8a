//! Flags for access.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, builder::BoolishValueParser, error::ErrorKind};
use ws_guard_server::{
    identity::{Access, Field},
    origin::Origin,
    proxies::Proxies,
    token::{TokenKey, key::KeyError},
};

use crate::domain::proxies::TrustedProxies;

#[derive(Args)]
#[command(next_help_heading = "Access")]
pub struct AccessFlags {
    /// Origin of pages that may connect, as https://example.com; any without. Several with commas, or
    /// by giving it again
    #[arg(long, value_name = "ORIGIN", env = "WS_GUARD_ALLOW_ORIGIN", value_delimiter = ',')]
    allow_origin: Vec<Origin>,
    /// Origin of a client's user name: header:NAME (from trusted proxies only), query:NAME, or
    /// certificate (see --tls-client-ca)
    #[arg(long, value_name = "FIELD", env = "WS_GUARD_USER_FROM")]
    user_from: Option<Field>,
    /// Where it says what region it is in
    #[arg(long, value_name = "FIELD", env = "WS_GUARD_REGION_FROM")]
    region_from: Option<Field>,
    /// Public key in PEM (RSA, EC, Ed25519) of the signer of the token (JWT) that a client has to
    /// present. User and region are its claims `sub` and `region`
    #[arg(long, value_name = "FILE", env = "WS_GUARD_TOKEN_KEY",
        conflicts_with_all = ["user_from", "region_from"])]
    token_key: Option<PathBuf>,
    /// The same with a secret shared with the signer (HMAC), of at least 32 bytes
    #[arg(long, value_name = "FILE", env = "WS_GUARD_TOKEN_SECRET",
        conflicts_with_all = ["user_from", "region_from", "token_key"])]
    token_secret: Option<PathBuf>,
    /// Refuse clients without a user name
    #[arg(long, env = "WS_GUARD_REQUIRE_USER", value_parser = BoolishValueParser::new())]
    require_user: bool,
    /// Trusted proxies begin each connection with the PROXY protocol, version 1 or 2
    #[arg(long, env = "WS_GUARD_PROXY_PROTOCOL", value_parser = BoolishValueParser::new())]
    proxy_protocol: bool,
}

impl AccessFlags {
    /// Check whether the flags restrict access.
    pub fn restricts(&self) -> bool {
        let tokens = self.token_key.is_some() || self.token_secret.is_some();
        !self.allow_origin.is_empty() || tokens || self.require_user
    }

    pub fn access(&self) -> anyhow::Result<Access> {
        Ok(Access {
            origins: self.allow_origin.clone(),
            user: self.user_from.clone(),
            region: self.region_from.clone(),
            token: self.token()?,
            user_required: self.require_user,
        })
    }

    /// # Errors
    /// The PROXY protocol without a trusted proxy.
    pub fn proxies(&self, trusted: &TrustedProxies) -> Result<Proxies, clap::Error> {
        let networks: Vec<_> = trusted.networks().copied().collect();
        if self.proxy_protocol && networks.is_empty() {
            return Err(clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "--proxy-protocol needs trusted proxies: add --trusted-proxy, such as 10.0.0.1 or \
                 private\n",
            ));
        }
        Ok(Proxies { networks, proxy_protocol: self.proxy_protocol })
    }

    fn token(&self) -> anyhow::Result<Option<TokenKey>> {
        let read = |path: &Option<PathBuf>, what, read: fn(&Path) -> Result<TokenKey, KeyError>| {
            let key = path.as_ref().map(|path| {
                let what = format!("cannot use {} as {what}", path.display());
                read(path).context(what)
            });
            key.transpose()
        };
        let public = read(&self.token_key, "the key that signs tokens", TokenKey::public)?;
        Ok(public.or(read(&self.token_secret, "the secret that signs tokens", TokenKey::shared)?))
    }
}

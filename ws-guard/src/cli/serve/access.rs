//! Flags about who may connect.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, error::ErrorKind};

use crate::{
    domain::proxies::TrustedProxies,
    server::{
        identity::{Access, Field, TokenKey},
        proxies::Proxies,
    },
};

#[derive(Args)]
#[command(next_help_heading = "Who may connect")]
pub struct AccessFlags {
    /// Origin of pages that may connect, as browsers write it; any without. Several with commas, or
    /// by giving it again
    #[arg(long, value_name = "ORIGIN", env = "WS_GUARD_ALLOW_ORIGIN", value_delimiter = ',')]
    allow_origin: Vec<String>,
    /// Where a client says who it is: header:NAME (from trusted proxies only), query:NAME, or
    /// certificate (see --tls-client-ca)
    #[arg(long, value_name = "FIELD", env = "WS_GUARD_USER_FROM")]
    user_from: Option<Field>,
    /// Where it says what region it is in
    #[arg(long, value_name = "FIELD", env = "WS_GUARD_REGION_FROM")]
    region_from: Option<Field>,
    /// Key that a client's token (JWT) has to be signed with: a public key in PEM, or a shared
    /// secret. User and region are its claims `sub` and `region`
    #[arg(long, value_name = "FILE", env = "WS_GUARD_TOKEN_KEY",
        conflicts_with_all = ["user_from", "region_from"])]
    token_key: Option<PathBuf>,
    /// Refuse clients that do not say who they are
    #[arg(long)]
    require_user: bool,
    /// Trusted proxies begin each connection with the PROXY protocol, version 1 or 2
    #[arg(long)]
    proxy_protocol: bool,
}

impl AccessFlags {
    /// Whether they keep anybody out.
    pub fn restricts(&self) -> bool {
        !self.allow_origin.is_empty() || self.token_key.is_some() || self.require_user
    }

    pub fn access(&self) -> anyhow::Result<Access> {
        let token = self.token_key.as_ref().map(|path| {
            let key = TokenKey::from_file(path);
            key.with_context(|| format!("cannot use the key in {} for tokens", path.display()))
        });
        Ok(Access {
            origins: self.allow_origin.clone(),
            user: self.user_from.clone(),
            region: self.region_from.clone(),
            token: token.transpose()?,
            user_required: self.require_user,
        })
    }

    /// # Errors
    /// With the PROXY protocol and nobody to begin with it.
    pub fn proxies(&self, trusted: &TrustedProxies) -> Result<Proxies, clap::Error> {
        let networks: Vec<_> = trusted.networks().copied().collect();
        if self.proxy_protocol && networks.is_empty() {
            return Err(clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "--proxy-protocol wants to know of whom: add --trusted-proxy, such as 10.0.0.1 or \
                 private\n",
            ));
        }
        Ok(Proxies { networks, proxy_protocol: self.proxy_protocol })
    }
}

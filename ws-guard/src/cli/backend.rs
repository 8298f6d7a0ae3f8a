//! Origin of listings: the daemon, or without one the pins it left.

use std::io::Write;

use super::Global;
use crate::{
    api::client::{Client, ClientError},
    domain::{
        flow::FlowView,
        origin::AllowView,
        policy::PolicySettings,
        source::{SourceState, SourceView},
        status::Status,
    },
    guard::{self, Maps},
    state::{listing, reader::Reader},
};

/// Guard to read from.
pub enum Backend {
    Daemon(Client),
    Pins(Reader, Global),
}

/// Result of reading from a daemon's socket or from pins.
type Read<T> = anyhow::Result<T>;

impl Backend {
    /// Connect to the daemon.
    /// Read the pins if none runs, or if it guards another pin directory than the one named.
    pub async fn connect(global: &Global) -> Read<Backend> {
        let client = Client::new(&global.control_socket);
        match client.info().await {
            Ok(info) if !global.pin_dir_named || info.pin_dir == global.pin_dir => {
                Ok(Backend::Daemon(client))
            }
            Ok(_) | Err(ClientError::Unreachable(_)) => {
                let maps = Maps::from_pins(&global.pin_dir)?;
                Ok(Backend::Pins(Reader { maps }, global.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub async fn status(&self) -> Read<Status> {
        match self {
            Backend::Daemon(client) => Ok(client.get("/v1/status").await?),
            Backend::Pins(reader, global) => {
                let interfaces = guard::pinned_attachments(&global.pin_dir)?;
                Ok(reader.status(&global.pin_dir, interfaces)?)
            }
        }
    }

    pub async fn flows(&self) -> Read<Vec<FlowView>> {
        match self {
            Backend::Daemon(client) => Ok(client.get("/v1/flows").await?),
            Backend::Pins(reader, _) => Ok(reader.flows()?),
        }
    }

    pub async fn sources(&self, state: Option<SourceState>) -> Read<Vec<SourceView>> {
        match self {
            Backend::Daemon(client) => Ok(client.get(&sources_path(state)).await?),
            Backend::Pins(reader, _) => Ok(reader.sources(state)?),
        }
    }

    /// Write the sources as JSON, piece by piece as they are read.
    pub async fn write_sources(
        &self,
        state: Option<SourceState>,
        out: &mut impl Write,
    ) -> Read<()> {
        match self {
            Backend::Daemon(client) => {
                client.copy(&sources_path(state), |piece| out.write_all(piece)).await?;
            }
            Backend::Pins(reader, _) => {
                let mut written = Ok(());
                listing::sources(reader, state, |piece| {
                    written = out.write_all(&piece);
                    written.is_ok()
                })?;
                written?;
            }
        }
        Ok(out.flush()?)
    }

    pub async fn policy(&self) -> Read<PolicySettings> {
        match self {
            Backend::Daemon(client) => Ok(client.get("/v1/policy").await?),
            Backend::Pins(reader, _) => Ok(reader.policy()?),
        }
    }

    pub async fn allow(&self) -> Read<Vec<AllowView>> {
        match self {
            Backend::Daemon(client) => Ok(client.get("/v1/allow").await?),
            Backend::Pins(reader, _) => Ok(reader.allow()?),
        }
    }
}

fn sources_path(state: Option<SourceState>) -> String {
    let query = state.map_or(String::new(), |state| format!("?state={}", state.name()));
    format!("/v1/sources{query}")
}

/// Return the daemon for changes; it has to guard the named pin directory, if any.
pub async fn daemon(global: &Global) -> anyhow::Result<Client> {
    let client = Client::new(&global.control_socket);
    let info = client.info().await?;
    if global.pin_dir_named && info.pin_dir != global.pin_dir {
        anyhow::bail!(
            "the daemon on {} guards {}, not {}: name the other daemon's --control-socket",
            client.socket().display(),
            info.pin_dir.display(),
            global.pin_dir.display()
        );
    }
    Ok(client)
}

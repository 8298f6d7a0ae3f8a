//! Control socket of a server that runs alone.

use std::{future::pending, path::Path, sync::Arc};

use super::super::{Global, SERVE_SOCKET};
use ws_guard_server::service::Service;

use crate::{
    api::{routes, socket::Socket},
    listener::http::{self, Limits},
};

/// Claim the configured socket, or the default one.
/// The server runs without the latter as well: it needs no privileges, and several may run on a
/// host.
pub fn claim(global: &Global) -> anyhow::Result<Option<Socket>> {
    if global.control_socket_named {
        return Socket::claim(&global.control_socket).map(Some);
    }
    let claimed = Socket::claim(Path::new(SERVE_SOCKET));
    Ok(claimed.map_err(|error| tracing::info!("no control socket: {error:#}")).ok())
}

/// Answer on the socket, forever.
pub async fn serve(socket: Option<&mut Socket>, server: Arc<Service>) -> anyhow::Result<()> {
    match socket {
        Some(socket) => {
            http::serve(socket.listener()?, routes::alone(server), Limits::CONTROL).await
        }
        None => pending().await,
    }
    anyhow::bail!("the control socket ended unexpectedly")
}

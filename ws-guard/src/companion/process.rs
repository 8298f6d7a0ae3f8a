//! Process of the companion server.
//! It opens everything, drops its privileges, serves, and answers the daemon.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State as Shared},
    http::StatusCode,
    routing::{get, post, put},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::spawn_blocking,
};
use tower::ServiceExt as _;
use ws_guard_server::{
    Config, Pings, Server, StartError,
    access_log::{self, AccessLog, Flush},
    listen,
    seen::Seen,
    service::Service,
    telemetry::{Endpoint, Export, Signals, Telemetry},
    tls::Tls,
};

use super::{
    channel::{self, Handed},
    families::{Family, Reading},
    message::{Following, Start, TakenPings},
    privileges,
};
use crate::{api, config::reloadable::Reloadable};

/// Paths of the daemon's requests, below `/companion/`.
pub mod path {
    pub const ADDRESS: &str = "/companion/address";
    pub const READY: &str = "/companion/ready";
    pub const FAMILIES: &str = "/companion/families";
    pub const PINGS: &str = "/companion/pings";
    pub const FOLLOW: &str = "/companion/follow";
    pub const LEAVE: &str = "/companion/leave";
    pub const STOP: &str = "/companion/stop";
}

/// Handed-over descriptors that may be pending.
const WAITING: usize = 64;

/// Return the socket that is standard input, and the configuration read from it.
///
/// # Errors
/// If standard input is no such socket, because the daemon has not started the process.
pub fn begin() -> anyhow::Result<(OwnedFd, Start)> {
    close_inherited()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let first = channel::take(&socket)
        .context("--companion is for the daemon's own use: start a server with `ws-guard serve`")?;
    let Some(Handed::Start(file)) = first else { anyhow::bail!("the daemon is gone") };
    Ok((socket, channel::read_start(file)?))
}

/// Close descriptors that the daemon inherited without knowing.
fn close_inherited() -> io::Result<()> {
    const FIRST: u32 = 3;
    // SAFETY: this process has just begun: nothing in it has opened a descriptor that this closes.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST, u32::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Serve until the daemon ends the process, or is gone.
pub fn serve(mut config: Config, start: &Start, socket: OwnedFd) -> anyhow::Result<()> {
    // Everything that needs privileges comes first.
    let log = access_log::open(&start.access_log)
        .with_context(|| format!("cannot write the access log {}", start.access_log.display()))?;
    let endpoint = start.otlp_endpoint.as_deref().map(str::parse::<Endpoint>).transpose();
    let export = Export::read(endpoint.map_err(anyhow::Error::msg)?.as_ref(), Signals::TRACES)?;
    let address = config.listen;
    let listeners = listen::for_shards(address, config.shards)
        .map_err(|error| StartError::Listen(address, error))?;
    privileges::give_up()?;

    // No thread is started before this point.
    let registry = Registry::new();
    let (access_log, flush) = AccessLog::on(log, &start.access_log);
    let telemetry = export.map(|export| export.start(&registry)).transpose()?;
    config.trace = telemetry.as_ref().and_then(Telemetry::trace);
    config.pings = Arc::new(Pings::new(start.limits.pings(address.port()).unwrap_or_default()));
    let seen = Arc::new(Seen::new(&registry)?);
    config.seen = Some(seen.clone());
    let (reloadable, tls) = (Reloadable::of(&config), config.tls.clone());
    let server = Server::start_with(listeners, config, access_log, &registry)?;
    tracing::info!("serving WebSocket connections on {}", server.address());
    let (address, service) = (server.address(), server.service().clone());
    let running = Arc::new(Running {
        address,
        service: service.clone(),
        registry,
        seen,
        reloadable,
        ending: Mutex::new(Some(Ending { server, telemetry, _flush: flush })),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handed = listen_to_daemon(socket)?;
    runtime.block_on(answer(handed, router(running), &service, tls.as_deref()))
}

/// Read in a thread of its own: the daemon's death ends this process in any state.
fn listen_to_daemon(socket: OwnedFd) -> io::Result<mpsc::Receiver<Handed>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    std::thread::Builder::new().name("daemon".into()).spawn(move || {
        loop {
            match channel::take(&socket) {
                Ok(Some(handed)) => drop(sender.blocking_send(handed)),
                // After a stop nothing is left to do, and without the daemon the process must end.
                Ok(None) => std::process::exit(0),
                Err(error) => tracing::warn!("the daemon cannot be understood: {error}"),
            }
        }
    })?;
    Ok(receiver)
}

/// Process what is handed over, forever.
async fn answer(
    mut handed: mpsc::Receiver<Handed>,
    router: Router,
    service: &Service,
    tls: Option<&Tls>,
) -> anyhow::Result<()> {
    // A service manager or a terminal signals every process; only the daemon knows what to do.
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let _handled = kinds.map(signal);
    while let Some(handed) = handed.recv().await {
        match handed {
            Handed::Ask(stream) => {
                if let Err(error) = talk(stream, router.clone()) {
                    tracing::warn!("the daemon's question is lost: {error}");
                }
            }
            Handed::Log(file) => service.access_log.replace(file),
            Handed::Certificate(files) => match tls.map(|tls| tls.take(&files)) {
                Some(Ok(())) => tracing::info!("took over the certificate"),
                Some(Err(error)) => tracing::warn!("the old certificate stays in use: {error}"),
                None => {}
            },
            Handed::Start(_) => {}
        }
    }
    anyhow::bail!("the thread that listens to the daemon ended")
}

/// Answer requests on a stream until it ends.
fn talk(stream: UnixStream, router: Router) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let router = router.clone();
            async move {
                Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|e| match e {}))
            }
        });
        // The requester may have left.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
    Ok(())
}

struct Running {
    address: SocketAddr,
    service: Arc<Service>,
    registry: Registry,
    seen: Arc<Seen>,
    reloadable: Reloadable,
    /// Set until the server is stopped.
    ending: Mutex<Option<Ending>>,
}

/// Parts that have to be stopped.
struct Ending {
    server: Server,
    telemetry: Option<Telemetry>,
    _flush: Flush,
}

type Asked = Shared<Arc<Running>>;
type Failed = (StatusCode, String);

fn router(running: Arc<Running>) -> Router {
    let service = running.service.clone();
    let own = Router::new()
        .route(path::ADDRESS, get(async |Shared(r): Asked| Json(r.address)))
        .route(path::READY, get(ready))
        .route(path::FAMILIES, get(families))
        .route(
            path::PINGS,
            post(async |Shared(r): Asked| Json(TakenPings(r.seen.take().into_iter().collect()))),
        )
        .route(path::FOLLOW, put(follow))
        .route(path::LEAVE, post(leave))
        .route(path::STOP, post(stop))
        // The daemon's own requests have no size limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(running);
    api::routes::of_server(service).merge(own)
}

async fn ready(Shared(running): Asked) -> Result<Json<()>, Failed> {
    let ready = running.service.ready().map(Json);
    ready.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why.to_string()))
}

async fn families(Shared(running): Asked) -> Json<Reading> {
    let families = running.registry.gather().iter().filter_map(Family::sent).collect();
    Json(Reading { families, exemplars: running.service.exemplars() })
}

async fn follow(
    Shared(running): Asked,
    Json(following): Json<Following>,
) -> Result<Json<()>, Failed> {
    if let Some(policy) = following.limits.pings(running.service.config.listen.port()) {
        running.service.config.pings.set(policy);
    }
    let set = running.reloadable.set(following.section);
    set.map(Json).map_err(|error| (StatusCode::CONFLICT, error.to_string()))
}

/// Report not ready from now on; the daemon decides how long.
async fn leave(Shared(running): Asked) -> Json<()> {
    tokio::spawn(async move { running.service.leave().await });
    Json(())
}

/// Close all connections and export pending telemetry, then answer.
async fn stop(Shared(running): Asked) -> Result<Json<()>, Failed> {
    let ending = running.ending.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(ending) = ending else { return Ok(Json(())) };
    tracing::info!("closing {} connections", running.service.admission.open());
    // Threads are joined, which blocks.
    let stopped = spawn_blocking(move || {
        ending.server.stop();
        if let Some(telemetry) = ending.telemetry {
            telemetry.stop();
        }
    });
    let failed =
        |error: tokio::task::JoinError| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    stopped.await.map(Json).map_err(failed)
}

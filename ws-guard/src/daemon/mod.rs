//! Daemon: start-up order, supervision, signals, and an end that keeps protection.

mod companion;
mod event_log;
mod feed;
mod housekeeping;
mod interfaces;
pub mod memory;
mod notify;
mod readiness;
mod reasons;
mod releases;
mod reload;
mod suspects;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use axum::Router;
use tokio::{
    net::UnixListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use self::{companion::Companion, event_log::EventLog, interfaces::Supervisor, reload::Reloader};
use ws_guard_server::{
    self as server,
    telemetry::{self, Export, Telemetry},
    watch::Watch,
};

use crate::{
    api::{self, routes, socket::Socket},
    companion::{relay, supervisor::Companion as Server},
    config::{Inputs, Settings, reloadable::Reloadable},
    domain::{policy::PolicySettings, tunnel::Tunnel},
    guard::{self, Guard, GuardError, LoadOptions, interfaces::Interface},
    listener::{self, http::Limits},
    metrics,
    page::Page,
    state::State,
};

/// Validated options of `run`.
pub struct RunOptions {
    pub settings: Settings,
    /// Configuration of the companion server, if there is to be one.
    pub server: Option<server::Config>,
    /// Inputs for reading the configuration again.
    pub inputs: Inputs,
    /// Watch of the file, started before `settings` were read.
    pub watch: Option<Watch>,
    pub control_socket: PathBuf,
    pub pin_dir: PathBuf,
}

/// Protect until SIGTERM or SIGINT.
/// The order is: find interfaces, claim sockets, load, policy, attach, serve; so that what can fail
/// does so before anything changes, and no program is attached without a policy.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    check_privileges(&options.pin_dir)?;
    let settings = options.settings.clone();
    find_interfaces(&settings)?;
    let mut socket = Socket::claim(&options.control_socket)?;
    let metrics_listener = match settings.run.metrics_listen {
        Some(address) => Some(listener::listen(address).with_context(|| {
            format!("cannot serve metrics on {address}: choose another --metrics-listen")
        })?),
        None => None,
    };
    let exporter = export(&settings)?;
    let file = settings.run.event_log.as_deref().filter(|path| !event_log::is_collector(path));
    let mut event_log = file.map(EventLog::open).transpose()?;
    let mut guard = load(&options)?;
    let state = State::new(guard.maps(), options.pin_dir.clone(), settings.clone());
    put_in_force(&state, &settings)?;
    // Before requests are served: no scrape waits for the tables.
    state.surveys.renew(&state.reader)?;
    let kernel_events = guard.events()?;
    let selection = settings.run.interfaces.clone();
    let supervisor = Supervisor::start(guard, state.clone(), settings.run.attach, selection)?;

    let registry = metrics::registry(state.clone())?;
    let mut tasks = JoinSet::new();
    let (interfaces, changed_interfaces) = watch::channel(settings.run.interfaces.clone());
    let reloadable = options.server.as_ref().map(Reloadable::of);
    let reloader = Reloader::new(state.clone(), options.inputs, options.watch, interfaces)?
        .serving(reloadable);
    tasks.spawn(ended("interface supervision", supervisor.run(changed_interfaces)));
    tasks.spawn(ended("events", feed::run(state.clone(), kernel_events)));
    tasks.spawn(ended("housekeeping", housekeeping::run(state.clone())));
    tasks.spawn(ended("suspicion", suspects::run(state.clone())));
    tasks.spawn(ended("reload", reloader.run()));
    let telemetry = exporter.map(|export| export.start(&registry)).transpose()?;
    let logs = telemetry.as_ref().and_then(Telemetry::logs);
    event_log = event_log.or(logs.map(EventLog::Collector));
    if let Some(log) = event_log {
        tasks.spawn(ended("log of events", event_log::run(state.clone(), log)));
    }
    let companion = match &options.server {
        Some(config) => {
            let daemon = Companion::daemon(state.clone(), config.listen);
            let log = settings.run.access_log.clone();
            let (server, child) = Server::start(config, log, daemon, &registry).await?;
            tasks.spawn(ended("companion server", server.follow(child)));
            Some(server)
        }
        None => None,
    };
    let server = companion.as_ref().map(Server::shared);
    let relayed = server.clone().map(relay::router);
    let routes_of_server = relayed.clone().unwrap_or_else(api::companion::absent);
    tasks.spawn(serve_control(socket.listener()?, routes::router(state.clone(), routes_of_server)));
    if let Some(listener) = metrics_listener {
        let asked = server.clone();
        let exemplars = move || asked.as_ref().map_or(Vec::new(), |server| server.exemplars());
        let ready = move || server.as_ref().map_or(Ok(()), |server| server.ready());
        let page = Page::new(state.clone(), settings.run.page_addresses, relayed);
        let router =
            metrics::router(registry.clone(), exemplars, state.clone(), ready).merge(page.router());
        tasks.spawn(metrics::serve(listener, router));
        tasks.spawn(ended("the page", page.run()));
    }
    // Before readiness is reported: from then on, signals end the daemon in order.
    let mut signals = Signals::new()?;
    memory::give_back();
    announce(&state, &options.control_socket);
    tasks.spawn(ended("log of readiness", readiness::run(state.clone())));
    let ended = until_signal(&mut signals, &mut tasks).await;
    if let Some(companion) = &companion {
        // Meanwhile the tasks go on, and `/readyz` reports the shutdown.
        tokio::select! {
            () = companion.leave() => {}
            () = signals.next() => {}
        }
        companion.stop().await;
    }
    if let Some(telemetry) = telemetry {
        // Threads are joined, which blocks.
        tokio::task::spawn_blocking(|| telemetry.stop()).await.context("exporting telemetry")?;
    }
    if let Some(companion) = companion {
        // Its last metrics have been exported.
        companion.end();
    }
    ended
}

/// Configure the daemon's export of telemetry.
/// Spans are the companion server's, whose process exports them.
fn export(settings: &Settings) -> anyhow::Result<Option<Export>> {
    let run = &settings.run;
    let logs = run.event_log.as_deref().is_some_and(event_log::is_collector);
    let signals = telemetry::Signals { traces: false, metrics: true, logs };
    let export = Export::read(run.otlp_endpoint.as_ref(), signals)?;
    anyhow::ensure!(
        !logs || export.as_ref().is_some_and(Export::has_logs),
        "--event-log otlp: there is no collector for logs: give --otlp-endpoint, or a file"
    );
    Ok(export)
}

/// Check privileges before their first use, which would fail with less detail.
fn check_privileges(pin_dir: &Path) -> Result<(), GuardError> {
    let missing = guard::missing_capabilities(pin_dir);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Err(GuardError::Privileges(format!(
        "{}; run as root, or give them with `setcap` or the service's AmbientCapabilities",
        list.join(", ")
    )))
}

/// Check named interfaces: a mistyped one must not leave a server unprotected.
fn find_interfaces(settings: &Settings) -> Result<(), GuardError> {
    settings.run.interfaces.names().try_for_each(|(name, _)| Interface::find(name).map(drop))
}

fn load(options: &RunOptions) -> anyhow::Result<Guard> {
    let run = &options.settings.run;
    Ok(Guard::load(&LoadOptions {
        pin_dir: options.pin_dir.clone(),
        sizes: run.table_sizes(),
        tunnels: Tunnel::to_kernel(&run.tunnels),
        kernel_debug_log: run.kernel_debug,
    })?)
}

/// Apply the configuration's policy, also over one left in the pins.
/// Differences are logged: the earlier policy may have been an operator's.
fn put_in_force(state: &State, settings: &Settings) -> anyhow::Result<()> {
    let left = state.reader.policy()?;
    if left.max_ping_rate != 0 {
        tell_changes(&left, &settings.policy);
    }
    state.operator.configure(settings)?;
    state.operator.restore(left.max_ping_rate != 0);
    Ok(())
}

fn tell_changes(left: &PolicySettings, new: &PolicySettings) {
    let changes = left.differences(new);
    if !changes.is_empty() {
        tracing::warn!("the configuration replaces the policy in force: {}", changes.join(", "));
    }
}

fn announce(state: &State, socket: &Path) {
    let policy = &state.config().settings.policy;
    let tables =
        state.reader.maps.memory().map_or_else(|error| error.to_string(), |m| m.to_string());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ports = ?policy.ports,
        action = policy.action.name(),
        limit = format!("{} pings in any {} s", policy.max_ping_rate, policy.window_seconds),
        tables,
        control_socket = %socket.display(),
        "started"
    );
    // For systemd the start is complete; it does not ask whether all is attached.
    notify::notify("READY=1");
}

async fn serve_control(listener: UnixListener, router: Router) -> anyhow::Result<()> {
    listener::http::serve(listener, router, Limits::CONTROL).await;
    anyhow::bail!("the control socket ended unexpectedly")
}

/// Convert the end of a task that must not end into an error.
async fn ended(name: &'static str, task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    anyhow::bail!("{name} ended unexpectedly")
}

/// Signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Signals { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Run the tasks until a signal, or until one of them fails.
async fn until_signal(
    signals: &mut Signals,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let failed = tokio::select! {
        () = signals.next() => None,
        Some(ended) = tasks.join_next() => Some(ended),
    };
    notify::notify("STOPPING=1");
    tracing::info!(
        "stopping; protection stays in force in the kernel, `ws-guard unload` removes it"
    );
    match failed {
        None => Ok(()),
        Some(ended) => ended.context("a task of the daemon failed").and_then(|result| result),
    }
}

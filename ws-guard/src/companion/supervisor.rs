//! Daemon's side: start the server's process, update it, restart it when it dies.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ipnet::IpNet;
use prometheus::{
    IntCounter, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use ws_guard_server::{access_log, metrics::Exemplar, register::Register, tls::Tls};

use super::{
    channel::{self, Handed},
    families::{Family, Reading},
    link::{AskError, Link},
    message::{Following, Start, TakenPings},
    process::path,
};

/// Interval of checks for changed settings.
const FOLLOW: Duration = Duration::from_millis(500);
/// Interval of reports about pings inside TLS to the kernel.
/// Until a report, only the server limits them.
const REPORT: Duration = Duration::from_millis(250);
/// Time limit for the start of the process, up to its first connection.
/// Reading keys takes no time, but a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pauses before a dead server is restarted; each is twice the previous one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Uptime after which the next death counts as the first.
const STABLE: Duration = Duration::from_secs(60);
/// Additional time for a server to end, beyond its configured times.
const END: Duration = Duration::from_secs(15);

/// Interface of the daemon for the server's process.
pub trait Daemon: Send + Sync {
    /// Return the configuration for a start.
    fn start(&self) -> anyhow::Result<Start>;
    /// Return the settings in force.
    fn following(&self) -> anyhow::Result<Following>;
    /// Charge pings that the server saw inside TLS. Blocks.
    fn charge(&self, pings: Vec<(IpNet, u32)>) -> anyhow::Result<()>;
    /// Report that the server died, or runs again.
    fn tell(&self, message: String);
}

/// State of the server, for other parts of the daemon.
#[derive(Debug)]
pub struct Shared {
    link: Mutex<Option<Arc<Link>>>,
    /// Last reading, for scrapes while the server is gone.
    last: Mutex<Reading>,
    /// Set when the server is told to end, so that it is not restarted.
    ending: AtomicBool,
}

impl Shared {
    /// Return the link to the running process.
    ///
    /// # Errors
    /// While none runs.
    pub fn link(&self) -> anyhow::Result<Arc<Link>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        link.context("it died, and is started again")
    }

    fn set(&self, link: Option<Arc<Link>>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Check whether the server takes new clients; the error says why not. Blocks.
    pub fn ready(&self) -> Result<(), String> {
        let link = self.link().map_err(|error| format!("the companion server: {error}"))?;
        match link.ask("GET", path::READY, &()) {
            Err(AskError::Refused(why)) => Err(why),
            answer => answer.map_err(|error| error.to_string()),
        }
    }

    async fn ask<T, B>(
        &self,
        method: &'static str,
        path: &'static str,
        body: B,
    ) -> anyhow::Result<T>
    where
        T: DeserializeOwned + Send + 'static,
        B: Serialize + Send + 'static,
    {
        let link = self.link()?;
        Ok(spawn_blocking(move || link.ask(method, path, &body)).await??)
    }

    fn read_families(&self) -> Vec<Family> {
        let read = self.link().ok().and_then(|link| link.ask("GET", path::FAMILIES, &()).ok());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = read {
            *last = read;
        }
        last.families.clone()
    }

    /// Return the connections that were exemplars in the last scrape.
    pub fn exemplars(&self) -> Vec<Exemplar> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).exemplars.clone()
    }
}

/// Collector of the server's metrics in the daemon's registry.
struct Relayed {
    shared: Arc<Shared>,
    desc: Desc,
}

impl Collector for Relayed {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.shared.read_families().into_iter().filter_map(Family::received).collect()
    }
}

/// Register the count of restarts of the server's process.
pub(crate) fn restarts(registry: &Registry) -> prometheus::Result<IntCounter> {
    Register::new(registry).counter(
        "wsguard_server_restarts_total",
        "Starts of the companion server's process after it died.",
    )
}

/// Configuration of the daemon, as far as the server's process needs it.
#[derive(Clone)]
struct Plan {
    tls: Option<Arc<Tls>>,
    access_log: PathBuf,
    shutdown_delay: Duration,
    drain_timeout: Duration,
    daemon: Arc<dyn Daemon>,
}

/// The server's process and its supervision.
pub struct Companion {
    shared: Arc<Shared>,
    plan: Plan,
    restarts: IntCounter,
}

impl Companion {
    /// Start the process; it listens on return, and derives `config` from its flags.
    pub async fn start(
        config: &ws_guard_server::Config,
        access_log: PathBuf,
        daemon: Arc<dyn Daemon>,
        registry: &Registry,
    ) -> anyhow::Result<(Companion, Child)> {
        let plan = Plan {
            tls: config.tls.clone(),
            access_log,
            shutdown_delay: config.shutdown_delay,
            drain_timeout: config.shutdown_spread + config.drain_timeout,
            daemon,
        };
        let shared = Arc::new(Shared {
            link: Mutex::default(),
            last: Mutex::default(),
            ending: AtomicBool::new(false),
        });
        let restarts = restarts(registry)?;
        let (child, link) = plan.spawn().await?;
        shared.set(Some(link));
        let desc = Desc::new(
            "wsguard_server_relayed".into(),
            "Metrics of the companion server's process.".into(),
            Vec::new(),
            std::collections::HashMap::new(),
        )?;
        registry.register(Box::new(Relayed { shared: shared.clone(), desc }))?;
        Ok((Companion { shared, plan, restarts }, child))
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Supervise the process, forever.
    /// Restart it when it dies, send it changes, and report its pings to the kernel.
    pub fn follow(&self, child: Child) -> impl Future<Output = ()> + use<> {
        let (shared, plan, restarts) =
            (self.shared.clone(), self.plan.clone(), self.restarts.clone());
        async move {
            tokio::join!(
                revive(&shared, &plan, &restarts, child),
                follow(&shared, &plan),
                report(&shared, &plan),
                certificate(&shared, &plan),
                log(&shared, &plan),
            );
        }
    }

    /// Report not ready, and serve on for a while: clients can be sent elsewhere.
    pub async fn leave(&self) {
        let delay = self.plan.shutdown_delay;
        if let Err(error) = self.shared.ask::<(), ()>("POST", path::LEAVE, ()).await {
            tracing::warn!("the companion server is not told to leave: {error:#}");
        }
        sleep(delay).await;
    }

    /// Close all connections, and wait for that. The process still answers requests.
    pub async fn stop(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        let Ok(link) = self.shared.link() else { return };
        let patience = self.plan.drain_timeout + END;
        let stopped =
            spawn_blocking(move || link.ask_within::<()>(patience, "POST", path::STOP, &()));
        match stopped.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the companion server did not end in order: {error}"),
            Err(error) => tracing::error!("stopping the companion server: {error}"),
        }
    }

    /// Close the link, which ends the process.
    pub fn end(&self) {
        self.shared.set(None);
    }
}

impl Plan {
    /// Start a process; it serves on return.
    async fn spawn(&self) -> anyhow::Result<(Child, Arc<Link>)> {
        let start = channel::started_with(&self.daemon.start()?)?;
        let (ours, theirs) = channel::pair()?;
        let mut command = again(theirs);
        let mut child = command.spawn().context("cannot start the companion server's process")?;
        // It contains the process's end of the socket pair.
        drop(command);
        let link = Arc::new(Link::new(ours));
        link.hand(&Handed::Start(start))
            .context("cannot tell the companion server how to start")?;
        let asked = link.clone();
        let answer = spawn_blocking(move || {
            asked.ask_within::<std::net::SocketAddr>(PATIENCE, "GET", path::ADDRESS, &())
        });
        tokio::select! {
            answer = answer => {
                if let Err(error) = answer? {
                    let status = timeout(END, child.wait()).await;
                    let status = status.ok().and_then(Result::ok).map(|s| format!(" ({s})"));
                    anyhow::bail!("the companion server did not start, see above{}: {error}", status.unwrap_or_default());
                }
            }
            status = child.wait() => {
                anyhow::bail!("the companion server did not start, see above ({})", status?);
            }
        }
        Ok((child, link))
    }
}

/// Return a command of this program, with its arguments and the socket as input.
fn again(socket: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    let mut words = std::env::args_os();
    command.arg0(words.next().unwrap_or_else(|| OsString::from("ws-guard")));
    // Own process group: signals of a terminal to the daemon's group are not meant for it.
    command.args(words).arg("--companion").stdin(Stdio::from(socket)).process_group(0);
    command.env_remove("NOTIFY_SOCKET").kill_on_drop(true);
    command
}

/// Restart the process whenever it dies, forever.
async fn revive(shared: &Shared, plan: &Plan, restarts: &IntCounter, mut child: Child) {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let ended = child.wait().await;
        shared.set(None);
        if shared.ending.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if began.elapsed() >= STABLE {
            pause = FIRST_PAUSE;
        }
        let how =
            ended.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string());
        plan.daemon
            .tell(format!("the companion server died ({how}), and is started again in {pause:?}"));
        child = loop {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match plan.spawn().await {
                Ok((child, link)) => {
                    shared.set(Some(link));
                    break child;
                }
                Err(error) => plan.daemon.tell(format!("{error:#}; next attempt in {pause:?}")),
            }
        };
        restarts.inc();
        plan.daemon.tell("the companion server serves again".into());
    }
}

/// Send changed settings, and all of them after each start.
async fn follow(shared: &Shared, plan: &Plan) {
    let (mut last, mut failed): (Option<(usize, Following)>, _) = (None, None);
    loop {
        sleep(FOLLOW).await;
        let Ok(link) = shared.link() else { continue };
        let process = Arc::as_ptr(&link) as usize;
        let told = async {
            let following = plan.daemon.following()?;
            if last.as_ref().is_some_and(|(of, told)| (*of, told) == (process, &following)) {
                return Ok(());
            }
            shared.ask::<(), _>("PUT", path::FOLLOW, following.clone()).await?;
            last = Some((process, following));
            anyhow::Ok(())
        };
        note(&mut failed, told.await, "the companion server does not follow the policy");
    }
}

/// Charge pings that the server saw inside TLS to the kernel's sources, in batches.
async fn report(shared: &Shared, plan: &Plan) {
    if plan.tls.is_none() {
        return;
    }
    let mut failed = None;
    loop {
        sleep(REPORT).await;
        if shared.link().is_err() {
            continue;
        }
        let charged = async {
            let TakenPings(pings) = shared.ask("POST", path::PINGS, ()).await?;
            let daemon = plan.daemon.clone();
            // Each source takes a few system calls.
            spawn_blocking(move || daemon.charge(pings)).await?
        };
        note(&mut failed, charged.await, "pings inside TLS are not reported");
    }
}

/// Log an error once, and its end.
fn note(failed: &mut Option<String>, done: anyhow::Result<()>, what: &str) {
    let error = done.err().map(|error| format!("{error:#}"));
    if error != *failed {
        match &error {
            Some(error) => tracing::warn!("{what}: {error}"),
            None => tracing::info!("over: {what}"),
        }
    }
    *failed = error;
}

/// Hand over certificate and key when a file changes.
/// The server's process may not read them.
async fn certificate(shared: &Shared, plan: &Plan) {
    let Some(tls) = &plan.tls else { return };
    let mut watch = tls.watch();
    loop {
        watch.changed().await;
        let handed = tls
            .open()
            .map_err(anyhow::Error::from)
            .and_then(|files| Ok(shared.link()?.hand(&Handed::Certificate(files))?));
        if let Err(error) = handed {
            tracing::warn!("the old certificate stays in use: {error:#}");
        }
    }
}

/// Reopen the access log on each SIGHUP, as log rotation expects.
async fn log(shared: &Shared, plan: &Plan) {
    let path = &plan.access_log;
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        if path == std::path::Path::new("-") {
            continue;
        }
        let name = path.display();
        let handed = access_log::open(path).map_err(anyhow::Error::from);
        match handed.and_then(|file| Ok(shared.link()?.hand(&Handed::Log(file))?)) {
            Ok(()) => tracing::info!("opened the access log {name} again"),
            Err(error) => tracing::warn!(
                "cannot open the access log {name} again, the old file stays in use: {error:#}"
            ),
        }
    }
}

//! `ws-guard-chaos clients`: clients that publish, subscribe and come back, and log all of it.
//!
//! SIGUSR2 ends the publishing; once everything has arrived, `quiet` is printed. SIGTERM ends all.

mod backoff;
mod client;
pub mod connect;
mod flooder;
mod outbox;
mod track;

use std::{cell::Cell, path::PathBuf, rc::Rc, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::LocalSet,
    time::{Instant, interval, sleep, sleep_until},
};

use self::{client::Client, connect::Target};
use crate::log::{Event, Log};

/// Nothing has arrived for so long: nothing is on its way any more.
const QUIET: Duration = Duration::from_secs(3);
/// For all that was published to arrive.
const SETTLE: Duration = Duration::from_secs(90);
const FOREVER: Duration = Duration::from_secs(1 << 32);
/// Clients that begin in a second: the beginning is not what is measured.
const BEGIN: u32 = 200;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(long, value_name = "N", default_value_t = 100)]
    clients: usize,
    /// Topics, of which each client follows one
    #[arg(long, value_name = "N", default_value_t = 20)]
    topics: usize,
    /// Publications a second, of all clients together
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    rate: f64,
    /// Between two heartbeats of a client
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,
    /// One more client, which floods with pings
    #[arg(long)]
    flooder: bool,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long to publish, and then end once everything has arrived [default: until the signals]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// Log of all that happens to the clients
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
}

/// What clients have in common.
pub struct Shared {
    log: Log,
    topics: usize,
    /// Between two publications of a client.
    every: Duration,
    heartbeat: Duration,
    publishing: Cell<bool>,
    /// Clients that follow their topic at present.
    following: Cell<usize>,
    /// Publications that are not acknowledged.
    waiting: Cell<usize>,
    /// When the last message was delivered.
    heard: Cell<Instant>,
}

impl Shared {
    fn topic(&self, number: usize) -> String {
        format!("chaos:{}", number % self.topics)
    }

    fn is_quiet(&self, clients: usize) -> bool {
        let rest = self.heard.get().elapsed() >= QUIET;
        self.following.get() == clients && self.waiting.get() == 0 && rest
    }
}

pub async fn run(args: Args) -> Result<()> {
    ensure!(args.clients > 0 && args.topics > 0, "no clients, or no topics: give at least one");
    ensure!(args.rate > 0.0 && args.rate.is_finite(), "--rate {} is not above 0", args.rate);
    fastrand::seed(args.seed);
    LocalSet::new().run_until(lead(args)).await
}

async fn lead(args: Args) -> Result<()> {
    let shared = Rc::new(Shared {
        log: Log::create(&args.log)?,
        topics: args.topics,
        every: Duration::from_secs_f64(args.clients as f64 / args.rate),
        heartbeat: args.heartbeat,
        publishing: Cell::new(false),
        following: Cell::new(0),
        waiting: Cell::new(0),
        heard: Cell::new(Instant::now()),
    });
    let mut stop = signal(SignalKind::user_defined2()).context("watching for SIGUSR2")?;
    let mut end = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    for number in 0..args.clients {
        let (who, topic) = (format!("client-{number}"), shared.topic(number));
        let client = Client::new(shared.clone(), who, topic, args.target.connector(number)?);
        spawn(client.run());
        sleep(Duration::from_secs(1) / BEGIN).await;
    }
    while shared.following.get() < args.clients {
        tokio::select! {
            () = sleep(Duration::from_millis(20)) => {}
            _ = end.recv() => return shared.log.flush(),
        }
    }
    shared.publishing.set(true);
    if args.flooder {
        spawn(flooder::run(shared.clone(), args.target.connector(args.clients)?));
    }
    println!("ready");
    let (mut look, mut told) = (interval(Duration::from_millis(200)), false);
    let (start, time) = (Instant::now(), args.time.unwrap_or(FOREVER));
    loop {
        tokio::select! {
            _ = stop.recv() => {
                shared.publishing.set(false);
                shared.heard.set(Instant::now());
            }
            // What has not arrived by then is missing.
            () = sleep_until(start + time + SETTLE) => break,
            _ = look.tick() => {
                if shared.publishing.get() && start.elapsed() >= time {
                    shared.publishing.set(false);
                    shared.heard.set(Instant::now());
                }
                if !shared.publishing.get() && !told && shared.is_quiet(args.clients) {
                    told = true;
                    println!("quiet");
                    if args.time.is_some() {
                        break;
                    }
                }
            }
            _ = end.recv() => break,
        }
    }
    let (following, waiting) = (shared.following.get(), shared.waiting.get());
    println!(
        "at the end, {following} of {} clients follow, {waiting} publications wait",
        args.clients
    );
    shared.log.write("clients", Event::Done)?;
    shared.log.flush()
}

fn spawn(task: impl Future<Output = Result<()>> + 'static) {
    tokio::task::spawn_local(async move {
        if let Err(error) = task.await {
            eprintln!("error: {error:#}");
            std::process::exit(1);
        }
    });
}

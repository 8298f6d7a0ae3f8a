//! One round: a server, an honest client, a flooder, and what becomes of them.
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow};
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    flood::{self, Bounds, Flooded},
    honest::{self, Served},
    netns::{Family, Pair, PairOptions},
    servers::{Library, Server, Totals},
    usage::Usage,
};

use super::{
    guard::{self, SourceFigures},
    interrupt,
};
use crate::guard::Guard;

const PORT: u16 = 9001;
/// How long the honest client is alone at first.
const CALM: Duration = Duration::from_secs(1);
/// How long the guarded server may take to read what is under way when the flood ends.
const DRAIN: Duration = Duration::from_secs(3);
/// Pings that a flooder sends at most; it gets nowhere near in the time it has.
const MAX_PINGS: u64 = 50_000_000;
/// Room between the growth at which the flood is stopped and the hard limit of the process.
const HEADROOM: u64 = 1_500_000_000;
/// How long `--interactive` lasts at most.
const INTERACTIVE: Duration = Duration::from_secs(3600);

/// What a round is to be like.
#[derive(Clone, Copy)]
pub struct Plan {
    pub library: Library,
    pub time: Duration,
    /// Bytes of the server's growth at which the flood is stopped.
    pub max_growth: u64,
    pub guarded: bool,
}

/// What came of a round.
pub struct Figures {
    /// Most anonymous memory the server had, less what it had before the flood, in bytes.
    pub growth: u64,
    /// CPU time of the server since then.
    pub cpu: Duration,
    /// The growth was stopped here.
    pub stopped_at: Option<Duration>,
    pub served: Served,
    pub flooded: Flooded,
    /// What the server counted; `None` when it did not live to tell.
    pub totals: Option<Totals>,
    pub guard: Option<SourceFigures>,
    pub time_to_throttle: Option<Duration>,
}

/// Number of each client's address.
const FLOODER: u8 = 0;
const HONEST: u8 = 1;

pub fn run(plan: Plan) -> Result<Figures> {
    let seconds = plan.time.as_secs();
    let what = if plan.guarded { "with ws-guard" } else { "without ws-guard" };
    eprintln!("  {seconds} s of flood {what} ...");
    let pair = Pair::new(PairOptions::default())?;
    let guard = plan.guarded.then(|| guard::start(&pair.server, PORT)).transpose()?;
    if let Some(guard) = &guard {
        eprintln!("  attached: {}", guard.modes()?);
    }
    let limit = plan.max_growth + HEADROOM;
    let server = Server::start(&pair.server, plan.library, PORT, Some(limit))?;
    let figures = attack(plan, &pair, &server, guard.as_ref())?;
    eprintln!("  the server grew by {:.1} MB", figures.growth as f64 / 1e6);
    let totals = server.stop().ok();
    if let Some(guard) = guard {
        guard.unload()?;
    }
    Ok(Figures { totals, ..figures })
}

fn connect(pair: &Pair, server: SocketAddr, client: u8, reads: bool) -> Result<Client> {
    let options =
        ConnectOptions { source: Some(Family::V4.client(client)), reads, receive_buffer: None };
    Client::connect(&pair.client, server, options)
}

fn attack(plan: Plan, pair: &Pair, server: &Server, guard: Option<&Guard>) -> Result<Figures> {
    let at = server.at(Family::V4.server());
    let mut honest = connect(pair, at, HONEST, true)?;
    let mut flooder = connect(pair, at, FLOODER, false)?;
    let before = Usage::of(server.pid())?;
    let watch = Watch::new(plan, before, server.pid());
    let bounds = Bounds { pings: MAX_PINGS, time: plan.time, pause: Duration::ZERO };
    let began = SystemTime::now() + CALM;
    let (served, flooded) = thread::scope(|scope| {
        scope.spawn(|| watch.run());
        let served = scope.spawn(|| honest::run(&mut honest, plan.time + CALM, || !watch.died()));
        thread::sleep(CALM);
        let flooded = flood::flood(&mut flooder, bounds, || watch.go_on());
        if guard.is_some() {
            flooder.drain(DRAIN);
        }
        let served = served.join();
        watch.done.store(true, Ordering::Relaxed);
        (served, flooded)
    });
    let served = served.map_err(|_| anyhow!("the honest client panicked"))??;
    let after = Usage::of(server.pid()).unwrap_or_default();
    let flooder = Family::V4.client(FLOODER);
    let guard = guard.map(|guard| guard::source(guard, flooder)).transpose()?.flatten();
    let since = guard.and_then(|guard| guard.since);
    Ok(Figures {
        growth: watch.growth(),
        cpu: after.cpu.saturating_sub(before.cpu),
        stopped_at: watch.stopped_at(),
        served,
        flooded: flooded?,
        totals: None,
        guard,
        // The guard's clock has a resolution of milliseconds, so it may seem to be early.
        time_to_throttle: since.map(|since| since.duration_since(began).unwrap_or_default()),
    })
}

/// Looks at the server's memory while a round lasts.
struct Watch {
    pid: u32,
    before: u64,
    max_growth: u64,
    began: Instant,
    peak: AtomicU64,
    /// Milliseconds after the beginning of the flood; 0 for not yet.
    stopped: AtomicU64,
    died: AtomicBool,
    done: AtomicBool,
}

impl Watch {
    fn new(plan: Plan, before: Usage, pid: u32) -> Watch {
        Watch {
            pid,
            before: before.anonymous,
            max_growth: plan.max_growth,
            began: Instant::now() + CALM,
            peak: AtomicU64::new(before.anonymous),
            stopped: AtomicU64::new(0),
            died: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn run(&self) {
        while !self.done.load(Ordering::Relaxed) {
            match Usage::of(self.pid) {
                Ok(usage) => {
                    self.peak.fetch_max(usage.anonymous, Ordering::Relaxed);
                }
                Err(_) => self.died.store(true, Ordering::Relaxed),
            }
            if self.growth() > self.max_growth && self.stopped.load(Ordering::Relaxed) == 0 {
                let after = self.began.elapsed().as_millis().max(1) as u64;
                self.stopped.store(after, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn growth(&self) -> u64 {
        self.peak.load(Ordering::Relaxed).saturating_sub(self.before)
    }

    fn died(&self) -> bool {
        self.died.load(Ordering::Relaxed) || interrupt::stopped()
    }

    fn go_on(&self) -> bool {
        !self.died() && self.stopped.load(Ordering::Relaxed) == 0
    }

    fn stopped_at(&self) -> Option<Duration> {
        let after = self.stopped.load(Ordering::Relaxed);
        (after > 0).then(|| Duration::from_millis(after))
    }
}

/// Leave everything running until Enter or Ctrl-C.
pub fn interactive(library: Library) -> Result<()> {
    let pair = Pair::new(PairOptions::default())?;
    let guard = guard::start(&pair.server, PORT)?;
    let server = Server::start(&pair.server, library, PORT, None)?;
    let at = server.at(Family::V4.server());
    let mut honest = connect(&pair, at, HONEST, true)?;
    let mut flooder = connect(&pair, at, FLOODER, false)?;
    invite(&guard, &pair);
    interrupt::watch_enter();
    // About 1,000 pings a second: enough to see, and the machine stays usable.
    let bounds = Bounds { pings: MAX_PINGS, time: INTERACTIVE, pause: Duration::from_millis(500) };
    let began = Instant::now();
    let go_on = || !interrupt::stopped() && began.elapsed() < INTERACTIVE;
    thread::scope(|scope| {
        scope.spawn(|| honest::run(&mut honest, INTERACTIVE, go_on));
        flood::flood(&mut flooder, bounds, go_on)?;
        while go_on() {
            thread::sleep(Duration::from_millis(100));
        }
        anyhow::Ok(())
    })?;
    server.stop().context("stopping the server")?;
    guard.unload()
}

fn invite(guard: &Guard, pair: &Pair) {
    let cli = guard.shown();
    println!(
        "\n{} floods, {} is honest. Try, in another terminal:\n",
        Family::V4.client(FLOODER),
        Family::V4.client(HONEST)
    );
    println!("  alias wsg='{cli}'");
    for words in [
        "status",
        "throttled",
        "sources --watch",
        "flows -o wide",
        "events",
        "policy get",
        "policy set --max-ping-rate 100000",
        "allow 10.77.0.1/32",
    ] {
        println!("  wsg {words}");
    }
    println!("  ip netns exec {} ss -tinm", pair.server.name());
    println!("\nEnter or Ctrl-C ends it.");
}

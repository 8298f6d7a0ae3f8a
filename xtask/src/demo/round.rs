//! One round: a server, an honest client, a flooder, and the result.
use std::{
    net::SocketAddr,
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
};

use super::guard::{self, SourceFigures};
use crate::{guard::Guard, interrupt, watch::Watch};

const PORT: u16 = 9001;
/// Time that the honest client is alone at first.
const CALM: Duration = Duration::from_secs(1);
/// Interval of the honest client's messages, enough for a 99th percentile.
const MESSAGE_EVERY: Duration = Duration::from_millis(10);
/// Time limit for the guarded server to read bytes in flight after the flood.
/// It reads a part of those of a connection that is held back.
const DRAIN: Duration = Duration::from_secs(1);
/// Maximum number of a flooder's pings, far above those that it sends in its time.
const MAX_PINGS: u64 = 50_000_000;
/// Margin between the growth that stops the flood and the process's hard limit.
const HEADROOM: u64 = 1_500_000_000;
/// Maximum duration of `--interactive`.
const INTERACTIVE: Duration = Duration::from_secs(3600);

/// Traffic of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The honest client is alone.
    Calm,
    Flood,
    Guarded,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Calm => "without a flood",
            Kind::Flood => "of flood without ws-guard",
            Kind::Guarded => "of flood with ws-guard",
        }
    }
}

/// Parameters of a round.
#[derive(Clone, Copy)]
pub struct Plan {
    pub library: Library,
    pub time: Duration,
    /// Growth of the server in bytes at which the flood is stopped.
    pub max_growth: u64,
    pub kind: Kind,
}

/// Results of a round.
pub struct Figures {
    /// Peak anonymous memory of the server, less that before the flood, in bytes.
    pub growth: u64,
    /// CPU time of the server for each second since then.
    pub cpu: f64,
    /// Time at which the growth was stopped.
    pub stopped_at: Option<Duration>,
    pub served: Served,
    pub flooded: Flooded,
    /// Pings of the flooder that the server's TCP took whole.
    pub taken: u64,
    /// Counts of the server; `None` when it did not survive.
    pub totals: Option<Totals>,
    pub guard: Option<SourceFigures>,
    pub time_to_throttle: Option<Duration>,
}

/// Number of each client's address.
const FLOODER: u8 = 0;
const HONEST: u8 = 1;

pub fn run(plan: Plan) -> Result<Figures> {
    eprintln!("  {} s {} ...", plan.time.as_secs(), plan.kind.name());
    let pair = Pair::new(PairOptions::default())?;
    let guarded = plan.kind == Kind::Guarded;
    let guard = guarded.then(|| guard::start(&pair.server, PORT)).transpose()?;
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
    let watch = Watch::new(server.pid(), plan.max_growth, CALM)?;
    let go_on = || !watch.died() && !interrupt::stopped();
    let began = SystemTime::now() + CALM;
    let (served, flooded) = thread::scope(|scope| {
        scope.spawn(|| watch.run());
        let honest = &mut honest;
        let served =
            scope.spawn(|| honest::run_every(honest, MESSAGE_EVERY, plan.time + CALM, go_on));
        thread::sleep(CALM);
        let flooded = flood_or_wait(plan, &mut flooder, &watch);
        let served = served.join();
        watch.done();
        (served, flooded)
    });
    let served = served.map_err(|_| anyhow!("the honest client panicked"))??;
    let Flood { flooded, taken, cpu } = flooded?;
    let flooder = Family::V4.client(FLOODER);
    let guard = guard.map(|guard| guard::source(guard, flooder)).transpose()?.flatten();
    let since = guard.and_then(|guard| guard.since);
    Ok(Figures {
        growth: watch.growth(),
        cpu,
        stopped_at: watch.stopped_at(),
        served,
        flooded,
        taken,
        totals: None,
        guard,
        // The guard's clock has a resolution of milliseconds, so it may seem to be early.
        time_to_throttle: since.map(|since| since.duration_since(began).unwrap_or_default()),
    })
}

/// Results of the flooder's time.
struct Flood {
    flooded: Flooded,
    taken: u64,
    cpu: f64,
}

/// Flood, or wait for the same time in a calm round.
fn flood_or_wait(plan: Plan, flooder: &mut Client, watch: &Watch) -> Result<Flood> {
    let go_on = || watch.go_on() && !interrupt::stopped();
    let (before, start) = (watch.cpu(), Instant::now());
    let flooded = match plan.kind {
        Kind::Calm => {
            while start.elapsed() < plan.time && go_on() {
                thread::sleep(Duration::from_millis(50));
            }
            Flooded { time: start.elapsed(), ..Flooded::default() }
        }
        Kind::Flood | Kind::Guarded => {
            let bounds = Bounds { pings: MAX_PINGS, time: plan.time, pause: Duration::ZERO };
            flood::flood(flooder, bounds, go_on)?
        }
    };
    let cpu = watch.cpu().saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
    if plan.kind == Kind::Guarded {
        flooder.drain(DRAIN);
    }
    // A connection that was reset has nothing in flight any more.
    let under_way = flooder.unacknowledged().unwrap_or(0).div_ceil(flood::FRAME as u64);
    Ok(Flood { flooded, taken: flooded.pings.saturating_sub(under_way), cpu })
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

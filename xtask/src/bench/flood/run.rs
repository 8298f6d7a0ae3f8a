//! One run: a server, an honest client, a flooder, and the result.
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use serde::Serialize;
use ws_guard_testkit::{
    beyond::BeyondWindow,
    client::{Client, ConnectOptions},
    flooders::{Flooded, Flooders, Kind},
    honest::{self, Served},
    netns::{Family, INTERFACE, Pair, PairOptions},
    raw_tcp,
    statistics::lost,
};

use super::{
    Case,
    case::{Flood, Mode},
    serve::Serving,
};
use crate::{
    cpus,
    guard::{Guard, Profile},
    interrupt,
    watch::Watch,
};

const PORT: u16 = 9001;
/// Number of each client's address.
const FLOODER: u8 = 0;
const HONEST: u8 = 1;
/// Echoes of the honest client before the flood, so that none is the first ever.
const WARM_UP: u64 = 50;
/// Interval between two messages of the honest client.
const MESSAGE_EVERY: Duration = Duration::from_millis(10);
/// Growth at which the flood against a server is stopped, in bytes.
const MAX_GROWTH: u64 = 1_500_000_000;
/// Margin between that and the hard limit of the process.
const HEADROOM: u64 = 1_500_000_000;
/// Congestion control:
/// the same on every host, and permitted in any namespace. (BBR keeps to the pace long after the
/// release: `docs/pacing.md`.)
const CONGESTION_CONTROL: &str = "reno";
/// Time limit for the flooder's last messages, in the judged mode and in others.
const PATIENCE: Duration = Duration::from_secs(20);
const LESS_PATIENCE: Duration = Duration::from_secs(4);

/// Parameters of a run.
#[derive(Clone, Copy)]
pub struct Plan {
    pub case: Case,
    pub mode: Mode,
    pub time: Duration,
    /// CPU of the server.
    pub cpu: usize,
}

/// Results of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Latencies of the honest client, from sending to the echo, in milliseconds.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub messages: u64,
    pub lost: u64,
    /// CPU seconds of the server for each second of the flood.
    pub cpu: f64,
    /// Growth of the server in bytes.
    pub growth: u64,
    /// Seconds after which it had grown by too much.
    pub stopped_after: Option<f64>,
    pub flooded: Flooded,
    /// Segments that each side's TCP retransmitted, without those that the other had.
    pub again_client: u64,
    pub again_server: u64,
    /// Of these, those of both sides before the flooder was released.
    pub again_in_flood: u64,
    /// Segments that the guard dropped until then: beyond the held edge, and over the pace.
    pub beyond_edge: u64,
    pub policed: u64,
}

/// Client that floods.
enum Flooder {
    Absent,
    Kernel(Flooders),
    Raw(Box<BeyondWindow>),
}

impl Flooder {
    fn connect(plan: Plan, pair: &Pair, at: SocketAddr) -> Result<Flooder> {
        match plan.case.flood {
            _ if plan.mode == Mode::NoFlood => Ok(Flooder::Absent),
            Flood::Frames(kind) => {
                let clients = (0..plan.case.connections).map(|_| connect(plan, pair, at, FLOODER));
                Ok(Flooder::Kernel(Flooders::new(kind, clients.collect::<Result<_>>()?)?))
            }
            Flood::BeyondWindow => {
                let client = SocketAddr::new(raw_tcp::address(Family::V4, FLOODER), 40_000);
                let raw = BeyondWindow::connect(pair, client, at, Kind::Pings)?;
                Ok(Flooder::Raw(Box::new(raw)))
            }
        }
    }

    fn run(&mut self, time: Duration, go_on: impl Fn() -> bool) -> Result<Flooded> {
        match self {
            Flooder::Absent => {
                let end = Instant::now() + time;
                while Instant::now() < end && go_on() {
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(Flooded::default())
            }
            Flooder::Kernel(flooders) => flooders.run(time, go_on),
            Flooder::Raw(raw) => raw.run(time, go_on),
        }
    }

    fn finish(&mut self, patience: Duration) -> Result<Flooded> {
        match self {
            Flooder::Absent => Ok(Flooded::default()),
            Flooder::Kernel(flooders) => flooders.finish(patience),
            Flooder::Raw(raw) => raw.finish(patience),
        }
    }

    fn source(&self) -> std::net::IpAddr {
        match self {
            Flooder::Raw(_) => raw_tcp::address(Family::V4, FLOODER),
            _ => Family::V4.client(FLOODER),
        }
    }
}

fn connect(plan: Plan, pair: &Pair, at: SocketAddr, client: u8) -> Result<Client> {
    let source = Some(Family::V4.client(client));
    let options = ConnectOptions { source, reads: client == HONEST, receive_buffer: None };
    if plan.case.server.is_tls() {
        Client::connect_tls(&pair.client, at, options)
    } else {
        Client::connect(&pair.client, at, options)
    }
}

pub fn run(plan: Plan) -> Result<Sample> {
    let pair = Pair::new(PairOptions::default())?;
    for side in [&pair.client, &pair.server] {
        side.sysctl("net/ipv4/tcp_congestion_control", CONGESTION_CONTROL)?;
    }
    let tls = if plan.case.server.is_tls() { "/tls" } else { "" };
    let guard = plan.mode.words(plan.case.flood).map(|words| {
        let words = format!("--interface {INTERFACE} --port {PORT}{tls} {words}");
        Guard::start(Profile::Dev, &pair.server, &words)
    });
    let guard = guard.transpose()?;
    let server = plan.case.server.start(&pair.server, PORT, MAX_GROWTH + HEADROOM, plan.cpu)?;
    let sample = attack(plan, &pair, &server, guard.as_ref())?;
    drop(server);
    guard.map(Guard::unload).transpose()?;
    Ok(sample)
}

fn attack(plan: Plan, pair: &Pair, server: &Serving, guard: Option<&Guard>) -> Result<Sample> {
    let at = SocketAddr::new(Family::V4.server(), PORT);
    let mut honest = connect(plan, pair, at, HONEST)?;
    honest::run_every(&mut honest, MESSAGE_EVERY, MESSAGE_EVERY * WARM_UP as u32, || true)?;
    let mut flooder = Flooder::connect(plan, pair, at)?;
    let again = || anyhow::Ok((lost(&pair.client)?, lost(&pair.server)?));
    let before = again()?;
    let watch = Watch::new(server.pid(), MAX_GROWTH, Duration::ZERO)?;
    let go_on = || watch.go_on() && !interrupt::stopped();
    let (served, flooded) = thread::scope(|scope| {
        scope.spawn(|| watch.run());
        let flooding = scope.spawn(|| {
            // It shares a CPU with the honest client, whose times must not include the flooder's
            // work.
            cpus::set_priority(cpus::SECOND);
            let start = Instant::now();
            let flooded = flooder.run(plan.time, go_on);
            flooded
                .map(|flooded| (flooded, watch.cpu().as_secs_f64() / start.elapsed().as_secs_f64()))
        });
        let served = honest::run_every(&mut honest, MESSAGE_EVERY, plan.time, go_on);
        let flooded = flooding.join();
        watch.done();
        (served, flooded)
    });
    let (served, (flooded, cpu)) =
        (served?, flooded.map_err(|_| anyhow!("the flooder panicked"))??);
    let in_flood = again()?;
    let [beyond_edge, policed] = dropped(guard)?;
    if let Some(guard) = guard {
        // Its remaining bytes would take minutes at the pace that it is held to. Its pings stay
        // defused: some servers end the connection for too many.
        match plan.mode {
            Mode::Defuse => guard.tell(&["policy", "set", "--pace", "off"])?,
            _ => guard.tell(&["allow", &flooder.source().to_string()])?,
        };
    }
    let judged = matches!(plan.mode, Mode::Defuse | Mode::DefuseUnpaced);
    interrupt::check()?;
    let ended = flooder.finish(if judged { PATIENCE } else { LESS_PATIENCE })?;
    let after = again()?;
    let flooded = Flooded { bytes: flooded.bytes, frames: flooded.frames, ..ended };
    Ok(Sample {
        again_client: after.0 - before.0,
        again_server: after.1 - before.1,
        again_in_flood: in_flood.0 + in_flood.1 - before.0 - before.1,
        beyond_edge,
        policed,
        ..sample(&watch, &served, flooded, cpu)
    })
}

fn sample(watch: &Watch, served: &Served, flooded: Flooded, cpu: f64) -> Sample {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Sample {
        p50_ms: ms(served.p50),
        p99_ms: ms(served.p99),
        messages: served.messages,
        lost: served.lost,
        cpu,
        growth: watch.growth(),
        stopped_after: watch.stopped_at().map(|after| after.as_secs_f64()),
        flooded,
        again_client: 0,
        again_server: 0,
        again_in_flood: 0,
        beyond_edge: 0,
        policed: 0,
    }
}

/// Return the segments that the guard dropped because of a pace, by reason.
fn dropped(guard: Option<&Guard>) -> Result<[u64; 2]> {
    let Some(guard) = guard else {
        return Ok([0; 2]);
    };
    let status = guard.ask("status")?;
    Ok(["beyond_edge", "policed"].map(|reason| status["drops"][reason].as_u64().unwrap_or(0)))
}

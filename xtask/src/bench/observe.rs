//! `cargo xtask bench observe`: cost of observing the guard, by its entries.
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use ws_guard_testkit::{
    filled,
    netns::{Family, INTERFACE, Pair, PairOptions},
    servers::{Library, Server},
    skip_reason, tools,
    usage::Usage,
    visitors::visit,
};

use super::median;
use crate::{
    guard::{Guard, Profile},
    step,
};

const PORT: u16 = 9001;
const METRICS: u16 = 9464;
/// Goals of a scrape and of a listing, in milliseconds.
const SCRAPE_MS: f64 = 50.0;
const LISTING_MS: f64 = 2_000.0;
/// Goal of the daemon at rest, in percent of a CPU.
const REST_PERCENT: f64 = 0.2;
const RESTING: u32 = 10_000;
/// Interval between scrapes: longer than an answer is cached.
const APART: Duration = Duration::from_millis(1_100);
const MIB: f64 = 1024.0 * 1024.0;

#[derive(clap::Args)]
pub struct Args {
    /// Numbers of sources
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10_000, 1_000_000])]
    sources: Vec<u32>,
    /// Open connections, but no more than there are sources
    #[arg(long, default_value_t = 200_000)]
    flows: u32,
    /// Scrapes of each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scrapes: u32,
    /// Seconds that the daemon is watched at rest
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    rest: u64,
    /// Clients that connect, ping and go, for events
    #[arg(long, default_value_t = 20_000)]
    visits: u32,
    /// Measure the unoptimized build: says nothing of times
    #[arg(long)]
    dev: bool,
}

#[derive(Serialize)]
struct Results {
    tables: Vec<Figures>,
    rest: Rest,
    events: Events,
}

#[derive(Serialize)]
struct Figures {
    sources: u32,
    flows: u32,
    scrape_median_ms: f64,
    scrape_slowest_ms: f64,
    /// Increase of the daemon's CPU time by 100 requests in one write, in milliseconds.
    pipelined_ms: f64,
    /// Anonymous memory of the daemon, in MiB:
    /// at the start, and the most after scrapes, and after listings.
    memory_before: f64,
    memory_scraped: f64,
    memory_listed: f64,
    /// Listing of all sources as JSON: time, size, and peak memory of the command.
    listing_ms: f64,
    listing_mib: f64,
    listing_memory: f64,
}

#[derive(Serialize)]
struct Rest {
    flows: u32,
    seconds: u64,
    percent: f64,
    percent_scraped: f64,
}

/// Events of a crowd that comes and goes, two for each client.
#[derive(Serialize)]
struct Events {
    visits: u64,
    per_second: f64,
    followed: u64,
    suppressed: u64,
    lost: u64,
}

struct Scene {
    guard: Guard,
    _server: Server,
    pair: Pair,
}

impl Scene {
    fn start(profile: Profile, sources: u32, flows: u32) -> Result<Scene> {
        let pair = Pair::new(PairOptions::default())?;
        let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
        let room = |entries: u32| (entries + entries / 8).max(32_768);
        let words = format!(
            "--interface {INTERFACE} --port {PORT} --metrics-listen 127.0.0.1:{METRICS} \
             --max-sources {} --max-flows {}",
            room(sources),
            room(flows)
        );
        let guard = Guard::start(profile, &pair.server, &words)?;
        filled::sources(guard.pin_dir(), 0..sources)?;
        filled::flows(guard.pin_dir(), PORT, 0..flows)?;
        Ok(Scene { guard, _server: server, pair })
    }

    fn connect(&self) -> Result<TcpStream> {
        let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), METRICS);
        let stream = self.pair.server.run(|| TcpStream::connect(at))??;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// Scrape once; return milliseconds.
    fn scrape(&self) -> Result<f64> {
        let began = Instant::now();
        let mut stream = self.connect()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text.contains("\nwsguard_up 1\n"), "the scrape failed: {text}");
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Request many scrapes in one write; return the daemon's CPU time.
    fn pipelined(&self) -> Result<f64> {
        const REQUESTS: usize = 100;
        let before = self.usage()?.cpu;
        let mut stream = self.connect()?;
        let one = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
        let last = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all((one.repeat(REQUESTS - 1) + last).as_bytes())?;
        let mut all = String::new();
        stream.read_to_string(&mut all)?;
        let answers = all.matches("HTTP/1.1 200").count();
        ensure!(answers == REQUESTS, "{answers} of {REQUESTS} were answered");
        Ok((self.usage()?.cpu - before).as_secs_f64() * 1e3)
    }

    fn usage(&self) -> Result<Usage> {
        Usage::of(self.guard.pid())
    }

    fn memory(&self) -> Result<f64> {
        Ok(self.usage()?.anonymous as f64 / MIB)
    }

    /// List all sources as JSON;
    /// return milliseconds, MiB, and the peak memory of command and daemon in MiB.
    fn list(&self) -> Result<[f64; 4]> {
        let mut command = self.guard.command();
        command.args(["sources", "-o", "json"]).stdout(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().context("starting ws-guard sources")?;
        let mut out = child.stdout.take().context("no output")?;
        let (mut bytes, mut most, mut daemon) = (0, 0, 0);
        let mut buffer = vec![0; 1 << 20];
        let mut looked = Instant::now();
        loop {
            let n = out.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            bytes += n;
            if looked.elapsed() > Duration::from_millis(20) {
                looked = Instant::now();
                most = most.max(Usage::of(child.id()).map_or(0, |usage| usage.anonymous));
                daemon = daemon.max(self.usage()?.anonymous);
            }
        }
        ensure!(child.wait()?.success(), "ws-guard sources failed");
        let took = began.elapsed().as_secs_f64() * 1e3;
        Ok([took, bytes as f64 / MIB, most as f64 / MIB, daemon as f64 / MIB])
    }
}

fn tables(profile: Profile, args: &Args, sources: u32) -> Result<Figures> {
    let flows = args.flows.min(sources);
    eprintln!("  {sources} sources, {flows} flows");
    let scene = Scene::start(profile, sources, flows)?;
    let memory_before = scene.memory()?;
    let (mut scrapes, mut memory_scraped) = (Vec::new(), 0.0_f64);
    for _ in 0..args.scrapes {
        scrapes.push(scene.scrape()?);
        memory_scraped = memory_scraped.max(scene.memory()?);
        thread::sleep(APART);
    }
    let pipelined_ms = scene.pipelined()?;
    let listings = (0..3).map(|_| scene.list()).collect::<Result<Vec<_>>>()?;
    let best = |i: usize| listings.iter().map(|figures| figures[i]).fold(f64::INFINITY, f64::min);
    let most = |i: usize| listings.iter().map(|figures| figures[i]).fold(0.0, f64::max);
    let figures = Figures {
        sources,
        flows,
        scrape_median_ms: median(scrapes.iter().copied()),
        scrape_slowest_ms: scrapes.iter().copied().fold(0.0, f64::max),
        pipelined_ms,
        memory_before,
        memory_scraped,
        memory_listed: most(3),
        listing_ms: best(0),
        listing_mib: best(1),
        listing_memory: most(2),
    };
    scene.guard.unload()?;
    Ok(figures)
}

fn rest(profile: Profile, args: &Args) -> Result<Rest> {
    eprintln!("  at rest with {RESTING} flows, twice {} s", args.rest);
    let scene = Scene::start(profile, RESTING, RESTING)?;
    // Work left over from the start is not rest.
    thread::sleep(Duration::from_secs(5));
    let watch = |scraping: bool| -> Result<f64> {
        let (before, began) = (scene.usage()?.cpu, Instant::now());
        while began.elapsed() < Duration::from_secs(args.rest) {
            if scraping {
                scene.scrape()?;
            }
            thread::sleep(Duration::from_secs(15.min(args.rest)));
        }
        Ok((scene.usage()?.cpu - before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
    };
    let (percent, percent_scraped) = (watch(false)?, watch(true)?);
    scene.guard.unload()?;
    Ok(Rest { flows: RESTING, seconds: args.rest, percent, percent_scraped })
}

/// Count the events that come through while clients come and go at full speed.
fn events(profile: Profile, args: &Args) -> Result<Events> {
    eprintln!("  events of {} visits", args.visits);
    let scene = Scene::start(profile, 1, 1)?;
    let mut follow = scene.guard.command();
    follow.args(["events", "-f", "-o", "json", "--kind", "flow_opened", "--kind", "flow_closed"]);
    let mut follower = follow.stdout(Stdio::piped()).spawn().context("following events")?;
    let lines = BufReader::new(follower.stdout.take().context("no output")?);
    let counting = thread::spawn(move || lines.lines().map_while(Result::ok).count() as u64);
    let began = Instant::now();
    let server = SocketAddr::new(Family::V4.server(), PORT);
    let client = |n: u32| IpAddr::V4(filled::client(n));
    let visits = visit(&scene.pair.client, server, 0..args.visits, client)?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(visits.failures.is_empty(), "{}", visits.failures[0]);
    thread::sleep(Duration::from_secs(2));
    let status = scene.guard.ask("status")?;
    let loss = |field: &str| status["events"][field].as_u64().unwrap_or(0);
    let (suppressed, lost) = (loss("suppressed"), loss("lost"));
    follower.kill()?;
    follower.wait()?;
    let Ok(followed) = counting.join() else { bail!("counting events failed") };
    scene.guard.unload()?;
    let per_second = followed as f64 / seconds;
    Ok(Events { visits: visits.answered, per_second, followed, suppressed, lost })
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    profile.build()?;
    step::run("building the echo server", tools::build_tungstenite_echo())?;
    let tables = args
        .sources
        .iter()
        .map(|sources| tables(profile, &args, *sources))
        .collect::<Result<_>>()?;
    let results = Results { tables, rest: rest(profile, &args)?, events: events(profile, &args)? };
    print(&results);
    super::write("observe", &results)
}

fn against(value: f64, goal: f64) -> &'static str {
    if value <= goal { "" } else { " SHORT" }
}

fn print(results: &Results) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "SOURCES",
        "FLOWS",
        "SCRAPE MS",
        "SLOWEST",
        "100 AT ONCE, CPU MS",
        "MIB BEFORE",
        "SCRAPED",
        "LISTED",
        "LISTING MS",
        "MIB OF JSON",
        "MIB OF COMMAND",
    ]);
    for row in &results.tables {
        table.add_row([
            row.sources.to_string(),
            row.flows.to_string(),
            format!("{:.1}", row.scrape_median_ms),
            format!("{:.1}{}", row.scrape_slowest_ms, against(row.scrape_slowest_ms, SCRAPE_MS)),
            format!("{:.1}", row.pipelined_ms),
            format!("{:.1}", row.memory_before),
            format!("{:.1}", row.memory_scraped),
            format!("{:.1}", row.memory_listed),
            format!("{:.0}{}", row.listing_ms, against(row.listing_ms, LISTING_MS)),
            format!("{:.1}", row.listing_mib),
            format!("{:.1}", row.listing_memory),
        ]);
    }
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{}", table.trim_fmt());
    let Results { rest, events, .. } = results;
    println!(
        "at rest with {} flows: {:.3} % of a CPU{}; scraped each 15 s: {:.3} %{}",
        rest.flows,
        rest.percent,
        against(rest.percent, REST_PERCENT),
        rest.percent_scraped,
        against(rest.percent_scraped, REST_PERCENT)
    );
    println!(
        "{} visits: {} events at {:.0} a second; {} suppressed, {} lost",
        events.visits, events.followed, events.per_second, events.suppressed, events.lost
    );
}

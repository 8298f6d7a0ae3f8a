//! `cargo xtask bench loss`:
//! cost of the guard for honest clients where the path loses or reorders packets, in front of the
//! guard or behind it.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    frame::{Frame, encode, opcode},
    honest,
    netns::{Family, INTERFACE},
    path::{Impairment, NEAR, Path},
    servers::{Library, Server},
    sink::Sink,
    skip_reason,
    statistics::retransmissions,
    tools,
};

use super::median;
use crate::{
    guard::{Guard, Profile},
    step,
};

const SINK: u16 = 9001;
const ECHO: u16 = 9002;
/// One-way delay of every packet.
pub(super) const DELAY: Duration = Duration::from_millis(20);
/// Additional delay of a late packet: others overtake it.
const LATENESS: Duration = Duration::from_millis(5);
/// Time limit of a transfer, after which it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Args {
    /// Rounds; each loses other packets, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Bytes of a transfer
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(10_000..=100_000_000))]
    bytes: u32,
    /// Seconds of small messages
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// Position of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Place {
    /// Nowhere.
    None,
    /// At the server: packets are lost before it.
    Server,
    /// At the path's beginning: packets are lost behind it.
    Path,
}

/// Traffic of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Traffic {
    /// An upload in frames of this length of payload.
    Upload(usize),
    /// A message each 50 ms, which is echoed.
    Messages,
}

const PLACES: [Place; 3] = [Place::None, Place::Server, Place::Path];
pub(super) const TRAFFIC: [Traffic; 3] =
    [Traffic::Upload(65_536), Traffic::Upload(500), Traffic::Messages];

/// Return the impairments of the path.
pub(super) fn impairments() -> [(&'static str, Impairment); 5] {
    let clean = Impairment { delay: DELAY, lateness: LATENESS, ..Impairment::default() };
    [
        ("nothing", clean),
        ("1 % lost", Impairment { lost: 10, ..clean }),
        ("5 % lost", Impairment { lost: 50, ..clean }),
        ("1 % late", Impairment { late: 10, ..clean }),
        ("5 % late", Impairment { late: 50, ..clean }),
    ]
}

/// Result of one run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Sample {
    /// Time of an upload until the server's TCP had acknowledged everything.
    /// `None` when it had not.
    pub(super) seconds: Option<f64>,
    /// Latency of messages, from sending to the echo, in milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// Messages without an echo.
    lost: u64,
    /// Segments that the client retransmitted.
    retransmitted: u64,
}

#[derive(Debug, Serialize)]
struct Figures {
    traffic: Traffic,
    path: &'static str,
    place: Place,
    samples: Vec<Sample>,
}

/// A path with servers at its end, and optionally a guard.
struct Setting {
    place: Place,
    guard: Option<Guard>,
    _sink: Sink,
    _echo: Server,
    path: Path,
}

impl Setting {
    fn new(place: Place) -> Result<Setting> {
        let path = Path::new(1)?;
        let sink = Sink::start(&path.pair.server, SINK)?;
        let echo = Server::start(&path.pair.server, Library::TokioTungstenite, ECHO, None)?;
        let guard = match place {
            Place::None => None,
            Place::Server => Some((&path.pair.server, INTERFACE)),
            Place::Path => Some((&path.middle, NEAR)),
        };
        let ports = format!("--port {SINK},{ECHO}");
        let guard = guard
            .map(|(namespace, name)| {
                Guard::start(Profile::Dev, namespace, &format!("--interface {name} {ports}"))
            })
            .transpose()?;
        Ok(Setting { place, guard, _sink: sink, _echo: echo, path })
    }

    fn connect(&self, port: u16) -> Result<Client> {
        let at = SocketAddr::new(Family::V4.server(), port);
        Client::connect(&self.path.pair.client, at, ConnectOptions::default())
    }

    fn run(&self, traffic: Traffic, impairment: Impairment, args: &Args) -> Result<Sample> {
        self.path.set(Impairment { delay: DELAY, ..Impairment::default() });
        let mut client = self.connect(if traffic == Traffic::Messages { ECHO } else { SINK })?;
        let before = retransmissions(&self.path.pair.client)?;
        self.path.set(impairment);
        let mut sample = match traffic {
            Traffic::Upload(size) => upload(&mut client, size, args.bytes as usize)?,
            Traffic::Messages => messages(&mut client, Duration::from_secs(args.seconds))?,
        };
        sample.retransmitted = retransmissions(&self.path.pair.client)? - before;
        client.reset()?;
        Ok(sample)
    }
}

/// Upload frames of `size` bytes of payload, together `bytes` long.
pub(super) fn upload(client: &mut Client, size: usize, bytes: usize) -> Result<Sample> {
    let frame = encode(&[Frame::new(opcode::BINARY, vec![b'x'; size])]);
    let data = frame.repeat(bytes.div_ceil(frame.len()));
    let start = Instant::now();
    let mut sent = 0;
    while sent < data.len() && start.elapsed() < PATIENCE {
        sent += client.write_some(&data[sent..], Duration::from_millis(200))?;
    }
    let done = client.drain(PATIENCE.saturating_sub(start.elapsed()));
    let seconds = (done && sent == data.len()).then(|| start.elapsed().as_secs_f64());
    Ok(Sample { seconds, ..Sample::default() })
}

pub(super) fn messages(client: &mut Client, time: Duration) -> Result<Sample> {
    let served = honest::run(client, time, || true)?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (p50, p99) = (ms(served.p50), ms(served.p99));
    Ok(Sample { p50, p99, lost: served.lost, ..Sample::default() })
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    step::run("building the echo server", tools::build_tungstenite_echo())?;
    Profile::Dev.build()?;
    let settings = PLACES.map(Setting::new);
    let settings = settings.into_iter().collect::<Result<Vec<_>>>()?;
    let mut results = Vec::new();
    for traffic in TRAFFIC {
        for (path, _) in impairments() {
            results.extend(PLACES.map(|place| Figures {
                traffic,
                path,
                place,
                samples: Vec::new(),
            }));
        }
    }
    for round in 1..=args.rounds {
        eprintln!("  round {round} of {}", args.rounds);
        for figures in &mut results {
            let setting = settings.iter().find(|setting| setting.place == figures.place);
            let setting = setting.context("each place has a setting")?;
            let found = impairments().into_iter().find(|(name, _)| *name == figures.path);
            let (_, impairment) = found.context("each path has a name")?;
            let impairment = Impairment { seed: round.into(), ..impairment };
            let sample = setting.run(figures.traffic, impairment, &args)?;
            eprintln!(
                "    {:?}, {}, {:?}: {sample:?}",
                figures.traffic, figures.path, figures.place
            );
            figures.samples.push(sample);
        }
    }
    for setting in settings {
        if let Some(guard) = setting.guard {
            eprintln!("  {:?}: dropped {}", setting.place, guard.ask("status")?["drops"]);
            guard.unload()?;
        }
    }
    println!("{}", render(&results, args.bytes));
    super::write("loss", &results)
}

fn render(results: &[Figures], bytes: u32) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let header =
        ["TRAFFIC", "PATH", "GUARD", "SECONDS", "KB/S", "P50 MS", "P99 MS", "SENT AGAIN", "FAILED"];
    table.set_header(header);
    for figures in results {
        let of = |field: fn(&Sample) -> f64| median(figures.samples.iter().map(field));
        let (mut seconds, mut rate, mut p50, mut p99) = Default::default();
        let traffic = match figures.traffic {
            Traffic::Upload(size) => {
                let took = of(|sample| sample.seconds.unwrap_or(PATIENCE.as_secs_f64()));
                (seconds, rate) =
                    (format!("{took:.2}"), format!("{:.0}", f64::from(bytes) / took / 1e3));
                format!("upload, frames of {size}")
            }
            Traffic::Messages => {
                (p50, p99) = (format!("{:.1}", of(|s| s.p50)), format!("{:.1}", of(|s| s.p99)));
                "messages, 20 a second".into()
            }
        };
        let place = match figures.place {
            Place::None => "none",
            Place::Server => "behind it",
            Place::Path => "before it",
        };
        let failed: u64 = figures
            .samples
            .iter()
            .map(|sample| match figures.traffic {
                Traffic::Upload(_) => u64::from(sample.seconds.is_none()),
                Traffic::Messages => sample.lost,
            })
            .sum();
        let again = format!("{:.0}", of(|sample| sample.retransmitted as f64));
        let failed = failed.to_string();
        table.add_row([
            &*traffic,
            figures.path,
            place,
            &seconds,
            &rate,
            &p50,
            &p99,
            &again,
            &failed,
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

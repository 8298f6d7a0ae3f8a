//! What each way to attach costs: echoes and uploads over a pair of interfaces, and both over a path that
//! loses packets.
use std::{
    net::SocketAddr,
    path::{Path as File, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::{time::clock_getcpuclockid, unistd::Pid};
use serde::Serialize;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::{Family, INTERFACE, Pair, PairOptions},
    path::{Impairment, Path},
    programs::Programs,
    servers::{Library, Server},
    sink::Sink,
};

use super::{
    super::{
        latency::EMPTY,
        loss::{self, Traffic},
    },
    PORT, SINK,
    line::{Line, Verdict},
};
use crate::guard::{Guard, Profile};

const MESSAGE: &str = "as long as a word or two in chat";
const WARM_UP: u32 = 200;
/// More pings than anybody sends here.
const UNLIMITED: u32 = 1_000_000;

/// What is in the way of a client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attached {
    Nothing,
    /// Sockets in a map, a verdict that passes everything.
    Pass,
    /// A verdict that follows frames.
    Follow,
    /// Native XDP that does nothing: at a pair of interfaces it ends offloads.
    EmptyXdp,
    /// The guard at XDP.
    Guard,
    /// [`Attached::Guard`] and [`Attached::Follow`].
    Both,
}

pub const ATTACHED: [Attached; 6] = [
    Attached::Nothing,
    Attached::Pass,
    Attached::Follow,
    Attached::EmptyXdp,
    Attached::Guard,
    Attached::Both,
];

impl Attached {
    pub fn name(self) -> &'static str {
        match self {
            Attached::Nothing => "nothing",
            Attached::Pass => "at the socket: pass",
            Attached::Follow => "at the socket: follow",
            Attached::EmptyXdp => "XDP that does nothing",
            Attached::Guard => "ws-guard at XDP",
            Attached::Both => "both",
        }
    }

    fn line(self, object: &File) -> Result<Option<Line>> {
        let verdict = match self {
            Attached::Nothing | Attached::EmptyXdp | Attached::Guard => return Ok(None),
            Attached::Pass => Verdict::Pass,
            Attached::Follow | Attached::Both => Verdict::Follow { limit: UNLIMITED },
        };
        // Without a parser: with one, uploads do not come to their end.
        Line::new(object, verdict, false).map(Some)
    }

    fn has_guard(self) -> bool {
        matches!(self, Attached::Guard | Attached::Both)
    }
}

/// Where the programs are.
pub struct Objects {
    pub socket: PathBuf,
    /// The other benchmarks' object.
    pub packets: PathBuf,
}

impl Objects {
    fn empty_xdp(&self, pair: &Pair) -> Result<Programs> {
        let mut programs = Programs::load(&self.packets, &[EMPTY], &[])?;
        pair.server.run(|| programs.attach_xdp(EMPTY, INTERFACE))??;
        Ok(programs)
    }
}

/// Servers, and what is attached. What is dropped first is first.
pub struct Setting {
    guard: Option<Guard>,
    _sink: Sink,
    server: Server,
    _line: Option<Line>,
    _empty: Option<Programs>,
    pair: Ends,
}

/// Where the servers are.
enum Ends {
    Pair(Pair),
    Path(Path),
}

impl Ends {
    fn pair(&self) -> &Pair {
        match self {
            Ends::Pair(pair) => pair,
            Ends::Path(path) => &path.pair,
        }
    }
}

/// One round's figures: microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Echoes {
    pub p50: f64,
    pub p99: f64,
    /// CPU time of an echo: the server's, and with it the client's. What the kernel does for a packet
    /// counts for whoever runs at the time.
    pub server_cpu: f64,
    pub cpu: f64,
}

/// One round's figures of an upload.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Upload {
    pub megabytes_per_second: f64,
    /// Microseconds of CPU time a frame, of client and server.
    pub cpu: f64,
}

impl Setting {
    pub fn over_pair(attached: Attached, objects: &Objects) -> Result<Setting> {
        Setting::new(attached, objects, Ends::Pair(Pair::new(PairOptions::default())?))
    }

    pub fn over_path(attached: Attached, objects: &Objects) -> Result<Setting> {
        Setting::new(attached, objects, Ends::Path(Path::new(1)?))
    }

    fn new(attached: Attached, objects: &Objects, ends: Ends) -> Result<Setting> {
        let pair = ends.pair();
        let line = attached.line(&objects.socket)?;
        let start = || -> Result<(Sink, Server)> {
            let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
            Ok((Sink::start(&pair.server, SINK)?, server))
        };
        let (sink, server) = match &line {
            Some(line) => line.inside(start)?,
            None => start()?,
        };
        let words = format!("--interface {INTERFACE} --port {PORT},{SINK}");
        let guard = attached.has_guard().then(|| Guard::start(Profile::Dev, &pair.server, &words));
        let guard = guard.transpose()?;
        let empty =
            (attached == Attached::EmptyXdp).then(|| objects.empty_xdp(pair)).transpose()?;
        Ok(Setting { guard, _sink: sink, server, _line: line, _empty: empty, pair: ends })
    }

    pub fn connect(&self, port: u16, reads: bool) -> Result<Client> {
        let at = SocketAddr::new(Family::V4.server(), port);
        let options = ConnectOptions { reads, ..ConnectOptions::default() };
        Client::connect(&self.pair.pair().client, at, options)
    }

    pub fn echoes(&self, client: &mut Client, count: u32) -> Result<Echoes> {
        let mut times = Histogram::<u64>::new(3).context("making a histogram")?;
        for _ in 0..WARM_UP {
            client.echo(MESSAGE)?;
        }
        let (this, server) = (std::process::id(), self.server.pid());
        let before = (cpu(this)?, cpu(server)?);
        for _ in 0..count {
            times.record(client.echo(MESSAGE)?.as_nanos() as u64)?;
        }
        let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(count);
        let server = cpu(server)? - before.1;
        let us = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Echoes {
            p50: us(0.5),
            p99: us(0.99),
            server_cpu: each(server),
            cpu: each(server + cpu(this)? - before.0),
        })
    }

    /// Frames of `size` bytes, together so many bytes, to a server in this very process.
    pub fn upload(&self, size: usize, bytes: usize) -> Result<Upload> {
        let mut client = self.connect(SINK, true)?;
        let before = cpu(std::process::id())?;
        let sample = loss::upload(&mut client, size, bytes)?;
        let used = cpu(std::process::id())? - before;
        let seconds = sample.seconds.context("the upload did not come to its end")?;
        client.reset()?;
        let frames = bytes.div_ceil(size) as f64;
        Ok(Upload {
            megabytes_per_second: bytes as f64 / seconds / 1e6,
            cpu: used.as_secs_f64() * 1e6 / frames,
        })
    }

    /// Over a path that does this to packets.
    pub fn impaired(
        &self,
        traffic: Traffic,
        impairment: Impairment,
        bytes: usize,
        time: Duration,
    ) -> Result<loss::Sample> {
        let Ends::Path(path) = &self.pair else { anyhow::bail!("there is no path") };
        path.set(Impairment { delay: loss::DELAY, ..Impairment::default() });
        let mut client =
            self.connect(if traffic == Traffic::Messages { PORT } else { SINK }, true)?;
        path.set(impairment);
        let sample = match traffic {
            Traffic::Upload(size) => loss::upload(&mut client, size, bytes)?,
            Traffic::Messages => loss::messages(&mut client, time)?,
        };
        client.reset()?;
        Ok(sample)
    }

    pub fn end(self) -> Result<()> {
        self.guard.map(Guard::unload).transpose()?;
        Ok(())
    }
}

/// CPU time that a process has had so far, its threads that have ended included.
fn cpu(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32));
    let clock = clock.with_context(|| format!("the CPU clock of process {pid}"))?;
    Ok(clock.now().context("reading a CPU clock")?.into())
}

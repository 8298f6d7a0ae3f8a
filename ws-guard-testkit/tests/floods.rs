//! Flooders, and clients with their own TCP, against servers without the guard.
//! Some of those clients heed a window, and some do not.
use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use ws_guard_testkit::{
    beyond::BeyondWindow,
    capture::{Capture, Captured},
    certificate,
    client::{Client, ConnectOptions},
    flooders::{Flooders, Kind},
    honest,
    netns::{Family, Pair, PairOptions},
    probing::deliver,
    process::Process,
    raw_tcp::{self, Opening, RawTcp},
    servers::{Library, Server},
    skip_reason, tools,
};

const PORT: u16 = 9001;
const WAIT: Duration = Duration::from_secs(30);
const BRIEF: Duration = Duration::from_millis(700);
const SILENT: ConnectOptions = ConnectOptions { source: None, reads: false, receive_buffer: None };

macro_rules! needs_root {
    () => {
        if let Some(reason) = skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

fn at() -> SocketAddr {
    SocketAddr::new(Family::V4.server(), PORT)
}

fn raw_client() -> SocketAddr {
    SocketAddr::new(raw_tcp::address(Family::V4, 0), 40_000)
}

/// Flood and finish; all of the flooder's own messages have to come back.
fn flood(kind: Kind, clients: Vec<Client>) -> Result<u64> {
    let connections = clients.len() as u64;
    let mut flooders = Flooders::new(kind, clients)?;
    flooders.run(BRIEF, || true)?;
    let flooded = flooders.finish(WAIT)?;
    ensure!(flooded.own >= connections && flooded.echoed == flooded.own, "{kind:?}: {flooded:?}");
    ensure!(flooded.broken == 0 && flooded.frames > 10 * connections, "{kind:?}: {flooded:?}");
    Ok(flooded.frames)
}

#[test]
fn what_a_flooder_says_itself_comes_back_between_all_kinds_of_floods() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    for kind in Kind::ALL {
        let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, Some(2 << 30))?;
        let clients = (0..3).map(|_| Client::connect(&pair.client, at(), SILENT));
        let frames = flood(kind, clients.collect::<Result<_>>()?)?;
        let totals = server.stop()?;
        let seen = match kind {
            Kind::Pings => totals.pings,
            Kind::Pongs => totals.pongs,
            Kind::Messages => totals.messages,
            // They are not messages.
            Kind::Fragments => continue,
        };
        ensure!(seen >= frames, "{kind:?}: {frames} frames got through, {totals:?}");
    }
    Ok(())
}

#[test]
fn floods_and_echoes_work_inside_tls() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let folder = tempfile::tempdir()?;
    let mut command = pair.server.command(tools::python());
    command.arg(tools::foreign().join("wss_echo.py")).arg(PORT.to_string());
    command.args(certificate::make(folder.path())?).args(["1.3", "-"]);
    let server = Process::spawn("python-tls", command)?;
    server.wait_for(WAIT, |line| (line == "listening").then_some(()))?;
    let options = ConnectOptions { reads: true, ..SILENT };
    let mut user = Client::connect_tls(&pair.client, at(), options)?;
    let served = honest::run(&mut user, BRIEF, || true)?;
    ensure!(served.lost == 0 && served.messages > 2 && served.pongs == 1, "{served:?}");
    let clients = (0..2).map(|_| Client::connect_tls(&pair.client, at(), SILENT));
    flood(Kind::Pings, clients.collect::<Result<_>>()?)?;
    Ok(())
}

/// Return the end of the server's announced window, by segments as they passed.
fn told(edge: Option<u32>, segment: &Captured) -> Option<u32> {
    let told = segment.ack.wrapping_add(segment.window.into());
    let further = edge.is_none_or(|edge| told.wrapping_sub(edge) as i32 > 0);
    if further { Some(told) } else { edge }
}

/// Return the number of client segments past the edge, and of probes among them.
/// A probe is the next byte alone.
fn past_the_edge(capture: &mut Capture) -> (u64, u64) {
    let (mut edge, mut past, mut probes) = (None, 0, 0);
    for segment in capture.take() {
        if segment.source == at() {
            edge = told(edge, &segment);
        } else if let Some(edge) = edge
            && segment.source == raw_client()
            && !segment.payload.is_empty()
        {
            let end = segment.seq.wrapping_add(segment.payload.len() as u32);
            let is_past = end.wrapping_sub(edge) as i32 > 0;
            past += u64::from(is_past);
            probes += u64::from(is_past && segment.payload.len() == 1 && segment.seq == edge);
        }
    }
    (past, probes)
}

#[test]
fn a_tcp_that_heeds_no_window_sends_past_it_and_is_heard_in_the_end() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions { offloads: false, ..PairOptions::default() })?;
    let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, Some(2 << 30))?;
    let mut capture = Capture::new(&pair.server)?;
    let mut flooder = BeyondWindow::connect(&pair, raw_client(), at(), Kind::Pings)?;
    flooder.run(Duration::from_millis(200), || true)?;
    let (past, _) = past_the_edge(&mut capture);
    flooder.run(BRIEF, || true)?;
    let flooded = flooder.finish(WAIT)?;
    drop(flooder);
    ensure!(past > 10, "{past} segments past the edge");
    ensure!(flooded.own >= 2 && flooded.echoed == flooded.own, "{flooded:?}");
    ensure!(flooded.frames > 100 && flooded.broken == 0, "{flooded:?}");
    let totals = server.stop()?;
    ensure!(totals.pings + 1 >= flooded.frames, "{totals:?} of {flooded:?}");
    Ok(())
}

#[test]
fn a_closed_window_is_probed_with_one_new_byte() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions { offloads: false, ..PairOptions::default() })?;
    let listener = pair.server.run(|| TcpListener::bind(at()))??;
    let (read, may_read) = mpsc::channel();
    let reader = thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        may_read.recv().context("the test has ended")?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let mut capture = Capture::new(&pair.server)?;
    let mut tcp = RawTcp::connect(&pair, raw_client(), at(), &Opening::default())?;
    let bytes: Vec<u8> = (0..600_000u32).map(|n| (n % 251) as u8).collect();
    // Without a reader the window closes, and stays closed.
    let (mut done, mut probes, start) = (0, 0, Instant::now());
    while probes < 2 && start.elapsed() < WAIT {
        let delivered = deliver(&mut tcp, &bytes[done..], Duration::from_secs(1))?;
        done += delivered.bytes;
        probes += delivered.probes;
    }
    ensure!((1..bytes.len()).contains(&done) && probes >= 2, "{done} bytes, {probes} probes");
    let (past, new) = past_the_edge(&mut capture);
    ensure!(past == probes && new == probes, "{past} segments past the edge, {new} are probes");
    read.send(())?;
    let delivered = deliver(&mut tcp, &bytes[done..], WAIT)?;
    ensure!(done + delivered.bytes == bytes.len(), "{done} and {delivered:?}");
    tcp.finish()?;
    let come = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(come == bytes, "{} bytes came, not as they were sent", come.len());
    Ok(())
}

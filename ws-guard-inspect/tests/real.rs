//! Captures of real servers and segments.
//! The sender's actions, the server's counts and tshark's findings all match the inspector's.

mod common;

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Cursor, Read},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use common::{ETHERNET, Packet, Told, inspect, pcap, tshark::compare};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ws_guard_inspect::{
    Side, What,
    finding::Kind,
    input::{Capture, Damage},
};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    foreign_client::ForeignClient,
    frame::{Frame, encode, opcode},
    netns::{Family, INTERFACE, Namespace, Pair, PairOptions},
    servers::{Library, Server},
    skip_reason,
};

const PORT: u16 = 9001;
const WAIT: Duration = Duration::from_secs(20);
/// Interval of the packets left out of a capture, one at a time.
const EVERY: usize = 5;

/// dumpcap on a namespace's interface.
struct Dumpcap(Child);

impl Dumpcap {
    /// Start it, and wait until it captures; `None` where it is not installed.
    fn start(namespace: &Namespace, file: &Path) -> Result<Option<Dumpcap>> {
        if !Path::new("/usr/bin/dumpcap").exists() {
            return Ok(None);
        }
        let mut command = namespace.command("/usr/bin/dumpcap");
        command.args(["-q", "-i", INTERFACE, "-w"]).arg(file).stderr(Stdio::piped());
        let mut dumpcap = Dumpcap(command.spawn().context("starting dumpcap")?);
        let said = dumpcap.0.stderr.take().context("dumpcap's messages")?;
        let mut said = BufReader::new(said);
        let mut line = String::new();
        while !line.starts_with("File:") {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "dumpcap ended at once");
        }
        // It writes no more than fits a pipe, and must not end because of it.
        thread::spawn(move || std::io::copy(&mut said.take(1 << 16), &mut std::io::sink()));
        Ok(Some(dumpcap))
    }

    /// Wait until the file has the end of the connection, and end dumpcap.
    fn stop(mut self, file: &Path) -> Result<Vec<u8>> {
        let start = Instant::now();
        loop {
            let bytes = std::fs::read(file).context("reading the capture")?;
            let (told, ..) = inspect(&bytes);
            let is_whole = |told: &Told| {
                let flow = told.flows.first();
                flow.is_some_and(|flow| flow.of_client.fin && flow.of_server.fin)
            };
            if is_whole(&told) {
                break;
            }
            if start.elapsed() > WAIT {
                bail!("the connection's end is not captured: {:?}", told.flows);
            }
            thread::sleep(Duration::from_millis(50));
        }
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT).context("ending dumpcap")?;
        self.0.wait()?;
        std::fs::read(file).context("reading the capture")
    }
}

impl Drop for Dumpcap {
    fn drop(&mut self) {
        // It has ended already if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Send frames that share a segment, and one that is cut in its header.
fn talk(client: &mut Client) -> Result<(Vec<Frame>, Frame)> {
    client.send_one(Frame::text("alone"))?;
    client.send_one(Frame::ping("alive"))?;
    let together = ["", "one", "and another"].map(Frame::text).to_vec();
    client.send(&together, &Cut::Whole)?;
    let cut = Frame::new(opcode::BINARY, vec![7; 300]);
    client.send(std::slice::from_ref(&cut), &Cut::At(vec![3, 100]))?;
    client.send(&Frame::fragments(opcode::BINARY, &[1; 5000], 2000), &Cut::Every(700))?;
    ensure!(client.wait(WAIT, |r| r.messages == 6 && r.pongs == 1), "not all is echoed");
    Ok((together, cut))
}

/// Check that the findings match the client's actions.
fn check(told: &Told, (together, cut): (&[Frame], &Frame)) -> Result<()> {
    let found = told.of(Side::Client);
    let points: Vec<_> = found.iter().filter(|f| f.what.kind() == Kind::SplitPoint).collect();
    let ends = (1..together.len()).map(|count| encode(&together[..count]).len() as u32);
    let offsets: Vec<u32> = ends.collect();
    let len = encode(together).len() as u32;
    let wanted = What::SplitPoint { frames: 3, len, offsets };
    ensure!(points.first().is_some_and(|f| f.what == wanted), "{wanted:?}: {points:?}");
    let header = found.iter().find(|f| f.what.kind() == Kind::SplitHeader);
    let header = header.context("no cut header")?;
    ensure!(matches!(header.what, What::SplitHeader { frame: 6, have: 3 }), "{header:?}");
    let split = found.iter().find(|f| f.what.kind() == Kind::SplitFrame).context("no cut frame")?;
    let length = cut.payload.len() as u64;
    let is_it = matches!(split.what, What::SplitFrame { frame: 6, segments: 3, length: l, .. } if l == length);
    ensure!(is_it && split.at == header.at, "{split:?}");
    Ok(())
}

fn run(pair: &Pair, library: Library, family: Family) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("real.pcapng");
    let server = Server::start(&pair.server, library, PORT, None)?;
    let Some(dumpcap) = Dumpcap::start(&pair.server, &file)? else {
        return Ok(false);
    };
    let at = server.at(family.server());
    let mut client = Client::connect(&pair.client, at, ConnectOptions::default())?;
    let did = talk(&mut client)?;
    let sent = client.close()?;
    let totals = server.stop()?;
    let bytes = dumpcap.stop(&file)?;
    let (told, _, damage) = inspect(&bytes);
    ensure!(damage.is_none(), "{damage:?}");
    check(&told, (&did.0, &did.1))?;
    let flow = told.flow();
    ensure!((flow.frames_client, flow.pings_client) == (sent.frames, sent.pings), "{sent:?}");
    ensure!(
        (flow.of_client.messages, flow.pings_client) == (totals.messages, totals.pings),
        "{totals:?}"
    );
    ensure!(flow.of_client.pings_answered == 1 && flow.of_server.close_code == Some(1000));
    ensure!(flow.closed_by == Some(Side::Client) && flow.violations_total == 0, "{flow:?}");
    Ok(compare(&bytes, PORT))
}

#[test]
fn real_connections_are_told_as_they_were() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let pair = Pair::new(PairOptions::default())?;
    for (library, family) in Library::ALL.into_iter().zip(Family::BOTH.into_iter().cycle()) {
        let compared = run(&pair, library, family).with_context(|| format!("{library:?}"))?;
        if !compared {
            println!("skipped: {library:?} with tshark, or dumpcap is missing");
        }
    }
    Ok(())
}

/// Run a foreign client and a server.
/// The server also deflates, where the client offers it and `deflate` is set.
fn visit(
    pair: &Pair,
    (client, library): (ForeignClient, Library),
    family: Family,
    deflate: bool,
) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("real.pcapng");
    let server = match deflate {
        true => Server::start_deflating(&pair.server, library, PORT)?,
        false => Server::start(&pair.server, library, PORT, None)?,
    };
    let Some(dumpcap) = Dumpcap::start(&pair.server, &file)? else {
        return Ok(false);
    };
    let at = server.at(family.server());
    let Some(process) = client.start(&pair.client, at, deflate, folder.path())? else {
        println!("skipped: there is no chromium here (Debian: apt-get install chromium)");
        return Ok(true);
    };
    let closed = |line: &str| line.contains("\"closed\"").then_some(());
    let closed = server.process().wait_for(WAIT, closed);
    closed.with_context(|| process.lines().join("\n"))?;
    let totals = server.stop()?;
    let bytes = dumpcap.stop(&file)?;
    drop(process);
    let (told, _, damage) = inspect(&bytes);
    ensure!(damage.is_none(), "{damage:?}");
    let flow = told.flow();
    let of_client = &flow.of_client;
    ensure!((of_client.messages, flow.pings_client) == (totals.messages, totals.pings), "{flow:?}");
    ensure!(of_client.close_code == Some(4001) && flow.closed_by == Some(Side::Client), "{flow:?}");
    ensure!(of_client.close_reason.as_deref() == Some("enough"), "{flow:?}");
    ensure!(flow.deflate == Some(deflate) && flow.violations_total == 0, "{flow:?}");
    ensure!((of_client.compressed_messages > 0) == deflate, "{flow:?}");
    lacking(&told, &bytes)?;
    Ok(compare(&bytes, PORT))
}

/// Read the packets of a capture.
fn packets(bytes: &[u8]) -> Result<Vec<Packet>, Damage> {
    let mut capture = Capture::new(Cursor::new(bytes.to_vec()), 1)?;
    let mut packets = Vec::new();
    while let Some(packet) = capture.packet()? {
        let (time_ns, data) = (packet.place.time_ns, packet.data.to_vec());
        packets.push(Packet { time_ns, data, cut: 0 });
    }
    Ok(packets)
}

/// Check captures that lack one packet, or their beginning.
/// Their findings are at the same places as in the whole one, and what is missing is reported.
fn lacking(whole: &Told, bytes: &[u8]) -> Result<()> {
    let packets = packets(bytes).map_err(|damage| anyhow!("{damage:?}"))?;
    let of = |told: &Told, side| -> HashSet<(u32, u8, bool, u64)> {
        let frames = told.frames(side).into_iter();
        frames.map(|(seq, _, frame)| (seq, frame.opcode, frame.fin, frame.length)).collect()
    };
    for first in (0..packets.len()).step_by(EVERY) {
        for lost in [0..first, first..first + 1] {
            let left: Vec<Packet> =
                packets[..lost.start].iter().chain(&packets[lost.end..]).cloned().collect();
            let (told, ..) = inspect(&pcap(ETHERNET, &left));
            for side in [Side::Client, Side::Server] {
                let (found, all) = (of(&told, side), of(whole, side));
                ensure!(found.is_subset(&all), "{lost:?} are lost: {:?}", found.difference(&all));
                let Some(flow) = told.flows.first().filter(|_| found != all) else { continue };
                let report = if side == Side::Client { &flow.of_client } else { &flow.of_server };
                let is_said = report.gaps > 0 || flow.midstream || flow.request_unseen;
                ensure!(is_said, "{lost:?} are lost, and nothing says so: {flow:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn foreign_clients_are_told_as_tshark_does() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let pair = Pair::new(PairOptions::default())?;
    let visits = [
        (ForeignClient::Python, Library::Python, true),
        (ForeignClient::Ws, Library::Ws, true),
        (ForeignClient::Chromium, Library::Python, true),
        (ForeignClient::Chromium, Library::Ws, false),
        (ForeignClient::Python, Library::Ws, false),
        (ForeignClient::Ws, Library::Python, false),
    ];
    for ((client, library, deflate), family) in
        visits.into_iter().zip(Family::BOTH.into_iter().cycle())
    {
        let compared = visit(&pair, (client, library), family, deflate);
        if !compared.with_context(|| format!("{client:?}, {library:?}, {deflate}"))? {
            println!("skipped: {client:?} with tshark, or dumpcap is missing");
        }
    }
    Ok(())
}

//! Pauses of servers: length by the server's own clock, and attribution.
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::Client,
    frame::{Frame, opcode},
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::stage::{PORT, Stage, WAIT};

/// Port of the guard's metrics.
const METRICS: u16 = 9102;
/// Maximum difference to the server's own clock, in microseconds...
const ERROR: u64 = 1_000;
/// ...in one of this number of pauses:
/// on a busy machine a server waits before and after its own measurement.
const TRIES: usize = 12;
/// Longer than an answer of `/metrics` is cached for other requests.
const KEPT: Duration = Duration::from_millis(1_100);
/// Silence of the client before it answers the server's ping.
const PONDERS: Duration = Duration::from_millis(30);

#[test]
fn a_pause_is_measured_and_its_server_blamed() -> Result<()> {
    needs_root!();
    let libraries = [Library::Gorilla, Library::Gorilla];
    let words = format!("--metrics-listen [::]:{METRICS} --action observe");
    let stage = Stage::with(&libraries, PairOptions::default(), &words)?;
    for family in Family::BOTH {
        let mut pausing = stage.client_of(0, family, 0)?;
        let mut other = stage.client_of(1, family, 1)?;
        let before = count(&metrics(&stage)?, "wsguard_heartbeat_seconds_count", family, 0);
        let mut pauses = 0;
        for milliseconds in [50, 120, 500] {
            pauses += measure(&stage, &mut pausing, &mut other, family, milliseconds)?;
        }
        let metrics = metrics(&stage)?;
        let measured = count(&metrics, "wsguard_heartbeat_seconds_count", family, 0) - before;
        // The unsolicited pongs closed none.
        ensure!(measured as usize == pauses, "{measured} heartbeats of {pauses} pauses\n{metrics}");
        let long = |server| {
            let all = count(&metrics, "wsguard_heartbeat_seconds_count", family, server);
            let short = bucket(&metrics, family, server, "0.02");
            (all - short, all)
        };
        ensure!(long(0).0 as usize >= pauses, "{:?} of {pauses}\n{metrics}", long(0));
        // A busy machine may delay some.
        ensure!(long(1).0 * 2.0 < long(1).1, "the other server is blamed: {:?}", long(1));
        answers(&stage, &mut pausing, family)?;
        ends(&stage, pausing, other, family)?;
    }
    stage.finish()?;
    Ok(())
}

/// Let the server pause until one was measured well; return the number of pauses.
fn measure(
    stage: &Stage,
    pausing: &mut Client,
    other: &mut Client,
    family: Family,
    milliseconds: u64,
) -> Result<usize> {
    let mut errors = Vec::new();
    for _ in 0..TRIES {
        let made = pauses_made(stage)?;
        let pongs = pausing.received().pongs;
        pausing.send_one(Frame::ping(format!("pause {milliseconds}")))?;
        let others = other.received().pongs;
        other.send_one(Frame::ping("how are you"))?;
        ensure!(other.wait(WAIT, |r| r.pongs == others + 1), "the other server does not answer");
        // The unsolicited pong, and the answer.
        ensure!(pausing.wait(WAIT, |r| r.pongs == pongs + 2), "the server does not answer");
        let own = stage.server(0).paused(made + 1, WAIT)?;
        let wire = stage.flow(pausing)?.heartbeat_rtt_us.context("no heartbeat was measured")?;
        let error = wire.abs_diff(own);
        errors.push(error);
        if error <= ERROR {
            println!("{family:?}: pause of {own} µs by the server's clock, {wire} µs on the wire");
            return Ok(errors.len());
        }
    }
    anyhow::bail!("pauses of {milliseconds} ms are off by {errors:?} µs");
}

fn pauses_made(stage: &Stage) -> Result<usize> {
    let lines = stage.server(0).process().lines();
    Ok(lines.iter().filter(|line| line.contains("\"paused\"")).count())
}

/// Check that a server's ping is timed until its own pong.
fn answers(stage: &Stage, client: &mut Client, family: Family) -> Result<()> {
    client.send_one(Frame::ping("ask"))?;
    ensure!(client.wait(WAIT, |r| r.pings == 1), "the server does not ping");
    client.send_one(Frame::new(opcode::PONG, "not this one"))?;
    thread::sleep(PONDERS);
    client.send_one(Frame::new(opcode::PONG, "asked"))?;
    crate::talk::round_trip(client, "read")?;
    let metrics = metrics(stage)?;
    let name = "wsguard_client_heartbeat_seconds";
    let number = count(&metrics, &format!("{name}_count"), family, 0);
    let sum = count(&metrics, &format!("{name}_sum"), family, 0);
    ensure!(number == 1.0 && sum >= PONDERS.as_secs_f64(), "{number} of {sum} s\n{metrics}");
    Ok(())
}

/// Check that ends are counted by the side that ended first, and unanswered pings.
fn ends(stage: &Stage, closing: Client, dying: Client, family: Family) -> Result<()> {
    closing.close()?;
    // The test kit's client may send a FIN before its RST.
    dying.reset()?;
    let (mut read, mut found) = (String::new(), false);
    for _ in 0..5 {
        read = metrics(stage)?;
        let ended = |server, end: &str| {
            let more = format!("end=\"{end}\",");
            sample(&read, "wsguard_connections_ended_total", &more, &labels(family, server))
        };
        found = ended(0, "server_fin") + ended(0, "client_fin") == 1.0
            && ended(1, "client_rst") + ended(1, "client_fin") == 1.0;
        if found {
            break;
        }
    }
    ensure!(found, "the ends are not counted:\n{read}");
    Ok(())
}

fn labels(family: Family, server: usize) -> String {
    format!("port=\"{}\",server=\"{}\"", PORT as usize + server, family.server())
}

/// Return a sample with exactly these labels; 0 where there is none.
fn sample(metrics: &str, name: &str, before: &str, labels: &str) -> f64 {
    let wanted = format!("{name}{{{before}{labels}}} ");
    let found = metrics.lines().find_map(|line| line.strip_prefix(&wanted));
    found.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

fn count(metrics: &str, name: &str, family: Family, server: usize) -> f64 {
    sample(metrics, name, "", &labels(family, server))
}

fn bucket(metrics: &str, family: Family, server: usize, bound: &str) -> f64 {
    let labels = format!("{},le=\"{bound}\"", labels(family, server));
    sample(metrics, "wsguard_heartbeat_seconds_bucket", "", &labels)
}

/// Read the page, after the time for which the previous answer is cached.
fn metrics(stage: &Stage) -> Result<String> {
    thread::sleep(KEPT);
    let at = SocketAddr::new(Family::V4.server(), METRICS);
    let mut tcp = stage.pair.client.run(|| TcpStream::connect(at))??;
    tcp.set_read_timeout(Some(WAIT))?;
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    tcp.read_to_string(&mut text)?;
    Ok(text)
}

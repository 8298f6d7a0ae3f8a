//! A flood of events: the log is bounded, and the rest is counted.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    frame::{Frame, encode},
    sink::Sink,
};

use crate::stage::{PORT, Stage, eventually, number};

/// Port whose server ignores violations.
const SINK: u16 = PORT + 1;
/// Events of a kind that a CPU reports in a kernel second (2^30 ns).
/// The rest is counted.
const A_SECOND: u64 = 100;
const TIME: Duration = Duration::from_secs(3);
/// Number of events that the daemon keeps for later queries.
const KEPT: usize = 1_000;
/// An opcode that RFC 6455 (5.2) reserves.
const RESERVED: u8 = 0x3;

#[test]
fn a_flood_of_events_is_bounded_and_counted() -> Result<()> {
    needs_root!();
    let mut stage = Stage::new(1, &["--port", &format!("{PORT},{SINK}")])?;
    let sink = Sink::start(&stage.pair.server, SINK)?;
    let at = std::net::SocketAddr::new(stage.address().ip(), SINK);
    let mut client = Client::connect(&stage.pair.client, at, ConnectOptions::default())?;
    let bytes = encode(&[Frame::new(RESERVED, [])]);
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        client.write_segment(&bytes)?;
        sent += 1;
    }
    let took = start.elapsed().as_secs_f64();
    ensure!(client.drain(Duration::from_secs(5)), "the server does not take the flood");
    let flow = stage.flow(client.local())?;
    ensure!(number(&flow["violations"])? == sent, "{sent} were sent: {flow}");

    let events = stage.ask("status")?["events"].clone();
    let held_back = number(&events["suppressed"])? + number(&events["lost"])?;
    let logged = || stage.log().iter().filter(|line| line.contains("violation")).count() as u64;
    eventually("each event is logged or counted", || Ok(logged() + held_back >= sent))?;
    println!("{sent} violations in {took:.1} s: {} logged, {events}", logged());
    ensure!(logged() + held_back == sent, "{} logged, {held_back} held back", logged());
    let cpus = thread::available_parallelism()?.get() as u64;
    let most = cpus * A_SECOND * (took as u64 + 2);
    ensure!(sent > 3 * most, "{sent} violations are no flood: {most} may be reported");
    ensure!(logged() <= most, "{} are logged, {most} may be", logged());
    ensure!(logged() >= A_SECOND, "only {} are logged", logged());
    let kept = stage.events()?.len();
    ensure!(kept <= KEPT, "{kept} events are kept");
    drop((client, sink));
    stage.stop_server()?;
    stage.finish()
}

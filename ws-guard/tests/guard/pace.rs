//! `defuse` holds the receive window of a connection over the limit:
//! its client sends no faster than the pace, and loses nothing.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, Flooded, PAYLOAD, flood},
    frame::Frame,
    netns::{Family, INTERFACE, Pair, PairOptions},
    servers::{Library, Server},
    statistics::lost,
};

use crate::{
    process::Guard,
    stage::{PORT, Stage, WAIT, eventually, replace_bbr},
    talk::{ensure_echoed, pings, round_trip, text},
};

const RATE: u64 = 16 << 10;
/// Maximum in flight when a window is first held: the server's window until then.
const AT_FIRST: u64 = 512 << 10;
const FLOOD: Bounds =
    Bounds { pings: u64::MAX, time: Duration::from_secs(4), pause: Duration::ZERO };
/// Length of a masked ping.
const PING: u64 = PAYLOAD as u64 + 6;
/// Length of a message: more than passes at the pace while waiting for its echo.
const LARGE: usize = 1 << 20;

/// Honest connections of the flooder's address.
const NEIGHBOURS: usize = 50;

/// Return the addresses of clients that are `paced` in `flows`.
fn paced_clients(stage: &Stage) -> Result<Vec<String>> {
    let flows: Vec<serde_json::Value> = stage.guard.ask("flows")?;
    let mut paced = Vec::new();
    for flow in &flows {
        if flow["paced"].as_bool().context("no field paced")? {
            paced.push(flow["client"].as_str().context("no client")?.to_owned());
        }
    }
    Ok(paced)
}

fn is_paced(stage: &Stage, client: &Client) -> Result<bool> {
    Ok(paced_clients(stage)?.contains(&client.local().to_string()))
}

/// Flood over `flooder`; check that its address's other connections are served, and not paced.
fn flood_with_neighbours(
    stage: &Stage,
    flooder: &mut Client,
    neighbours: &mut [Client],
) -> Result<Flooded> {
    let flooded = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(flooder, FLOOD, || true));
        let mut beside = Ok(());
        while beside.is_ok() && !flooding.is_finished() {
            let mut each = neighbours.iter_mut();
            beside = each.try_for_each(|neighbour| round_trip(neighbour, "beside the flood"));
            thread::sleep(Duration::from_millis(20));
        }
        let flooded = flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        beside.map(|()| flooded)
    })?;
    let paced = paced_clients(stage)?;
    let own = flooder.local().to_string();
    ensure!(paced.iter().all(|client| *client == own), "paced as well: {paced:?}, beside {own}");
    Ok(flooded)
}

/// Send the client's `nth` message, and expect an early echo; return the message.
/// It takes far less than its time at the pace. The release was at `start`.
fn full_speed(client: &mut Client, nth: u64, start: Instant) -> Result<Vec<u8>> {
    let large = text(LARGE, nth);
    client.send(&[Frame::text(&large)], &Cut::Whole)?;
    ensure!(client.wait(WAIT, |r| r.ended || r.messages == nth), "no echo");
    println!("{LARGE} bytes echoed {:?} after the release", start.elapsed());
    Ok(large.into_bytes())
}

fn paced(mode: &str, library: Library, options: PairOptions, family: Family) -> Result<()> {
    let pair = Pair::new(options)?;
    pair.server.one_cpu(INTERFACE)?;
    let stage = Stage::on(pair, &[library], &format!("--attach {mode}"))?;
    let mut flooder = stage.client(family, 0)?;
    let mut neighbours: Vec<_> =
        (0..NEIGHBOURS).map(|_| stage.client(family, 0)).collect::<Result<_>>()?;
    let before = lost(&stage.pair.client)?;
    round_trip(&mut flooder, "before")?;
    let flooded = flood_with_neighbours(&stage, &mut flooder, &mut neighbours)?;
    ensure!(flooded.broken.is_none(), "{flooded:?}");
    ensure!(is_paced(&stage, &flooder)?, "not paced: {:?}", stage.flow(&flooder)?);
    let flow = stage.flow(&flooder)?;
    let (sent, most) = (flow.pings_in * PING, AT_FIRST + RATE * (flooded.time.as_secs() + 2));
    ensure!(sent < most, "{sent} bytes of {most} in {:?}: {flow:?}", flooded.time);
    ensure!(flow.pings_in > 30 && flow.gaps + flow.unsynced_total == 0, "{flow:?}");
    ensure!(lost(&stage.pair.client)? == before, "something was lost: {}", stage.drops());

    // The window is the server's again: all pending bytes pass, and a message that would otherwise
    // take a minute.
    let start = Instant::now();
    stage.guard.run("policy set --pace off")?;
    let large = full_speed(&mut flooder, 2, start)?;
    ensure_echoed(&flooder, &[b"before".to_vec(), large])?;
    ensure!(lost(&stage.pair.client)? == before, "something was lost: {}", stage.drops());
    drop((flooder, neighbours));
    stage.finish().map(drop)
}

fn mode_paces(mode: &str) -> Result<()> {
    for (library, offloads, family) in
        [(Library::TokioTungstenite, true, Family::V4), (Library::Gorilla, false, Family::V6)]
    {
        let options = PairOptions { offloads, ..PairOptions::default() };
        paced(mode, library, options, family)
            .with_context(|| format!("{mode}, {library:?}, offloads {offloads}, {family:?}"))?;
    }
    Ok(())
}

macro_rules! paces {
    ($($name:ident: $mode:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            needs_root!();
            mode_paces($mode)
        }
    )*};
}

paces! {
    native_xdp_paces: "xdp-native";
    generic_xdp_paces: "xdp-generic";
    tcx_paces: "tcx";
    clsact_paces: "clsact";
}

/// A flooder older than the guard, its scale unknown: policed, and alive.
#[test]
fn a_flooder_from_before_the_guard_is_policed() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    replace_bbr(&pair)?;
    let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
    let source = Some(Family::V4.client(0));
    let at = server.at(Family::V4.server());
    let connect = ConnectOptions { source, ..Default::default() };
    let mut flooder = Client::connect(&pair.client, at, connect)?;
    round_trip(&mut flooder, "before the guard")?;
    let guard = Guard::start(&pair.server, &format!("--port {PORT}"))?;
    let stage = Stage::of(pair, vec![server], guard);
    let flooded = flood(&mut flooder, FLOOD, || true)?;
    ensure!(flooded.broken.is_none(), "{flooded:?}");
    let status: serde_json::Value = stage.guard.ask("status")?;
    println!("{flooded:?}, {}", status["drops"]);
    ensure!(status["drops"]["policed"].as_u64() > Some(0), "{}", status["drops"]);
    let sent = stage.flow(&flooder)?.pings_in * PING;
    let most = AT_FIRST + RATE * (flooded.time.as_secs() + 2);
    ensure!(sent < most, "{sent} of {most} bytes: {}", stage.story(&flooder));
    stage.guard.run("policy set --pace off")?;
    // Its timeouts have grown, unlike those of a client whose window is held.
    ensure!(flooder.drain(6 * WAIT), "the connection does not go on: {}", stage.guard.log());
    let back = round_trip(&mut flooder, "after the release");
    back.with_context(|| stage.story(&flooder))?;
    drop(flooder);
    stage.finish().map(drop)
}

/// Hold and release one connection several times, for some seconds each.
/// It has more to send than passes meanwhile.
fn released_after(seconds: &[u64]) -> Result<()> {
    let stage =
        Stage::new(Library::TokioTungstenite, PairOptions::default(), "--window-seconds 60")?;
    let mut client = stage.client(Family::V4, 0)?;
    for (n, held) in (1..).zip(seconds) {
        client.send(&pings(0, 200), &Cut::Whole)?;
        let (time, pause) = (Duration::from_secs(*held), Duration::from_millis(50));
        let waits = flood(&mut client, Bounds { time, pause, ..FLOOD }, || true)?;
        ensure!(waits.broken.is_none(), "{waits:?}");
        ensure!(is_paced(&stage, &client)?, "not paced, {waits:?}");
        println!("held for {held} s: {waits:?}");
        let start = Instant::now();
        stage.guard.run("policy set --max-ping-rate 100000")?;
        stage.guard.run(&format!("release {}", Family::V4.client(0)))?;
        full_speed(&mut client, n, start)?;
        ensure!(!is_paced(&stage, &client)?, "paced after the release");
        stage.guard.run("policy set --max-ping-rate 30")?;
    }
    drop(client);
    stage.finish().map(drop)
}

/// After any time with a held window, one probe brings the client to full speed.
#[test]
fn a_release_ends_the_pacing_at_once() -> Result<()> {
    needs_root!();
    released_after(&[1, 8])
}

/// A persist timer that backed off would wait for minutes (RFC 9293, 3.8.6.1).
#[test]
#[ignore = "takes six minutes: cargo xtask test --nightly"]
fn a_release_ends_the_pacing_at_once_after_minutes() -> Result<()> {
    needs_root!();
    released_after(&[30, 300])
}

/// Later decisions about the connection hold from the server's next segment on.
#[test]
fn other_policies_end_the_pacing() -> Result<()> {
    needs_root!();
    let stage = Stage::new(Library::TokioTungstenite, PairOptions::default(), "")?;
    let mut client = stage.client(Family::V4, 0)?;
    for change in ["--action observe", "--pace off"] {
        flood(&mut client, Bounds { time: Duration::from_millis(500), ..FLOOD }, || true)?;
        ensure!(is_paced(&stage, &client)?, "not paced before {change}");
        stage.guard.run(&format!("policy set {change}"))?;
        eventually("the pacing ends", || Ok(!is_paced(&stage, &client)?))?;
        round_trip(&mut client, change)?;
        stage.guard.run("policy set --action defuse --pace 16KiB/s")?;
    }
    drop(client);
    stage.finish().map(drop)
}

//! Attacks of the soak: floods, spoofed packets and the rows.
use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    flood::{Bounds, flood as send_pings},
    frame::{Frame, encode},
    netns::Family,
    packets::SWITCHING,
    raw::Sender,
    servers::Library,
};

use super::{Clock, address};
use crate::{
    EVERYWHERE, packet,
    row::{Failure, PORT, Row},
    stage::{HONEST, LIMIT, Stage},
};

/// Pause between bursts of 500 pings.
const FLOOD_PAUSE: Duration = Duration::from_millis(100);
const FLOOD_TIME: Duration = Duration::from_secs(24 * 3600);
const CLOSED: Duration = Duration::from_secs(20);
const SPOOF_EVERY: Duration = Duration::from_secs(5);
const SPOOFED: u32 = 10_000;
/// Number of an attacker's ports, and of turns of all addresses with other ports.
const PORTS: u16 = 200;
const TURNS: u64 = 100;
/// Percentage of rows that may fail to take place:
/// their attacks have deadlines of their own, and the machine is busy.
const UNPLAYED_PERCENT: u64 = 10;

/// Victims of the flooders, from address [`address::FLOODERS`] on.
const VICTIMS: [Library; 2] = [Library::TokioTungstenite, Library::Gorilla];
/// Pace above the floods' with [`FLOOD_PAUSE`]: all pings arrive, and are defused.
const FLOOD_PACE: &str = "64MiB/s";

/// Set a separate pace for flooders.
/// The rows have the default, which holds unreadable streams.
pub fn let_floods_run(stage: &Stage) -> Result<()> {
    for (n, _) in (address::FLOODERS..).zip(VICTIMS) {
        let source = Family::V4.client(n);
        stage.guard.run(&format!("policy set --cidr {source}/32 --pace {FLOOD_PACE}"))?;
    }
    Ok(())
}

/// Flood each of two servers all the time.
/// Each flooder gets as many answers as the limit is.
pub fn flood(stage: &Stage, clock: &Clock) -> Result<u64> {
    let floods = thread::scope(|scope| {
        let floods: Vec<_> = (address::FLOODERS..)
            .zip(VICTIMS)
            .map(|(n, library)| scope.spawn(move || flood_one(stage, clock, library, n)))
            .collect();
        let ended = floods.into_iter().map(super::joined);
        ended.collect::<Result<Vec<u64>>>()
    })?;
    Ok(floods.into_iter().sum())
}

fn flood_one(stage: &Stage, clock: &Clock, library: Library, n: u8) -> Result<u64> {
    let server = stage.server(library)?;
    let options = ConnectOptions { source: Some(Family::V4.client(n)), ..Default::default() };
    let at = server.at(Family::V4.server());
    let mut client = Client::connect(&stage.pair.client, at, options)?;
    let bounds = Bounds { pings: u64::MAX, time: FLOOD_TIME, pause: FLOOD_PAUSE };
    let flooded = send_pings(&mut client, bounds, || clock.goes_on())?;
    let local = client.local();
    let drained = client.drain(CLOSED);
    let (pings, flow) = (flooded.pings, stage.flow(local)?);
    let name = library.name();
    ensure!(flooded.broken.is_none(), "{name} ended the connection: {flooded:?}, {flow:?}");
    ensure!(drained, "{name} does not take the flood of {pings} to its end: {flow:?}");
    client.close()?;
    let closed = server.closed(local, 1, CLOSED)?;
    let counted = (closed[0].pings, closed[0].pongs);
    ensure!(counted == (LIMIT, pings - LIMIT), "{flooded:?}, {closed:?}");
    Ok(flooded.pings)
}

/// Send packets from unused addresses, at all ports.
/// No requests: a flood of those makes the guard forget others' requests, and pings before the
/// answer have a row of their own.
pub fn spoof(stage: &Stage, clock: &Clock) -> Result<u64> {
    let sender = Sender::new(&stage.pair)?;
    let pings = encode(&vec![Frame::ping("x"); 20]);
    let payloads = [pings, encode(&[Frame::text("hello")]), SWITCHING.to_vec()];
    let mut sent = 0;
    while clock.sleep(SPOOF_EVERY) {
        for library in Library::ALL {
            let at = stage.server(library)?.at(Family::V4.server());
            sender.spoofed_flood(at, SPOOFED / 4, &payloads)?;
            sent += u64::from(SPOOFED / 4);
        }
    }
    Ok(sent)
}

/// Play all rows that are not known to fail, over and over.
/// None leaks, and no honest client next to one is hurt.
pub fn rows(stage: &Stage, clock: &Clock) -> Result<u64> {
    let rows = [&EVERYWHERE.concat(), packet::AT_XDP].concat();
    let rows: Vec<Row> = rows.into_iter().filter(|row| row.known.is_none()).collect();
    let (mut played, mut unplayed) = (0, 0);
    for n in 0.. {
        if !clock.goes_on() {
            break;
        }
        let row = &rows[n as usize % rows.len()];
        let families = row.families;
        let family = families[(n / rows.len() as u64) as usize % families.len()];
        // A server's log distinguishes connections by their addresses and ports.
        let (turn, address) = (n / u64::from(address::ROWS), n % u64::from(address::ROWS));
        let port = PORT + (turn % TURNS) as u16 * PORTS;
        match row.play(stage, family, address as u8, port) {
            Ok(outcome) => match row.judge(&outcome) {
                Err((Failure::Leaks, why)) => {
                    return Err(anyhow::anyhow!("{why}: {outcome}")).context(row.name);
                }
                Err((_, why)) => {
                    println!("  {}, {family:?}: {why}: {outcome}", row.name);
                    unplayed += 1;
                }
                Ok(()) => {}
            },
            Err(error) if format!("{error:#}").contains(HONEST) => {
                return Err(error).context(row.name);
            }
            Err(error) => {
                println!("  {}, {family:?}: {error:#}", row.name);
                unplayed += 1;
            }
        }
        played += 1;
    }
    println!("{unplayed} of {played} rows did not do all that they were to");
    ensure!(unplayed * 100 <= played * UNPLAYED_PERCENT, "{unplayed} of {played} rows");
    Ok(played)
}

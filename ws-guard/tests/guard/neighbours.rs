//! Neighbours of a flooder: unharmed.
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    flood::{Bounds, flood},
    frame::Frame,
    honest,
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    stage::{PORT, Stage, WAIT, replace_bbr},
    talk::{ensure_echoed, pings, round_trip, text},
};

/// Some 20,000 pings a second: far beyond any limit, with CPU time for others.
const FLOOD: Bounds =
    Bounds { pings: 1_000_000, time: Duration::from_secs(60), pause: Duration::from_millis(25) };
/// Pace at which a talk over the limit does not take a minute.
const FAST: &str = "--pace 256KiB/s";
/// Heartbeats a window: one every 5 s is the custom, the default window 10 s.
const HEARTBEATS_A_WINDOW: u32 = 2;
/// Number of tries for comparisons of times.
const TRIES: u32 = 3;
/// Jitter: no two heartbeats are equally far apart, as on real networks.
const JITTER: [u64; 4] = [0, 30, 10, 40];

/// Run `f` while client 0 floods over a separate connection, never reading.
fn while_flooding<T>(
    stage: &Stage,
    family: Family,
    f: impl FnOnce() -> Result<T>,
) -> Result<(T, u64)> {
    let options =
        ConnectOptions { source: Some(family.client(0)), reads: false, receive_buffer: None };
    let mut flooder = Client::connect(&stage.pair.client, (family.server(), PORT).into(), options)?;
    let ended = AtomicBool::new(false);
    let (result, flooded) = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&mut flooder, FLOOD, || !ended.load(Relaxed)));
        let throttled =
            crate::stage::eventually("the flooder is throttled", || stage.is_throttled(family, 0));
        let result = throttled.and_then(|()| f());
        ended.store(true, Relaxed);
        (result, flooding.join())
    });
    let flooded = flooded.map_err(|_| anyhow!("the flooder panicked"))??;
    // The bytes left in its socket would take minutes at the pace.
    stage.guard.run("policy set --pace off")?;
    let sent = flooded.pings + u64::from(flooder.send_rest()?);
    ensure!(flooder.drain(WAIT), "the server stopped reading: {}", stage.story(&flooder));
    stage.guard.run("policy set --pace 16KiB/s")?;
    let flow = stage.flow(&flooder)?;
    ensure!(flow.pings_in == sent, "{sent} pings of {flow:?}");
    Ok((result?, sent))
}

#[test]
fn a_client_behind_another_address_never_notices() -> Result<()> {
    needs_root!();
    let stage = Stage::new(Library::TokioTungstenite, PairOptions::default(), "")?;
    let time = Duration::from_secs(3);
    for family in Family::BOTH {
        // The machine may be busy during one of the tries.
        let mut swift = false;
        for _ in 0..TRIES {
            let quiet = honest::run(&mut stage.client(family, 1)?, time, || true)?;
            let mut honest = stage.client(family, 1)?;
            let (served, flooded) =
                while_flooding(&stage, family, || honest::run(&mut honest, time, || true))?;
            println!("{family:?}: quiet {quiet:?}, with {flooded} pings from elsewhere {served:?}");
            ensure!(served.lost == 0 && served.messages > 10, "{served:?}");
            ensure!(served.pongs == served.pings && served.pings > 0, "{served:?}");
            swift = served.p99 < quiet.p99 * 10;
            if swift {
                break;
            }
        }
        ensure!(swift, "{family:?}: late by ten times in each of {TRIES} tries");
        ensure!(!stage.is_throttled(family, 1)?);
        ensure!(stage.source(family, 1)?.defused_total == 0);
    }
    stage.finish_one().map(drop)
}

#[test]
fn a_connection_of_the_same_address_keeps_its_messages() -> Result<()> {
    needs_root!();
    let stage = Stage::new(Library::Gorilla, PairOptions::default(), FAST)?;
    for family in Family::BOTH {
        let mut second = stage.client(family, 0)?;
        let (sent, _) = while_flooding(&stage, family, || {
            let mut sent = Vec::new();
            for n in 0..100u64 {
                let message = text(n as usize * 40, n);
                // Pings over the limit between them, which are changed on the way.
                let mut frames = pings(n, 3);
                frames.push(Frame::text(&message));
                second.send(&frames, &Cut::Every(97))?;
                sent.push(message.into_bytes());
            }
            round_trip(&mut second, "the last")?;
            sent.push(b"the last".to_vec());
            let wanted = sent.len() as u64;
            ensure!(second.wait(WAIT, |r| r.messages == wanted), "{}", second.received().messages);
            Ok(sent)
        })?;
        ensure_echoed(&second, &sent)?;
    }
    stage.finish_one().map(drop)
}

/// Check that heartbeats are answered while another connection's pings are not.
fn keeps_its_pongs(jitter: &[u64]) -> Result<()> {
    let window = Duration::from_secs(2);
    let words = format!("--window-seconds {}", window.as_secs());
    let stage = Stage::new(Library::TokioTungstenite, PairOptions::default(), &words)?;
    replace_bbr(&stage.pair)?;
    for family in Family::BOTH {
        let mut neighbour = stage.client(family, 0)?;
        let (sent, _) = while_flooding(&stage, family, || {
            let start = Instant::now();
            for n in 0..8u32 {
                let late = Duration::from_millis(jitter[n as usize % jitter.len()]);
                let due = window / HEARTBEATS_A_WINDOW * n + late;
                thread::sleep(due.saturating_sub(start.elapsed()));
                neighbour.send(&pings(n.into(), 1), &Cut::Whole)?;
                neighbour.wait(window / 4, |r| r.pongs > n.into());
            }
            Ok(neighbour.sent().pings)
        })?;
        let answered = crate::talk::answered(&neighbour);
        ensure!(
            answered.iter().copied().eq(0..sent),
            "{family:?}: of {sent} heartbeats only {answered:?} were answered"
        );
        ensure!(stage.flow(&neighbour)?.defused == 0);
    }
    stage.finish_one().map(drop)
}

#[test]
fn a_neighbour_behind_the_same_address_keeps_its_pongs() -> Result<()> {
    needs_root!();
    // As evenly as the machine can.
    keeps_its_pongs(&[0])
}

#[test]
fn a_neighbour_whose_timer_jitters_keeps_its_pongs() -> Result<()> {
    needs_root!();
    keeps_its_pongs(&JITTER)
}

//! Bursts slightly less than a window apart: the guard's clock advances in steps.
use std::{
    hint, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    attacker::{Attacker, pings},
    row::PORT,
    stage::{LIMIT, Open},
};

const WINDOW: Duration = Duration::from_secs(1);
/// Lead of the second burst over a full window after the first:
/// less than a step of clocks that advance 250 times a second, and enough for its pongs to arrive
/// before that window is over.
const EARLY: Duration = Duration::from_millis(3);
const ATTACKERS: u8 = 12;
/// Pause between two attackers, so that they do not disturb each other.
const BETWEEN: Duration = Duration::from_millis(30);

/// Wait until `due`, to the microsecond.
fn until(due: Instant) {
    let nap = Duration::from_millis(1);
    thread::sleep(due.saturating_duration_since(Instant::now()).saturating_sub(nap));
    while Instant::now() < due {
        hint::spin_loop();
    }
}

/// Two bursts in less than a window.
/// More pongs than the limit in that time, sending included, mean that more pings passed.
#[test]
fn bursts_a_little_less_than_a_window_apart() -> Result<()> {
    needs_root!();
    let options = PairOptions { clients: 250, offloads: false, ..PairOptions::default() };
    let stage = Open::new(options)?.guard_with("xdp-native", "--window-seconds 1")?;
    let mut peers = Vec::new();
    for n in 0..ATTACKERS {
        let (library, family) = (Library::TokioTungstenite, Family::V4);
        let attacker = Attacker { stage: &stage, library, family, n, port: PORT };
        peers.push((attacker.connect()?, Instant::now()));
    }
    let burst = pings(LIMIT as usize);
    for (tcp, began) in &mut peers {
        *began = Instant::now();
        tcp.push(&burst)?;
        until(*began + BETWEEN);
    }
    let (mut leaks, mut passed) = (Vec::new(), 0);
    for (tcp, began) in &mut peers {
        until(*began + WINDOW - EARLY);
        tcp.push(&burst)?;
        tcp.wait((*began + WINDOW).saturating_duration_since(Instant::now()), |tcp| {
            tcp.pongs > LIMIT
        })?;
        let elapsed = began.elapsed();
        if elapsed < WINDOW && tcp.pongs > LIMIT {
            leaks.push(format!("{} pongs in {elapsed:?}", tcp.pongs));
        }
        passed += u32::from(tcp.pongs >= LIMIT);
    }
    for (tcp, _) in &mut peers {
        tcp.finish()?;
    }
    stage.finish()?;
    ensure!(passed > 0, "no burst was answered");
    ensure!(leaks.is_empty(), "{leaks:?}");
    Ok(())
}

//! `cargo xtask demo`: a flood against a server that somebody else wrote, without and with the guard.
//!
//! ```text
//!   client namespace                          server namespace
//!   honest   10.77.0.2  ─┐                ┌─▶ echo server on another project's library
//!   flooder  10.77.0.1  ─┴─ veth0 ─ veth0 ┴── ws-guard run --interface veth0
//! ```
mod guard;
mod interrupt;
mod round;
mod table;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use ws_guard_testkit::{netns, servers::Library, skip_reason, tools};

use crate::{setup, step};
use round::{Figures, Plan};

/// Growth at which the flood against an unguarded server is stopped, in bytes.
const MAX_GROWTH: u64 = 1_500_000_000;
/// Growth of a guarded server that is still nothing, in bytes: buffers of its libraries.
const HARMLESS: u64 = 32 << 20;

#[derive(clap::Args)]
pub struct Args {
    /// Whose server is attacked: tokio-tungstenite, python, ws or gorilla
    #[arg(long, default_value = "tokio-tungstenite", value_name = "LIBRARY")]
    server: Library,
    /// Seconds that each of the two rounds lasts
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(3..=20))]
    seconds: u64,
    /// Leave guard, server and clients running, a slow flood included, until Enter or Ctrl-C
    #[arg(long)]
    interactive: bool,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("the demonstration {}", reason.replace("test", "demo"));
    }
    setup::demo(args.server)?;
    step::run("building the server to attack", tools::build_tungstenite_echo())?;
    crate::guard::build()?;
    interrupt::watch()?;
    netns::remove_stale()?;
    if args.interactive {
        return round::interactive(args.server);
    }
    let plan = Plan {
        library: args.server,
        time: Duration::from_secs(args.seconds),
        max_growth: MAX_GROWTH,
        guarded: false,
    };
    let without = round::run(plan)?;
    interrupt::check()?;
    let with = round::run(Plan { guarded: true, ..plan })?;
    interrupt::check()?;
    println!("\n{}\n", table::render(&without, &with, args.server));
    let wrong = wrong(&without, &with);
    ensure!(wrong.is_empty(), "the protection did not work:\n- {}", wrong.join("\n- "));
    println!("Protected: {}", table::verdict(&without, &with));
    Ok(())
}

/// What is not as it has to be under the guard; empty when all is.
fn wrong(without: &Figures, with: &Figures) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |holds: bool, text: String| {
        if !holds {
            wrong.push(text);
        }
    };
    let limit = guard::MAX_PING_RATE;
    let Some(guard) = with.guard else { return vec!["the guard gave no figures".to_owned()] };
    expect(guard.throttled, "the flooder was not throttled".to_owned());
    expect(
        guard.pings == with.flooded.pings,
        format!("the flooder sent {} pings, the guard saw {}", with.flooded.pings, guard.pings),
    );
    expect(
        guard.defused == guard.pings.saturating_sub(limit),
        format!("{} of {} pings were defused, past a limit of {limit}", guard.defused, guard.pings),
    );
    let honest = with.served.pings;
    expect(
        with.totals.is_some_and(|totals| totals.pings <= limit + honest),
        format!("the server was to see at most {limit} + {honest} pings: {:?}", with.totals),
    );
    expect(with.served.lost == 0, format!("the honest client lost {} messages", with.served.lost));
    expect(
        with.served.pongs == with.served.pings,
        format!("the honest client got {} of {} pongs", with.served.pongs, with.served.pings),
    );
    expect(
        with.growth < HARMLESS.max(without.growth / 4),
        format!("the server grew by {} bytes all the same", with.growth),
    );
    wrong
}

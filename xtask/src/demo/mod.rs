//! `cargo xtask demo`: a third-party server without a flood, with one, and guarded.
//! It fails unless the guard restores the figures without a flood.
//!
//! ```text
//!   client namespace                          server namespace
//!   honest   10.77.0.2  ─┐                ┌─▶ echo server on another project's library
//!   flooder  10.77.0.1  ─┴─ veth0 ─ veth0 ┴── ws-guard run --interface veth0
//! ```
mod guard;
mod picture;
mod round;
mod table;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use ws_guard_testkit::{netns, servers::Library, skip_reason, tools};

use crate::{guard::Profile, interrupt, setup, step};
use round::{Figures, Kind, Plan};

/// Growth at which the flood against an unguarded server is stopped, in bytes.
const MAX_GROWTH: u64 = 1_500_000_000;
/// Growth of a guarded server that counts as none, in bytes: library buffers.
const HARMLESS: u64 = 32 << 20;

/// Permitted deviation from the figure without a flood: a factor and an addend.
/// The goals are stricter, and `bench flood` measures them over many rounds. Here one round has to
/// suffice, on a machine that may be busy and where flooder, clients and server share the CPUs. The
/// factor is for large figures, the addend for small ones.
struct Margin {
    times: f64,
    more: f64,
}

/// Margin in milliseconds.
/// A median moves with the load of the whole machine, not with single delays: a busy one turns 0.3
/// ms into some hundreds of microseconds more.
const P50: Margin = Margin { times: 2.0, more: 2.0 };
/// Margin in milliseconds.
/// One in a hundred messages may each have waited for whole turns of other programs.
const P99: Margin = Margin { times: 3.0, more: 25.0 };
/// Margin in CPU seconds a second.
/// CPU time depends on other processes only by colder caches.
const CPU: Margin = Margin { times: 2.0, more: 0.02 };
/// Pings a second that may reach the server:
/// eight times the default pace, and a hundredth of a server's reads. Unlike times this does not
/// depend on how busy the machine is.
const THROUGH: f64 = 1_000.0;

/// A figure that others feel: its name, its margin, and its accessor.
type Felt = (&'static str, &'static Margin, fn(&Figures) -> f64);

impl Margin {
    fn holds(&self, calm: f64, guarded: f64) -> bool {
        guarded <= calm * self.times + self.more
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// Whose server is attacked: tokio-tungstenite, python, ws or gorilla
    #[arg(long, default_value = "tokio-tungstenite", value_name = "LIBRARY")]
    server: Library,
    /// Seconds that each of the three rounds lasts
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(3..=20))]
    seconds: u64,
    /// Leave guard, server and clients running, a slow flood included, until Enter or Ctrl-C
    #[arg(long)]
    interactive: bool,
    /// Draw the three rounds as an SVG picture
    #[arg(long, value_name = "FILE", conflicts_with = "interactive")]
    picture: Option<PathBuf>,
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("the demonstration {}", reason.replace("test", "demo"));
    }
    setup::demo(args.server)?;
    step::run("building the server to attack", tools::build_tungstenite_echo())?;
    Profile::Dev.build()?;
    interrupt::watch()?;
    netns::remove_stale()?;
    if args.interactive {
        return round::interactive(args.server);
    }
    let plan = Plan {
        library: args.server,
        time: Duration::from_secs(args.seconds),
        max_growth: MAX_GROWTH,
        kind: Kind::Calm,
    };
    let round = |kind| {
        let figures = round::run(Plan { kind, ..plan })?;
        interrupt::check()?;
        anyhow::Ok(figures)
    };
    let rounds = [round(Kind::Calm)?, round(Kind::Flood)?, round(Kind::Guarded)?];
    println!("\n{}\n", table::render(&rounds, args.server));
    if let Some(path) = &args.picture {
        picture::write(path, &rounds, args.server)?;
    }
    let wrong = wrong(&rounds);
    ensure!(wrong.is_empty(), "the protection did not work:\n- {}", wrong.join("\n- "));
    println!("Protected: {}", table::verdict(&rounds));
    Ok(())
}

/// Return the failures under the guard; empty when there are none.
fn wrong([calm, without, with]: &[Figures; 3]) -> Vec<String> {
    let mut wrong = not_brought_back(calm, with);
    let mut expect = |holds: bool, text: String| {
        if !holds {
            wrong.push(text);
        }
    };
    let limit = guard::MAX_PING_RATE;
    let Some(guard) = with.guard else { return vec!["the guard gave no figures".to_owned()] };
    expect(guard.throttled, "the flooder was not throttled".to_owned());
    // Pings still in flight may have been seen or not.
    let (taken, sent) = (with.taken, with.flooded.pings);
    expect(
        (taken..=sent).contains(&guard.pings),
        format!("the server took {taken} of {sent} pings, the guard saw {}", guard.pings),
    );
    expect(
        guard.defused == guard.pings.saturating_sub(limit),
        format!("{} of {} pings were defused, past a limit of {limit}", guard.defused, guard.pings),
    );
    let through = taken as f64 / with.flooded.time.as_secs_f64();
    expect(
        through <= THROUGH,
        format!("{through:.0} pings a second got through, more than {THROUGH:.0}: not held back"),
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

/// Return the remaining effects of the flood on the honest client and the server.
fn not_brought_back(calm: &Figures, with: &Figures) -> Vec<String> {
    let (p50, p99) = (table::p50_ms, table::p99_ms);
    let figures: [Felt; 3] = [
        ("the honest client's p50 is (ms)", &P50, p50),
        ("the honest client's p99 is (ms)", &P99, p99),
        ("the server takes CPU seconds a second:", &CPU, |figures| figures.cpu),
    ];
    let far = figures.iter().filter(|(_, margin, of)| !margin.holds(of(calm), of(with)));
    far.map(|(what, margin, of)| {
        format!(
            "{what} {:.2} with ws-guard, {:.2} without a flood: more than {} times and {} more",
            of(with),
            of(calm),
            margin.times,
            margin.more
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_busy_machine_does_is_within_the_margins_and_a_flood_is_not() {
        // Calm and guarded rounds of a machine with other work, and a server that reads the flood.
        assert!(P50.holds(0.3, 0.9) && P99.holds(1.0, 20.0) && CPU.holds(0.02, 0.05));
        assert!(P50.holds(5.0, 9.0) && P99.holds(40.0, 110.0));
        assert!(!P50.holds(0.46, 14.0) && !P99.holds(0.68, 32.5) && !CPU.holds(0.02, 0.6));
    }
}

//! Fan-out: three servers, 900 clients, 300 topics.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use ws_guard_testkit::usage::Usage;

use super::{
    Args,
    servers::{Fleet, Servers, Sharing},
};
use crate::bench::median;

const SERVERS: usize = 3;
const CLIENTS: &str = "900";
const TOPICS: &str = "300";
const PATIENCE: Duration = Duration::from_secs(60);

/// The load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// The same for all.
    Same,
    /// Publications follow their answers.
    Full,
}

/// Some servers under a load; medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub who: Sharing,
    pub load: Load,
    pub deliveries_per_second: f64,
    /// Per second of the servers' CPU time.
    pub deliveries_per_cpu_second: f64,
    /// Of Redis, seconds per second.
    pub redis: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Deliveries that were made, of those that there should be.
    pub delivered: f64,
}

#[derive(Deserialize)]
struct Counted {
    published: f64,
    delivered: f64,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
}

struct Sample {
    counted: Counted,
    servers: f64,
    redis: f64,
}

pub fn measure(servers: &Servers, args: &Args) -> Result<Vec<Figures>> {
    let cases = [Load::Same, Load::Full].into_iter();
    let cases: Vec<_> = cases.flat_map(|load| servers.all().map(move |who| (load, who))).collect();
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        eprintln!("  fan-out, round {round} of {}", args.rounds);
        for ((load, who), samples) in cases.iter().zip(&mut samples) {
            let sample = sample(servers, args, *who, *load);
            samples.push(sample.with_context(|| format!("{}, {load:?}", who.name()))?);
        }
    }
    let figures = cases.into_iter().zip(samples);
    Ok(figures.map(|((load, who), samples)| figures_of(who, load, &samples)).collect())
}

fn sample(servers: &Servers, args: &Args, who: Sharing, load: Load) -> Result<Sample> {
    let fleet = servers.fleet(who, SERVERS)?;
    let (ports, seconds) = (fleet.ports(), args.seconds.to_string());
    let rate = if load == Load::Same { args.rate } else { 0.0 }.to_string();
    let mut words = vec!["fan-out", who.name()];
    words.extend(ports.iter().map(String::as_str));
    words.extend(["--clients", CLIENTS, "--topics", TOPICS]);
    words.extend(["--rate", &rate, "--seconds", &seconds]);
    let load = servers.programs.load(&words)?;
    let says = |word: &str| load.wait_for(PATIENCE, |line| (line == word).then_some(()));
    says("started")?;
    let before = used(&fleet)?;
    says("ended")?;
    let after = used(&fleet)?;
    let counted = load.wait_for(PATIENCE, |line| serde_json::from_str(line).ok())?;
    Ok(Sample { counted, servers: after.0 - before.0, redis: after.1 - before.1 })
}

/// CPU seconds of the servers, and of Redis.
fn used(fleet: &Fleet) -> Result<(f64, f64)> {
    let mut all = 0.0;
    for server in &fleet.servers {
        all += Usage::of(server.process.pid())?.cpu.as_secs_f64();
    }
    Ok((all, Usage::of(fleet.redis.pid())?.cpu.as_secs_f64()))
}

fn figures_of(who: Sharing, load: Load, samples: &[Sample]) -> Figures {
    let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
    Figures {
        who,
        load,
        deliveries_per_second: of(|s| s.counted.delivered / s.counted.seconds),
        deliveries_per_cpu_second: of(|s| s.counted.delivered / s.servers),
        redis: of(|s| s.redis / s.counted.seconds),
        p50_ms: of(|s| s.counted.p50_ms),
        p99_ms: of(|s| s.counted.p99_ms),
        delivered: of(|s| s.counted.delivered / (3.0 * s.counted.published)),
    }
}

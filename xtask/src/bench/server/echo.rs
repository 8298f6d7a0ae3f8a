//! Echoes: messages a second, and their cost for the server.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use ws_guard_testkit::usage::Usage;

use super::{
    Args,
    peers::{Programs, Who},
};
use crate::bench::median;

/// Payload in bytes, and number of messages in flight on a connection.
const CASES: [(usize, usize); 6] =
    [(16, 1), (16, 16), (1024, 1), (1024, 16), (64 * 1024, 1), (64 * 1024, 16)];

/// Return the required factor over the best of the others.
fn limit(payload: usize) -> f64 {
    if payload == 1024 { 1.3 } else { 1.0 }
}

/// Results of a server in a case.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub payload: usize,
    pub window: usize,
    pub who: Who,
    /// Medians over the rounds.
    pub messages_per_second: f64,
    pub cpu_seconds_per_million: f64,
    /// Ratios of ws-guard, medians over the rounds:
    /// its messages a second to the best other's, and the CPU time of the most frugal other to its
    /// own.
    pub speed: Option<f64>,
    pub economy: Option<f64>,
    pub limit: Option<f64>,
    rounds: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    messages_per_second: f64,
    cpu_seconds_per_million: f64,
}

/// Output of the load generator.
#[derive(Deserialize)]
struct Load {
    messages: u64,
    seconds: f64,
}

pub fn measure(programs: &Programs, args: &Args) -> Result<Vec<Figures>> {
    let mut samples = [const { [const { Vec::new() }; Who::SERVERS.len()] }; CASES.len()];
    for round in 1..=args.rounds {
        eprintln!("  echo, round {round} of {}", args.rounds);
        for ((payload, window), samples) in CASES.into_iter().zip(&mut samples) {
            for (who, samples) in Who::SERVERS.into_iter().zip(samples) {
                let sample = sample(programs, args, who, payload, window)
                    .with_context(|| format!("{}, {payload} bytes, window {window}", who.name()))?;
                samples.push(sample);
            }
        }
    }
    let cases = CASES.into_iter().zip(samples);
    Ok(cases.flat_map(|((payload, window), samples)| case(payload, window, samples)).collect())
}

fn sample(
    programs: &Programs,
    args: &Args,
    who: Who,
    payload: usize,
    window: usize,
) -> Result<Sample> {
    let server = programs.serve(who, false, &[])?;
    let numbers = [
        server.port.to_string(),
        payload.to_string(),
        window.to_string(),
        args.connections.to_string(),
        args.seconds.to_string(),
    ];
    let [port, payload, window, connections, seconds] = numbers.each_ref().map(String::as_str);
    let load = programs.load(&[
        "echo",
        port,
        "--payload",
        payload,
        "--window",
        window,
        "--connections",
        connections,
        "--seconds",
        seconds,
    ])?;
    let patience = Duration::from_secs_f64(args.seconds) + Duration::from_secs(10);
    load.wait_for(patience, |line| (line == "started").then_some(()))?;
    let before = Usage::of(server.process.pid())?.cpu;
    let done: Load = load.wait_for(patience, |line| serde_json::from_str(line).ok())?;
    let cpu = Usage::of(server.process.pid())?.cpu - before;
    Ok(Sample {
        messages_per_second: done.messages as f64 / done.seconds,
        cpu_seconds_per_million: cpu.as_secs_f64() / done.messages as f64 * 1e6,
    })
}

/// Return the figures of one case, ws-guard first.
fn case(payload: usize, window: usize, samples: [Vec<Sample>; Who::SERVERS.len()]) -> Vec<Figures> {
    let [ours, others @ ..] = &samples;
    let against = |round: usize, best: fn(f64, f64) -> f64, value: fn(&Sample) -> f64| {
        others.iter().map(|samples| value(&samples[round])).reduce(best).unwrap_or(f64::NAN)
    };
    let speed = median(ours.iter().enumerate().map(|(round, sample)| {
        sample.messages_per_second / against(round, f64::max, |s| s.messages_per_second)
    }));
    let economy = median(ours.iter().enumerate().map(|(round, sample)| {
        against(round, f64::min, |s| s.cpu_seconds_per_million) / sample.cpu_seconds_per_million
    }));
    let figures = |(who, rounds): (Who, &Vec<Sample>)| Figures {
        payload,
        window,
        who,
        messages_per_second: median(rounds.iter().map(|sample| sample.messages_per_second)),
        cpu_seconds_per_million: median(rounds.iter().map(|s| s.cpu_seconds_per_million)),
        speed: (who == Who::WsGuard).then_some(speed),
        economy: (who == Who::WsGuard).then_some(economy),
        limit: (who == Who::WsGuard).then_some(limit(payload)),
        rounds: rounds.clone(),
    };
    Who::SERVERS.into_iter().zip(&samples).map(figures).collect()
}

//! How each fault is inflicted on the fleet, and undone.
use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use ws_guard_testkit::{
    netns::INTERFACE,
    path::{FAR, Impairment, NEAR},
};

use super::{
    faults::{Fault, Planned},
    topology::{Fleet, Node},
};
use crate::interrupt;

/// How far a clock jumps, in seconds.
const JUMP: i64 = 3600;
/// How long Redis runs, and stops, while it is slow.
const SLOW: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(150));

/// What the path does to packets: each fault adds to it.
pub struct Weather {
    all: Impairment,
    /// Whether the kernel delays and loses them, and the path's program only makes some late.
    netem: bool,
}

impl Weather {
    pub fn new(fleet: &Fleet) -> Weather {
        let netem = netem(fleet, NEAR, "delay 0ms").is_ok();
        eprintln!("  packets are delayed by {}", if netem { "netem" } else { "a program" });
        Weather { all: Impairment::default(), netem }
    }

    fn set(&mut self, fleet: &Fleet, planned: &Planned, on: bool) -> Result<()> {
        let ms = |ms: u64| Duration::from_millis(if on { ms } else { 0 });
        let thousandths = |n: u32| if on { n } else { 0 };
        let all = &mut self.all;
        match planned.fault {
            Fault::Delay => (all.delay, all.jitter) = (ms(100), ms(20)),
            Fault::Loss => all.lost = thousandths(20),
            Fault::Reorder => (all.late, all.lateness) = (thousandths(100), ms(50)),
            _ => return Ok(()),
        }
        (all.both, all.seed) = (true, planned.seed & 0xffff_ffff);
        let mut program = *all;
        if self.netem {
            let (delay, jitter) = (all.delay.as_millis(), all.jitter.as_millis());
            let lost = f64::from(all.lost) / 10.0;
            let words = format!("delay {delay}ms {jitter}ms loss {lost}% limit 100000");
            for end in [NEAR, FAR] {
                netem(fleet, end, &words)?;
            }
            (program.delay, program.jitter) = (Duration::ZERO, Duration::ZERO);
            program.lost = 0;
        }
        fleet.path.set(program);
        Ok(())
    }

    /// The delay holds from the beginning to the end.
    pub fn begin(&mut self, fleet: &Fleet, planned: &Planned) -> Result<()> {
        self.set(fleet, planned, true)
    }
}

/// Let the kernel treat what leaves the path at this end.
fn netem(fleet: &Fleet, end: &str, words: &str) -> Result<()> {
    let mut tc = Command::new("tc");
    tc.args(["-netns", fleet.path.middle.name(), "qdisc", "replace", "dev", end, "root", "netem"]);
    let output = tc.args(words.split_whitespace()).output().context("running tc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc ended with {}: {}", output.status, said.trim());
    Ok(())
}

fn node<'a>(fleet: &'a mut Fleet, planned: &Planned) -> Result<&'a mut Node> {
    let number = planned.server.context("a fault of a server without one")?;
    fleet.nodes.get_mut(number).context("a fault of a server that there is not")
}

/// Inflict a fault, wait for its time, and undo it.
pub fn inflict(fleet: &mut Fleet, weather: &mut Weather, planned: &Planned) -> Result<()> {
    let pause = || wait(Duration::from_secs_f64(planned.lasts));
    match planned.fault {
        Fault::Delay => {}
        Fault::Loss | Fault::Reorder => {
            weather.set(fleet, planned, true)?;
            pause();
            weather.set(fleet, planned, false)?;
        }
        Fault::Kill => ended(fleet, planned, Signal::SIGKILL, pause)?,
        Fault::Drain => ended(fleet, planned, Signal::SIGTERM, pause)?,
        Fault::Stop => {
            let server = &node(fleet, planned)?.server;
            server.signal(Signal::SIGSTOP)?;
            pause();
            server.signal(Signal::SIGCONT)?;
        }
        Fault::RedisKill => {
            fleet.redis.signal(Signal::SIGKILL)?;
            fleet.redis.terminate()?;
            pause();
            fleet.redis_again()?;
        }
        Fault::RedisPartition => {
            let link = |state| fleet.redis_namespace.ip(&format!("link set {INTERFACE} {state}"));
            link("down")?;
            pause();
            link("up")?;
            fleet.redis_namespace.ip("route replace default via 10.78.0.1")?;
        }
        Fault::RedisSlow => slow(fleet, planned)?,
        Fault::GuardKill | Fault::GuardUpgrade => {
            let how = match planned.fault {
                Fault::GuardKill => Signal::SIGKILL,
                _ => Signal::SIGTERM,
            };
            let guard = &mut node(fleet, planned)?.guard;
            guard.end(how)?;
            pause();
            guard.again()?;
        }
        Fault::NginxReload => fleet.nginx.signal(Signal::SIGHUP)?,
        Fault::Clock => {
            // Ahead or behind, as drawn.
            let jump = if planned.seed.is_multiple_of(2) { JUMP } else { -JUMP };
            node(fleet, planned)?.set_clock(jump)?;
            pause();
            node(fleet, planned)?.set_clock(0)?;
        }
        Fault::DiskFull => {
            node(fleet, planned)?.fill_disk(true)?;
            pause();
            node(fleet, planned)?.fill_disk(false)?;
        }
    }
    Ok(())
}

/// End a server, and start it again.
fn ended(fleet: &mut Fleet, planned: &Planned, how: Signal, pause: impl Fn()) -> Result<()> {
    let server = &mut node(fleet, planned)?.server;
    server.signal(how)?;
    server.terminate()?;
    pause();
    fleet.server_again(planned.server.context("a fault of a server without one")?)
}

fn slow(fleet: &Fleet, planned: &Planned) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(planned.lasts);
    while Instant::now() < end && !interrupt::stopped() {
        fleet.redis.signal(Signal::SIGSTOP)?;
        thread::sleep(SLOW.1);
        fleet.redis.signal(Signal::SIGCONT)?;
        thread::sleep(SLOW.0);
    }
    Ok(())
}

/// Wait, unless it is to end.
pub fn wait(time: Duration) {
    let end = Instant::now() + time;
    while !interrupt::stopped() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

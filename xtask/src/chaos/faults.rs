//! What is done to the fleet, and when: drawn from a seed, or read from the log of an earlier run.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Seconds before the first fault, and after the last one.
const BEFORE: f64 = 5.0;
const AFTER: f64 = 12.0;
/// Seconds from one fault's end to the next one's beginning, at least and at most.
const REST: (f64, f64) = (5.0, 9.0);

/// A kind of fault.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// 100 ± 20 ms each way between clients and nginx, all the time
    Delay,
    /// One in fifty segments is lost, either way
    Loss,
    /// One in ten segments comes 50 ms late
    Reorder,
    /// SIGKILL of a server, which is started again
    Kill,
    /// SIGSTOP of a server, and SIGCONT
    Stop,
    /// SIGTERM of a server, which drains and is started again
    Drain,
    /// SIGKILL of Redis, which is started again with what it had
    RedisKill,
    /// Redis cannot be reached
    RedisPartition,
    /// Redis stops for 150 of every 200 ms
    RedisSlow,
    /// SIGKILL of a guard's daemon, which is started again
    GuardKill,
    /// A guard's daemon ends in order, and a new one takes over
    GuardUpgrade,
    /// nginx reads its configuration again
    NginxReload,
    /// The clock of a server jumps by an hour, and back
    Clock,
    /// The disk of a server's access log is full
    DiskFull,
}

impl Fault {
    /// How often it is in a round, and its shortest and longest time in seconds.
    fn shape(self) -> (usize, f64, f64) {
        match self {
            Fault::Delay => (0, 0.0, 0.0),
            Fault::Kill => (3, 1.0, 4.0),
            Fault::Drain => (2, 1.0, 3.0),
            Fault::Stop => (1, 1.0, 12.0),
            Fault::Loss | Fault::Reorder => (1, 5.0, 10.0),
            Fault::RedisKill => (1, 0.5, 3.0),
            Fault::RedisPartition => (1, 1.0, 4.0),
            Fault::RedisSlow => (1, 3.0, 6.0),
            Fault::GuardKill | Fault::GuardUpgrade => (1, 0.5, 2.0),
            Fault::NginxReload => (1, 0.0, 0.0),
            Fault::Clock | Fault::DiskFull => (1, 4.0, 8.0),
        }
    }

    /// Whether it is done to one server.
    fn has_target(self) -> bool {
        use Fault::*;
        matches!(self, Kill | Stop | Drain | GuardKill | GuardUpgrade | Clock | DiskFull)
    }

    /// Whether the server loses its clients.
    fn empties(self) -> bool {
        matches!(self, Fault::Kill | Fault::Stop | Fault::Drain)
    }

    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// A fault that is to be inflicted, or was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub fault: Fault,
    /// Number of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<usize>,
    /// Seconds since the clients are there.
    pub at: f64,
    /// Seconds that it lasts.
    pub lasts: f64,
    /// What the choices within it are drawn from.
    pub seed: u64,
}

/// What a plan is drawn from.
pub struct Wanted<'a> {
    pub seed: u64,
    pub minutes: f64,
    pub servers: usize,
    /// All if empty.
    pub only: &'a [Fault],
}

/// Faults in the order of time; the same for the same wishes.
pub fn plan(wanted: &Wanted) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(wanted.seed);
    let only: BTreeSet<Fault> = wanted.only.iter().copied().collect();
    let kinds =
        Fault::value_variants().iter().filter(|fault| only.is_empty() || only.contains(fault));
    let round: Vec<Fault> =
        kinds.flat_map(|fault| std::iter::repeat_n(*fault, fault.shape().0)).collect();
    let end = wanted.minutes * 60.0;
    let mut faults = Vec::new();
    if only.is_empty() || only.contains(&Fault::Delay) {
        let seed = random.u64(..);
        faults.push(Planned { fault: Fault::Delay, server: None, at: 0.0, lasts: end, seed });
    }
    // Servers lose their clients in turn, so that each has some when its turn comes.
    let (mut at, mut turn, mut left) = (BEFORE, random.usize(..wanted.servers), Vec::new());
    while !round.is_empty() {
        if left.is_empty() {
            left.clone_from(&round);
            random.shuffle(&mut left);
        }
        let Some(fault) = left.pop() else { break };
        let (_, shortest, longest) = fault.shape();
        // To tenths of a second, which a log shows as they are.
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0;
        let lasts = tenths(shortest + random.f64() * (longest - shortest));
        if at + lasts + AFTER > end {
            break;
        }
        let server = fault.has_target().then(|| random.usize(..wanted.servers));
        let server = if fault.empties() { Some(turn) } else { server };
        if fault.empties() {
            turn = (turn + 1) % wanted.servers;
        }
        faults.push(Planned { fault, server, at: tenths(at), lasts, seed: random.u64(..) });
        at += lasts + REST.0 + random.f64() * (REST.1 - REST.0);
    }
    faults
}

/// Write the log of a run's faults: a line of JSON each.
pub fn write(path: &Path, faults: &[Planned]) -> Result<()> {
    let lines = faults.iter().map(|fault| Ok(serde_json::to_string(fault)? + "\n"));
    let text: String = lines.collect::<Result<_>>()?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The faults in such a log.
///
/// # Errors
/// A line that is no fault, or one for a server that there is not.
pub fn read(path: &Path, servers: usize) -> Result<Vec<Planned>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let faults = text.lines().enumerate().map(|(number, line)| {
        let place = || format!("{}, line {}", path.display(), number + 1);
        let fault: Planned = serde_json::from_str(line).with_context(place)?;
        let there = fault.server.is_none_or(|server| server < servers);
        ensure!(there, "{}: there are {servers} servers; give --servers", place());
        ensure!(
            fault.server.is_some() == fault.fault.has_target(),
            "{}: {} is done to {}",
            place(),
            fault.fault.name(),
            if fault.fault.has_target() { "a server: name it" } else { "no server" }
        );
        let sound = (0.0..1e6).contains(&fault.at) && (0.0..1e6).contains(&fault.lasts);
        ensure!(sound, "{}: a time that is none", place());
        Ok(fault)
    });
    faults.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { seed: 7, minutes: 10.0, servers: 3, only: &[] };

    #[test]
    fn a_seed_is_a_plan_and_a_plan_survives_its_log() {
        let faults = plan(&WANTED);
        assert_eq!(faults, plan(&WANTED));
        assert_ne!(faults, plan(&Wanted { seed: 8, ..WANTED }));
        let kinds: BTreeSet<Fault> = faults.iter().map(|planned| planned.fault).collect();
        assert_eq!(kinds.len(), Fault::value_variants().len(), "{kinds:?}");
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), &faults).unwrap();
        assert_eq!(read(file.path(), 3).unwrap(), faults);
        assert!(read(file.path(), 1).unwrap_err().to_string().contains("--servers"));
    }

    #[test]
    fn faults_follow_one_another_and_end_before_the_run_does() {
        let faults = plan(&Wanted { only: &[Fault::Kill, Fault::Stop], ..WANTED });
        assert!(faults.len() > 20, "{}", faults.len());
        for pair in faults.windows(2) {
            assert!(pair[0].at + pair[0].lasts + REST.0 <= pair[1].at + 0.1, "{pair:?}");
            assert_ne!(pair[0].server, pair[1].server);
        }
        assert!(faults.iter().all(|fault| fault.at + fault.lasts + AFTER <= 600.1));
        assert!(plan(&Wanted { only: &[Fault::Delay], ..WANTED }).len() == 1);
    }
}

//! The loop over cases: how many, from which seed, and how to run a failing one again.

use fastrand::Rng;

/// Prints how to run a failing case again.
struct Case {
    seed: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to run this case again: WS_GUARD_SEED={} WS_GUARD_CASES=1", self.seed);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Run a case `ordinary` times, or as often as `WS_GUARD_CASES` says, each with a generator of its
/// own. `WS_GUARD_SEED` is the first one's seed; without it every run is different.
pub fn cases(ordinary: u64, mut case: impl FnMut(&mut Rng)) {
    batches(ordinary, |rng| {
        case(rng);
        1
    });
}

/// The same where it takes fewer calls: each says how many cases it was.
pub fn batches(ordinary: u64, mut batch: impl FnMut(&mut Rng) -> u64) {
    let first = number("WS_GUARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let wanted = number("WS_GUARD_CASES").unwrap_or(ordinary);
    let (mut index, mut done) = (0, 0);
    while done < wanted {
        let running = Case { seed: first.wrapping_add(index) };
        done += batch(&mut Rng::with_seed(running.seed)).max(1);
        index += 1;
    }
}

/// One time in `n`.
pub fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

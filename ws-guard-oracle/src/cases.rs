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

/// How many cases are wanted: `ordinary`, or as many as `WS_GUARD_CASES` says.
pub fn wanted(ordinary: u64) -> u64 {
    number("WS_GUARD_CASES").unwrap_or(ordinary)
}

/// Run a case as often as is [`wanted`], each with a generator of its own. `WS_GUARD_SEED` is the first
/// one's seed; without it every run is different.
pub fn cases(ordinary: u64, mut case: impl FnMut(&mut Rng)) {
    batches(wanted(ordinary), |rng| {
        case(rng);
        1
    });
}

/// Run `count` cases, several in each call, which says how many.
pub fn batches(count: u64, mut batch: impl FnMut(&mut Rng) -> u64) {
    let first = number("WS_GUARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let (mut index, mut done) = (0, 0);
    while done < count {
        let running = Case { seed: first.wrapping_add(index) };
        done += batch(&mut Rng::with_seed(running.seed)).max(1);
        index += 1;
    }
}

/// One time in `n`.
pub fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

//! Loop over test cases: their number, their seed, and how to repeat a failing one.

use fastrand::Rng;

/// Test case; prints how to repeat it if it fails.
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

/// Return the number of cases: `ordinary`, or `WS_GUARD_CASES` where that is set.
pub fn wanted(ordinary: u64) -> u64 {
    number("WS_GUARD_CASES").unwrap_or(ordinary)
}

/// Run the [`wanted`] number of cases, each with its own generator.
/// `WS_GUARD_SEED` is the seed of the first; without it every run is different.
pub fn cases(ordinary: u64, mut case: impl FnMut(&mut Rng)) {
    batches(wanted(ordinary), |rng| {
        case(rng);
        1
    });
}

/// Run `count` cases, several in each call, which returns their number.
pub fn batches(count: u64, mut batch: impl FnMut(&mut Rng) -> u64) {
    let first = number("WS_GUARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let (mut index, mut done) = (0, 0);
    while done < count {
        let running = Case { seed: first.wrapping_add(index) };
        done += batch(&mut Rng::with_seed(running.seed)).max(1);
        index += 1;
    }
}

/// Return `true` one time in `n`.
pub fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

//! The verifier's work for each program, limited by a table of kernels.
//!
//! The kernel gives up at 1,000,000 instructions, and each release counts a little differently: a
//! program near the limit here may not load elsewhere.
use std::collections::BTreeMap;

use aya::util::KernelVersion;
use serde::Deserialize;

use crate::{PROGRAMS, programs};

/// Difference between measurement and table, in percent, that makes it stale.
const TOLERANCE: u32 = 15;

/// Work for one program on one kernel, in instructions.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Work {
    /// Processed when the table was written.
    instructions: u32,
    /// Maximum.
    budget: u32,
}

/// By kernel, as in `6.12`.
type Kernels = BTreeMap<String, Work>;

/// Return the table's entry for a program on this kernel.
fn known(kernels: &Kernels) -> Option<Work> {
    kernels.get(&this_kernel()).copied()
}

/// Return major and minor version of the running kernel.
fn this_kernel() -> String {
    let code = KernelVersion::current().expect("uname works").code();
    format!("{}.{}", code >> 16, code >> 8 & 0xFF)
}

/// Check `found` instructions of a program against its `kernels` in the table.
fn verdict(found: u32, kernels: &Kernels) -> Result<(), String> {
    let largest = kernels.values().map(|work| work.budget).max().unwrap_or(0);
    let Some(Work { instructions, budget }) = known(kernels) else {
        println!("Linux {} is not in the table: held by the largest budget", this_kernel());
        return if found <= largest { Ok(()) } else { Err(format!("over {largest}")) };
    };
    if found > budget {
        return Err(format!("over the budget of {budget}"));
    }
    if found.abs_diff(instructions) > instructions * TOLERANCE / 100 {
        return Err(format!("verifier.toml says {instructions}: write down what it is now"));
    }
    Ok(())
}

#[test]
fn programs_keep_to_their_budget() {
    let Some(programs) = programs() else { return };
    let table: BTreeMap<String, Kernels> =
        toml::from_str(include_str!("verifier.toml")).expect("verifier.toml is a table");
    let mut wrong = Vec::new();
    for name in PROGRAMS {
        let kernels = table.get(name).unwrap_or_else(|| panic!("verifier.toml has no {name}"));
        let found =
            programs.verified_instructions(name).unwrap_or_else(|error| panic!("{error:#}"));
        let budget = known(kernels).map_or("none".to_owned(), |work| work.budget.to_string());
        println!("{name}: {found} instructions verified, budget {budget}");
        if let Err(reason) = verdict(found, kernels) {
            wrong.push(format!("{name}: {found} instructions: {reason}"));
        }
    }
    assert!(wrong.is_empty(), "Linux {}: {}", this_kernel(), wrong.join("; "));
}

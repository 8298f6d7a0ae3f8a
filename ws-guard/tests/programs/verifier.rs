//! The verifier's work for each program, held by a budget.
//!
//! The kernel gives up at 1,000,000 instructions, and each release counts a little differently: what
//! is near the limit here may not load elsewhere.
use ws_guard_common::maps::program;

use crate::programs;

/// Instructions that a program may cost: what it costs today, and a tenth.
const BUDGETS: [(&str, u32); 4] = [
    (program::XDP_INGRESS, 390_000),
    (program::TC_INGRESS, 389_000),
    (program::TC_EGRESS, 137_000),
    (program::CONTROL, 20_300),
];

#[test]
fn programs_keep_to_their_budget() {
    let Some(programs) = programs() else { return };
    let mut over = Vec::new();
    for (name, budget) in BUDGETS {
        let found =
            programs.verified_instructions(name).unwrap_or_else(|error| panic!("{error:#}"));
        println!("{name}: {found} instructions verified, budget {budget}");
        if found > budget {
            over.push(name);
        }
    }
    assert!(over.is_empty(), "over the budget: {over:?}");
}

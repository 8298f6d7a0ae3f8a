//! The kernel programs on packets built by hand:
//! one table, played at both client-side hooks and in both address families; and their cost to the
//! verifier.
mod answers;
mod bodies;
mod case;
mod clients;
mod figures;
mod forged;
mod fragments;
mod gone;
mod handshakes;
mod headers;
mod impostors;
mod mptcp;
mod out_of_order;
mod paced;
mod pages;
mod play;
mod requests;
mod streams;
mod throttling;
mod tls;
mod tunnels;
mod unread;
mod verifier;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use case::{Case, Family};
use play::{Hook, play};
use ws_guard_common::maps::{name, program};
use ws_guard_testkit::{
    programs::{Programs, object},
    skip_reason,
};

/// Sizes of tables that rows can fill.
const SIZES: [(&str, u32); 3] = [(name::FLOWS, 3), (name::SOURCES, 2), (name::PENDING, 64)];
const PROGRAMS: [&str; 4] =
    [program::XDP_INGRESS, program::TC_INGRESS, program::TC_EGRESS, program::CONTROL];

/// Programs loaded once: the verifier takes seconds.
static LOADED: LazyLock<Mutex<Programs>> = LazyLock::new(|| {
    let programs = Programs::load(&object(), &PROGRAMS, &SIZES);
    Mutex::new(programs.unwrap_or_else(|error| panic!("{error:#}")))
});

/// Return the programs, or print why they cannot be loaded.
fn programs() -> Option<MutexGuard<'static, Programs>> {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return None;
    }
    // A failed row leaves the maps as they were; each row begins by emptying them.
    Some(LOADED.lock().unwrap_or_else(PoisonError::into_inner))
}

fn table() -> Vec<Case> {
    let mut cases = headers::cases();
    cases.extend(answers::cases());
    cases.extend(bodies::cases());
    cases.extend(fragments::cases());
    cases.extend(handshakes::cases());
    cases.extend(requests::cases());
    cases.extend(streams::cases());
    cases.extend(out_of_order::cases());
    cases.extend(throttling::cases());
    cases.extend(clients::cases());
    cases.extend(impostors::cases());
    cases.extend(forged::cases());
    cases.extend(gone::cases());
    cases.extend(tls::cases());
    cases.extend(mptcp::cases());
    cases.extend(paced::cases());
    cases.extend(figures::cases());
    cases.extend(unread::cases());
    cases
}

/// Play a table, and fail with all rows that failed.
fn play_all(programs: &mut Programs, table: &[Case], hook: Hook, family: Family) {
    let mut failures = Vec::new();
    for case in table.iter().filter(|case| case.family.is_none_or(|only| only == family)) {
        if let (Hook::Tc, Some(reason)) = (hook, case.xdp_only) {
            println!("skipped: {}: {reason}", case.name);
            continue;
        }
        if let Err(error) = play(programs, case, hook, family) {
            failures.push(format!("{}: {error:#}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} rows failed:\n{}", failures.len(), failures.join("\n"));
}

fn play_table(hook: Hook, family: Family) {
    let Some(mut programs) = programs() else { return };
    play_all(&mut programs, &table(), hook, family);
}

#[test]
fn packets_at_xdp_ipv4() {
    play_table(Hook::Xdp, Family::V4);
}

#[test]
fn packets_at_xdp_ipv6() {
    play_table(Hook::Xdp, Family::V6);
}

#[test]
fn packets_at_tc_ipv4() {
    play_table(Hook::Tc, Family::V4);
}

#[test]
fn packets_at_tc_ipv6() {
    play_table(Hook::Tc, Family::V6);
}

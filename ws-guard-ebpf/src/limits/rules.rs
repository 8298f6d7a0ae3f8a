//! Rules: limits and actions of a client's own, and how its connections over the limit are treated.

use aya_ebpf::btf_maps::lpm_trie::Key;
use ws_guard_common::{
    maps::{Client, Limits, Network, Policy, Rule, action, identity, own},
    source::{ALLOWED, millis},
};

use crate::{
    limits::{
        at_hand,
        sources::{Entry, find},
    },
    maps::{self, FLOWS, RULES},
    packet,
};

/// Longest rule that covers the client.
/// A rule for a proxy does not apply to the unidentified clients behind it.
#[inline(always)]
pub(super) fn rule(client: &Client, policy: &Policy) -> Option<&'static Rule> {
    if policy.rules == 0 || client.identity == identity::CONNECTION {
        return None;
    }
    RULES.get(&Key::new(Network::ALL_BITS, Network::of(&client.address)))
}

/// [`action`] for the current client's connections over the limit.
/// Too slow for every packet: call it only before something is done.
#[inline(always)]
pub fn action_for() -> u8 {
    ws_guard_action_for() as u8
}

/// [`action_for`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_action_for() -> u32 {
    let Some(segment) = packet::segment() else {
        return action::OBSERVE.into();
    };
    let account = match FLOWS.get_ptr(&segment.key) {
        // SAFETY: a part of a map value, which stays mapped while a program runs.
        Some(flow) => unsafe { &raw const (*flow).account },
        None => match packet::account() {
            Some(peer) => &raw const *peer,
            None => return action::OBSERVE.into(),
        },
    };
    // SAFETY: as above, and only read here.
    let account = unsafe { &*account };
    let Some(policy) = maps::policy_of(segment.key.server_port) else {
        return action::OBSERVE.into();
    };
    if let Some(source) = find(&account.source) {
        source.refresh(&account.client, policy);
        return source.action().into();
    }
    ruled(&account.client, policy).into()
}

/// Decide again how to treat the current connection, which is over the limit, after a policy or a
/// rule has changed.
#[inline(always)]
pub fn judge_again(now: u64) {
    ws_guard_judge_again(now);
}

/// [`judge_again`], as a global function, too.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_judge_again(now: u64) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return 0;
    };
    let client = &flow.account.client;
    let (action, paces) = match find(&flow.account.source) {
        Some(source) => {
            source.refresh(client, policy);
            (source.action(), source.paces())
        }
        None => (ruled(client, policy), ruled_pace(client, policy)),
    };
    flow.treat(action >= action::DROP, paces, policy.generation, millis(now));
    0
}

/// Decide how to treat the current connection, over the limit, where no table has room for its
/// source. Returns the [`action`]. A global function, as above.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn ws_guard_ruled(now: u64) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return 0;
    };
    let client = &flow.account.client;
    let (action, paces) = (ruled(client, policy), ruled_pace(client, policy));
    flow.treat(action >= action::DROP, paces, policy.generation, millis(now));
    action.into()
}

/// Check whether the rules pace the client's connections over the limit.
#[inline(always)]
fn ruled_pace(client: &Client, policy: &Policy) -> bool {
    let pace = match rule(client, policy) {
        Some(rule) if rule.flags & own::PACE != 0 => rule.limits.pace,
        _ => policy.pace,
    };
    pace > 0 && ruled(client, policy) == action::DEFUSE
}

/// [`action`] for the client's connections over the limit, by the rules alone.
#[inline(always)]
fn ruled(client: &Client, policy: &Policy) -> u8 {
    match rule(client, policy) {
        Some(rule) if rule.flags & Rule::ALLOW != 0 => action::OBSERVE,
        Some(rule) if rule.flags & own::ACTION != 0 => rule.limits.action,
        _ => policy.action,
    }
}

/// [`Entry::refresh`], once for each source after a change.
#[cold]
#[inline(never)]
pub(super) fn look_up_rules(source: Entry, client: &Client, policy: &Policy) {
    const { assert!(Rule::ALLOW == ALLOWED) };
    // Nothing is built on the stack, which has no room left here.
    match rule(client, policy) {
        Some(rule) => source.locked(
            #[inline(always)]
            |source| {
                source.limits = Limits::of(policy).with(rule);
                source.flags = source.flags & !ALLOWED | rule.flags & ALLOWED;
                source.generation = policy.generation;
            },
        ),
        None => source.locked(
            #[inline(always)]
            |source| {
                source.limits = Limits::of(policy);
                source.flags &= !ALLOWED;
                source.generation = policy.generation;
            },
        ),
    }
}

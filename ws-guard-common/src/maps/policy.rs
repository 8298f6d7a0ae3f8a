//! Policy: limits, actions, rules by prefix, protected ports, tunnels.

use core::hint::black_box;

use super::Address;
use crate::window::Rate;

/// Action on a connection over the limit.
pub mod action {
    /// Count and report.
    pub const OBSERVE: u8 = 0;
    /// Turn it into an unsolicited pong, which the server ignores (RFC 6455, 5.5.3), and pace the
    /// connection ([`crate::pace`]).
    pub const DEFUSE: u8 = 1;
    /// Drop the segments of the connection.
    pub const DROP: u8 = 2;
    /// Drop everything of the source, new connections included.
    pub const BAN: u8 = 3;

    /// The name in options and JSON.
    pub const fn name(action: u8) -> &'static str {
        match action {
            OBSERVE => "observe",
            DEFUSE => "defuse",
            DROP => "drop",
            _ => "ban",
        }
    }
}

/// [`Policy::flags`]: with a full flow table, refuse the connection (drop its 101) instead of
/// letting it through untracked.
pub const FLOWS_FAIL_CLOSED: u8 = 1 << 0;
/// [`Policy::flags`]: with a full source table, a new source's connections get only their share,
/// not the rest of a coarser prefix's limit.
pub const SOURCES_FAIL_CLOSED: u8 = 1 << 1;

/// [`Policy::flags`]: pass packets that may carry TCP to a protected port and cannot be followed:
/// first fragments, and headers that hide it.
pub const UNREADABLE_PASSES: u8 = 1 << 2;

/// [`Policy::flags`]: some source may be banned, so that each packet's source is looked up.
pub const MAY_BAN: u8 = 1 << 3;

/// [`Policy::flags`]: some class of frames has a limit, [`Policy::class_limits`].
pub const LIMITS_CLASSES: u8 = 1 << 4;

/// [`Policy::flags`]: the scope's ports speak TLS.
/// Records are followed, not frames; bytes are never changed, and segments are dropped only under
/// [`action::DROP`] or beyond a paced connection's edge.
pub const TLS: u8 = 1 << 5;

/// [`Policy::flags`]: a ban also applies to trusted proxies, and to sources with other connections.
pub const BAN_FORCED: u8 = 1 << 6;

/// Maximum of policies in force at the same time.
/// Scope 0 is that of all ports without settings of their own; each port with some has its own
/// scope, and its sources are counted separately.
pub const SCOPES: u32 = 32;

/// Policy of one scope.
/// A packet sees one policy as a whole: user space writes the set that is not in force and then
/// switches [`super::name::ACTIVE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// Pings a source may send in any window.
    pub rate: Rate,
    /// Pings a connection may send in any window of the same length. Limit 0: no such limit.
    pub connection_rate: Rate,
    /// Pings every connection may send in any window, whatever its source has used: at most 64.
    pub share: u32,
    /// Total bytes per second of a source's connections over the limit under [`action::DEFUSE`]; 0:
    /// their windows are not held.
    pub pace: u32,
    /// Raised whenever a policy or a rule changes, and never 0: a source's copy of the limits may
    /// be out of date. The same in all scopes.
    pub generation: u32,
    /// Number of rules; without rules none is looked up.
    pub rules: u32,
    /// Number of trusted proxies; likewise.
    pub proxies: u32,
    /// One of [`action`].
    pub action: u8,
    /// [`FLOWS_FAIL_CLOSED`], [`SOURCES_FAIL_CLOSED`], [`UNREADABLE_PASSES`], [`MAY_BAN`],
    /// [`LIMITS_CLASSES`], [`TLS`], [`BAN_FORCED`].
    pub flags: u8,
    /// Action after [`Policy::escalate_after`], one of [`action`].
    pub escalate_to: u8,
    /// Set of [`super::name::HEADERS`] in force. The same in all scopes.
    pub headers: u8,
    /// Mask of a source's mapped IPv4 address.
    pub mask_v4: Address,
    /// Mask of a source's IPv6 address.
    pub mask_v6: Address,
    /// Number of this scope.
    pub scope: u32,
    /// Minimum throttle duration, ms; 0: as long as the window.
    pub min_throttle_ms: u32,
    /// Pings of a source over the limit in one window after which [`Policy::escalate_to`] applies
    /// to its connections over the limit; 0: never.
    pub escalate_after: u32,
    /// Settings of the scope's own, the others being those of scope 0; [`own`].
    /// Only for display: the kernel does not use it.
    pub own: u32,
    /// Frames a connection may send in any window of the same length, by [`crate::flood::Class`].
    /// Limit 0: no such limit.
    pub class_limits: [Rate; crate::flood::CLASSES],
    /// Longest payload of a tiny data frame.
    pub tiny_bytes: u32,
    /// Shortest and longest TLS record that may hold a ping, by the length in its header, which
    /// includes what the cipher adds.
    pub record_min: u16,
    pub record_max: u16,
}

impl Policy {
    /// Mildest [`action`] under which packets are dropped or changed: on a TLS port nothing can be
    /// defused, and small records may be anything.
    #[inline(always)]
    pub const fn least_action(&self) -> u8 {
        action::DEFUSE + (self.flags & TLS != 0) as u8
    }
}

/// Settings of a scope's or a rule's own.
pub mod own {
    /// The limit of [`super::Policy::rate`].
    pub const LIMIT: u32 = 1 << 1;
    /// Its window.
    pub const WINDOW: u32 = 1 << 2;
    pub const ACTION: u32 = 1 << 3;
    pub const MIN_THROTTLE: u32 = 1 << 4;
    pub const ESCALATE: u32 = 1 << 5;
    /// The limit of [`super::Policy::connection_rate`]; not in rules.
    pub const CONNECTION_LIMIT: u32 = 1 << 6;
    /// [`super::Policy::share`]; not in rules.
    pub const SHARE: u32 = 1 << 7;
    /// [`super::TLS`]; not in rules.
    pub const TLS: u32 = 1 << 8;
    /// The limit of [`crate::flood::Class::SmallRecord`]; not in rules.
    pub const RECORD_LIMIT: u32 = 1 << 9;
    /// [`super::Policy::record_min`] and the longest; not in rules.
    pub const RECORD_BYTES: u32 = 1 << 10;
    /// [`super::Policy::escalate_to`].
    pub const ESCALATE_TO: u32 = 1 << 11;
    /// [`super::Policy::pace`].
    pub const PACE: u32 = 1 << 12;
}

/// Limits of a source: those of its scope's policy, overridden by the longest rule that covers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limits {
    /// As [`Policy::rate`].
    pub rate: Rate,
    /// As [`Policy::min_throttle_ms`].
    pub min_throttle_ms: u32,
    /// As [`Policy::escalate_after`].
    pub escalate_after: u32,
    /// As [`Policy::pace`].
    pub pace: u32,
    /// One of [`action`].
    pub action: u8,
    /// As [`Policy::escalate_to`].
    pub escalate_to: u8,
    pub _pad: [u8; 2],
}

impl Limits {
    /// Limits without a rule.
    #[inline(always)]
    pub const fn of(policy: &Policy) -> Limits {
        Limits {
            rate: policy.rate,
            min_throttle_ms: policy.min_throttle_ms,
            escalate_after: policy.escalate_after,
            pace: policy.pace,
            action: policy.action,
            escalate_to: policy.escalate_to,
            _pad: [0; 2],
        }
    }

    /// Override limits by `rule`.
    ///
    /// Masks instead of branches: the kernel's verifier would follow each combination.
    #[inline(always)]
    pub fn with(self, rule: &Rule) -> Limits {
        let (own, other) = (&rule.limits, rule.flags);
        let limit = pick(other, own::LIMIT, own.rate.limit, self.rate.limit);
        let shift = pick(other, own::LIMIT, own.rate.shift, self.rate.shift);
        let window_ms = pick(other, own::WINDOW, own.rate.window_ms, self.rate.window_ms);
        let least = pick(other, own::MIN_THROTTLE, own.min_throttle_ms, self.min_throttle_ms);
        let after = pick(other, own::ESCALATE, own.escalate_after, self.escalate_after);
        let pace = pick(other, own::PACE, own.pace, self.pace);
        let action = pick(other, own::ACTION, own.action as u32, self.action as u32);
        let (to, other_to) = (own.escalate_to as u32, self.escalate_to as u32);
        let escalate_to = pick(other, own::ESCALATE_TO, to, other_to);
        Limits {
            rate: Rate { limit, window_ms, shift },
            min_throttle_ms: least,
            escalate_after: after,
            pace,
            action: action as u8,
            escalate_to: escalate_to as u8,
            _pad: [0; 2],
        }
    }
}

/// `yes` if `flags` has the bit, otherwise `no`.
#[inline(always)]
fn pick(flags: u32, bit: u32, yes: u32, no: u32) -> u32 {
    // Otherwise LLVM makes branches of it after all.
    let mask = black_box((flags >> bit.trailing_zeros() & 1).wrapping_neg());
    no ^ (no ^ yes) & mask
}

/// Rule in the LPM trie for the addresses that it covers. Only the longest prefix counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// [`Rule::ALLOW`], and bits of [`own`] for the settings in `limits`.
    /// User space keeps notes of its own in the upper half.
    pub flags: u32,
    pub limits: Limits,
}

impl Rule {
    /// Count, never act.
    pub const ALLOW: u32 = 1 << 0;
}

/// Ports, by number in host byte order: 0 for an unprotected port, otherwise its scope plus 1, in
/// the bits of [`Ports::SCOPE`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ports(pub [u8; 65_536]);

impl Ports {
    /// Bits of a port's byte for its scope plus 1.
    pub const SCOPE: u8 = 0x3F;
}

/// Tunnels to be entered. Not a map but a constant of the programs, [`global::TUNNELS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tunnels {
    /// UDP port of VXLAN, in host byte order; 0 for none.
    pub vxlan: u16,
    /// UDP port of Geneve.
    pub geneve: u16,
    /// IPv4 and IPv6 in each other and in themselves: 1, or 0.
    pub ip_in_ip: u8,
    pub _pad: u8,
}

/// Constants of the programs that the loader sets.
pub mod global {
    /// [`super::Tunnels`].
    pub const TUNNELS: &str = "TUNNELS";
}

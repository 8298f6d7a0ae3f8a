//! Throttled sources, and the action taken.
use std::time::Duration;

use ws_guard_common::{
    flood::Class,
    frame::opcode,
    maps::{
        BAN_FORCED, Counter::*, LIMITS_CLASSES, Limits, MAY_BAN, Policy, Rule, SOURCES_FAIL_CLOSED,
        action, own,
    },
};
use ws_guard_testkit::{
    frame::{Frame, encode},
    packets::flag,
};

use crate::case::{Case, case, pings, rate, text};

pub fn cases() -> Vec<Case> {
    let mut cases = limits();
    cases.extend(actions());
    cases.extend(rules());
    cases.extend(climbing());
    cases.extend(floods());
    cases.extend(neighbours());
    cases.extend(bans());
    cases
}

fn limits() -> Vec<Case> {
    let ping = pings(1);
    let all_but_30: Vec<usize> = (30..240).map(|n| n * 6).collect();
    vec![
        case("30 pings keep to the limit").open().client(pings(30)).counts(&[
            (Pings, 30),
            (Defused, 0),
            (Throttled, 0),
        ]),
        case("the 31st does not").open().client(pings(30)).client(&*ping).defused(&[0]).counts(&[
            (Pings, 31),
            (Defused, 1),
            (Throttled, 1),
            (Rewritten, 1),
        ]),
        case("240 pings in a segment: 30 pass")
            .open()
            .client(pings(240))
            .defused(&all_but_30)
            .counts(&[(Pings, 240), (Defused, 210), (Rewritten, 210), (Throttled, 1)]),
        case("a ping at an odd offset")
            .open()
            .client(pings(30))
            .client([text("x"), pings(1), text("y")].concat())
            .defused(&[7])
            .counts(&[(Pings, 31), (Defused, 1)]),
        case("a header cut behind its first byte is defused there")
            .open()
            .client(pings(30))
            .client(&ping[..1])
            .defused(&[0])
            .client(&ping[1..])
            .client(text("x"))
            .counts(&[(Pings, 31), (Defused, 1), (Frames, 32), (SplitHeaders, 1)]),
        case("free again after a quiet window")
            .policy(|policy| policy.rate = rate(30, 60))
            .open()
            .client(pings(31))
            .defused(&[180])
            .wait(Duration::from_millis(100))
            .client(pings(30))
            .counts(&[(Pings, 61), (Defused, 1), (Throttled, 1), (Released, 1)]),
        case("a limit of its own for each connection")
            .policy(|policy| policy.connection_rate = rate(3, 10_000))
            .open()
            .client(pings(5))
            .defused(&[18, 24])
            .counts(&[(Pings, 5), (Defused, 2), (Throttled, 1)]),
        case("no limit")
            .policy(|policy| policy.rate = rate(0, 10_000))
            .open()
            .client(pings(240))
            .counts(&[(Pings, 240), (Defused, 0), (Throttled, 0)]),
    ]
}

fn actions() -> Vec<Case> {
    vec![
        case("an allowed source is counted, and nothing done about it")
            .policy(|policy| policy.connection_rate = rate(3, 10_000))
            .rule(Rule { flags: Rule::ALLOW, ..Rule::default() })
            .open()
            .client(pings(60))
            .client(pings(1))
            .counts(&[(Pings, 61), (Defused, 0), (Throttled, 0)]),
        case("observe changes nothing")
            .policy(|policy| policy.action = action::OBSERVE)
            .open()
            .client(pings(240))
            .client(pings(1))
            .counts(&[(Pings, 241), (Defused, 0), (Rewritten, 0), (Throttled, 1)]),
        case(
            "drop: the segment that goes past the limit, and all that follows, of that connection",
        )
        .policy(|policy| policy.action = action::DROP)
        .open()
        .on(1)
        .open()
        .on(0)
        .client(pings(30))
        .client(pings(1))
        .dropped()
        .client(text("x"))
        .dropped()
        .client("")
        .dropped()
        // The server need not keep a connection that its client has left.
        .client("")
        .with(|packet| packet.flags = flag::RST | flag::ACK)
        .on(1)
        .client([text("a neighbour"), pings(2)].concat())
        .client_at(-400, "")
        .with(|packet| packet.flags = flag::SYN)
        .counts(&[(Throttled, 1), (DroppedThrottled, 3), (Rewritten, 0), (Defused, 0)]),
        case("a source that an operator throttles")
            .open()
            .client(pings(1))
            .throttle()
            .client(pings(3))
            .defused(&[6, 12])
            .counts(&[(Pings, 4), (Defused, 2)]),
    ]
}

/// Return a rule with a separate action.
fn acts(action: u8) -> Rule {
    Rule { flags: own::ACTION, limits: Limits { action, ..Limits::default() } }
}

/// Return a rule with a separate limit.
fn allows(limit: u32) -> Rule {
    let limits = Limits { rate: rate(limit, 1), ..Limits::default() };
    Rule { flags: own::LIMIT, limits }
}

fn rules() -> Vec<Case> {
    vec![
        case("a network with a lower limit, and the window of all")
            .rule(allows(5))
            .open()
            .client(pings(5))
            .client(pings(2))
            .defused(&[0, 6])
            .on(2)
            .open()
            .client(pings(30))
            .counts(&[(Pings, 37), (Defused, 2), (Throttled, 1)]),
        case("a network with a higher limit")
            .rule(allows(60))
            .open()
            .client(pings(60))
            .client(pings(1))
            .defused(&[0])
            .counts(&[(Pings, 61), (Defused, 1), (Throttled, 1)]),
        case("a network that is only observed")
            .rule(acts(action::OBSERVE))
            .open()
            .client(pings(240))
            .client(pings(1))
            .counts(&[(Pings, 241), (Defused, 0), (Rewritten, 0), (Throttled, 1)]),
        case("behind a gap, a network that is only observed passes")
            .rule(acts(action::OBSERVE))
            .open()
            .client_at(10, text("x"))
            .counts(&[(Gaps, 1), (DroppedGap, 0)]),
        case("a network that is acted on where others are observed")
            .policy(|policy| policy.action = action::OBSERVE)
            .rule(acts(action::DEFUSE))
            .open()
            .client(pings(31))
            .defused(&[180])
            .client_at(200, text("x"))
            .dropped()
            .on(2)
            .open()
            .client(pings(31))
            .counts(&[(Pings, 62), (Defused, 1), (Throttled, 2), (DroppedGap, 1)]),
        case("a network that is dropped where others are defused")
            .rule(acts(action::DROP))
            .open()
            .client(pings(31))
            .dropped()
            .client("")
            .dropped()
            .on(2)
            .open()
            .client(pings(31))
            .defused(&[180])
            .client(text("x"))
            .counts(&[(Throttled, 2), (DroppedThrottled, 2), (Defused, 1)]),
    ]
}

fn climbing() -> Vec<Case> {
    vec![
        case("from defuse to drop past so many pings over the limit")
            .policy(|policy| (policy.escalate_after, policy.escalate_to) = (10, action::DROP))
            .open()
            .client(pings(40))
            .defused(&(30..40).map(|n| n * 6).collect::<Vec<_>>())
            .client(text("x"))
            .client(pings(1))
            .defused(&[0])
            .client(text("x"))
            .dropped()
            .on(1)
            .client_at(0, "")
            .counts(&[(Throttled, 1), (Defused, 11), (DroppedThrottled, 1)]),
        case("and back when it is free again")
            .policy(|policy| {
                policy.rate = rate(5, 60);
                (policy.escalate_after, policy.escalate_to) = (1, action::DROP);
            })
            .open()
            .client(pings(8))
            .defused(&[30, 36, 42])
            .client("")
            .dropped()
            .wait(Duration::from_millis(100))
            .client(pings(6))
            .defused(&[30])
            .client(text("x"))
            .counts(&[(Throttled, 2), (Released, 1), (Defused, 4), (DroppedThrottled, 1)]),
        case("observed sources do not climb")
            .policy(|policy| {
                policy.action = action::OBSERVE;
                (policy.escalate_after, policy.escalate_to) = (1, action::DROP);
            })
            .open()
            .client(pings(60))
            .client(pings(1))
            .counts(&[(Throttled, 1), (Defused, 0), (DroppedThrottled, 0)]),
        case("throttled for longer than the window")
            .policy(|policy| (policy.rate, policy.min_throttle_ms) = (rate(5, 60), 60_000))
            .open()
            .client(pings(6))
            .defused(&[30])
            .wait(Duration::from_millis(100))
            .client(pings(3))
            .defused(&[12])
            .counts(&[(Throttled, 1), (Released, 0), (Defused, 2)]),
    ]
}

/// Set a limit of `limit` frames of one class in a window, and the action.
fn limited(class: Class, limit: u32, action: u8) -> impl Fn(&mut Policy) {
    move |policy| {
        policy.flags |= LIMITS_CLASSES;
        policy.class_limits[class as usize] = rate(limit, 10_000);
        (policy.tiny_bytes, policy.action) = (4, action);
    }
}

fn frames(frame: Frame, count: usize) -> Vec<u8> {
    encode(&vec![frame; count])
}

/// Frames of each class, over a limit of 5.
fn floods() -> Vec<Case> {
    let fragment = Frame { fin: false, ..Frame::new(opcode::CONTINUATION, []) };
    let begins = Frame { fin: false, ..Frame::new(opcode::TEXT, [b'x'; 9]) };
    let longer = encode(&[Frame { fin: false, ..Frame::new(opcode::CONTINUATION, [b'x'; 9]) }]);
    let close = Frame::new(opcode::CLOSE, []);
    let mut cases = Vec::new();
    for (name, class, opening, frame) in [
        ("pongs", Class::Pong, vec![], Frame::new(opcode::PONG, [])),
        ("empty fragments", Class::EmptyFragment, encode(&[begins]), fragment),
        ("tiny messages", Class::TinyData, vec![], Frame::text("x")),
        ("closes", Class::Close, vec![], close),
    ] {
        let other = if opening.is_empty() { text("a longer one") } else { longer.clone() };
        let many = frames(frame.clone(), 5);
        let one = frames(frame, 1);
        cases.push(
            case(Box::leak(format!("too many {name}: the connection is dropped").into_boxed_str()))
                .policy(limited(class, 5, action::DROP))
                .open()
                .client(opening.clone())
                .client(many.clone())
                .client(other.clone())
                .client(one.clone())
                .dropped()
                .client(other)
                .dropped()
                .counts(&[(Throttled, 1), (FramesOver, 1), (DroppedThrottled, 2), (Pings, 0)]),
        );
        cases.push(
            case(Box::leak(format!("too many {name}: reported").into_boxed_str()))
                .policy(limited(class, 5, action::DEFUSE))
                .open()
                .client(opening)
                .client(many)
                .client(one)
                .counts(&[(Throttled, 1), (FramesOver, 1), (Defused, 0), (DroppedThrottled, 0)]),
        );
    }
    // Or TCP, which merges segments for retransmission, would be over the limit for good.
    cases.push(
        case("what was dropped for its frames passes when it comes again in the next window")
            .policy(limited(Class::Pong, 5, action::DROP))
            .policy(|policy| policy.rate = rate(5, 60))
            .open()
            .client(frames(Frame::new(opcode::PONG, []), 6))
            .dropped()
            .wait(Duration::from_millis(250))
            .client_at(0, frames(Frame::new(opcode::PONG, []), 6))
            .client(frames(Frame::new(opcode::PONG, []), 5))
            .client(frames(Frame::new(opcode::PONG, []), 1))
            .dropped()
            .counts(&[(Throttled, 2), (FramesOver, 2), (DroppedThrottled, 2), (Pongs, 12)]),
    );
    cases.push(
        case("an allowed source may flood")
            .policy(limited(Class::Pong, 5, action::DROP))
            .rule(Rule { flags: Rule::ALLOW, ..Rule::default() })
            .open()
            .client(frames(Frame::new(opcode::PONG, []), 50))
            .client(text("x"))
            .counts(&[(Pongs, 50), (Throttled, 0), (DroppedThrottled, 0)]),
    );
    cases
}

fn bans() -> Vec<Case> {
    let ban = |policy: &mut Policy| (policy.action, policy.flags) = (action::BAN, MAY_BAN);
    vec![
        case("ban: all of a source that is alone, new connections too")
            .policy(ban)
            .open()
            .client(pings(31))
            .dropped()
            .client(text("x"))
            .dropped()
            .on(1)
            .request()
            .dropped()
            .on(2)
            .open()
            .client(pings(30))
            .counts(&[(Throttled, 1), (DroppedThrottled, 3)]),
        case("ban: only the connection, where the source has another that behaves")
            .policy(ban)
            .open()
            .on(1)
            .open()
            .on(0)
            .client(pings(31))
            .dropped()
            .client(text("x"))
            .dropped()
            .on(1)
            .client([text("x"), pings(2)].concat())
            .counts(&[(Throttled, 1), (DroppedThrottled, 2)]),
        case("ban: the source, whatever others do, where an operator insists")
            .policy(|policy| {
                (policy.action, policy.flags) = (action::BAN, MAY_BAN | BAN_FORCED);
            })
            .open()
            .on(1)
            .open()
            .on(0)
            .client(pings(31))
            .dropped()
            .on(1)
            .client(text("x"))
            .dropped()
            .counts(&[(Throttled, 1), (DroppedThrottled, 2)]),
        case("a source that an operator bans, and releases")
            .policy(|policy| policy.flags = MAY_BAN)
            .open()
            .ban()
            .client(text("x"))
            .dropped()
            .on(1)
            .request()
            .dropped()
            .release()
            .on(0)
            .client_at(0, text("x"))
            .counts(&[(Throttled, 0), (DroppedThrottled, 2)]),
        case("released: a connection that was dropped passes from the next packet on")
            .policy(|policy| policy.action = action::DROP)
            .open()
            .client(pings(30))
            .client(pings(1))
            .dropped()
            .release()
            .client(text("x"))
            .client(pings(30))
            .counts(&[(Throttled, 1), (DroppedThrottled, 1), (Defused, 0)]),
    ]
}

fn neighbours() -> Vec<Case> {
    vec![
        case("behind the same address a connection's small share lives on")
            .open()
            .on(1)
            .open()
            .on(0)
            .client(pings(31))
            .defused(&[180])
            .on(1)
            .client(pings(1))
            .client(pings(1))
            .client(pings(1))
            .defused(&[0])
            .counts(&[(Pings, 34), (Defused, 2), (Throttled, 1), (Spared, 2)]),
        case("another source never notices")
            .open()
            .on(2)
            .open()
            .on(0)
            .client(pings(240))
            .defused(&(30..240).map(|n| n * 6).collect::<Vec<_>>())
            .on(2)
            .client(pings(30))
            .counts(&[(Pings, 270), (Defused, 210), (Throttled, 1)]),
        case("a full source table charges newcomers to a coarser prefix")
            .open()
            .client(pings(1))
            .on(2)
            .open()
            .client(pings(1))
            .on(3)
            .open()
            .client(pings(30))
            .client(pings(1))
            .defused(&[0])
            .counts(&[(Pings, 33), (SourcesRefused, 2), (Defused, 1), (Throttled, 1)]),
        case("a full source table leaves newcomers their shares, if it shall")
            .policy(|policy| policy.flags = SOURCES_FAIL_CLOSED)
            .open()
            .client(pings(1))
            .on(2)
            .open()
            .client(pings(1))
            .on(3)
            .open()
            .client(pings(4))
            .defused(&[12, 18])
            .counts(&[(Pings, 6), (SourcesRefused, 1), (Defused, 2)]),
    ]
}

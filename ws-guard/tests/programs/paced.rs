//! Pacing: the receive window is held at egress, and its edge kept at ingress.
//!
//! Offsets count from the end of the request. Each row sends 32 pings, two of them over the limit;
//! a bucket holds 1,024 bytes, and is refilled at the same number a second: a row takes
//! milliseconds, and a unit of the window is 128 bytes.
use std::time::Duration;

use ws_guard_common::{
    flow::{owner, paced as pacing},
    maps::{
        Counter::{self, *},
        Rule, action, own,
    },
};
use ws_guard_testkit::{
    packets::{REQUEST, SWITCHING, flag},
    tunnel::Tunnel,
};

use crate::case::{Case, Fate, case, pings};

const RATE: u32 = 1024;
/// Length of the pings, two of which are over the limit.
const PINGS: i64 = 32 * 6;
/// Linux's options in a SYN-ACK: MSS, SACK permitted, NOP and a window scale of 7.
const SCALED: [u8; 12] = [2, 4, 5, 0xB4, 4, 2, 1, 1, 1, 3, 3, 7];
/// The header of a frame that does not end in a row.
const LONG: [u8; 8] = [0x82, 0x80 | 126, 0x70, 0, 0, 0, 0, 0];
/// The edge, offered by the first segment after the pings: its window is 10 units.
const EDGE: i64 = PINGS + (10 << 7);

/// Send the SYN-ACK of a server that agrees to window scaling with these options.
fn accepts(case: Case, options: &'static [u8]) -> Case {
    case.server(0, []).with(move |packet| {
        packet.flags = flag::SYN | flag::ACK;
        packet.seq = packet.seq.wrapping_sub(SWITCHING.len() as u32 + 1);
        packet.ack = packet.ack.wrapping_sub(REQUEST.len() as u32);
        packet.tcp_options = options.to_vec();
    })
}

/// Start a connection over its limit, with these window scaling options.
fn over(name: &'static str, options: Option<&'static [u8]>) -> Case {
    let new = case(name).policy(|policy| policy.pace = RATE);
    let new = match options {
        Some(options) => accepts(new, options),
        None => new,
    };
    new.open().client(pings(32)).defused(&[180, 186])
}

/// Send segments of many small frames, on two connections of a source.
fn dense() -> Vec<Case> {
    // These cost nearly as much as a connection may have at first, and those more.
    const MANY: usize = 500;
    const TOO_MANY: usize = 575;
    let over = |from: usize| (from..MANY).map(|ping| ping * 6).collect::<Vec<_>>();
    let new = |name| accepts(case(name).policy(|policy| policy.pace = RATE), &SCALED).open();
    let passes = new("past a connection's first frames the bucket pays, and then none passes")
        .client(pings(MANY))
        .defused(&over(30))
        .client(pings(MANY))
        .defused(&over(0))
        .client(pings(MANY))
        .dropped();
    vec![
        accepts(passes.on(1), &SCALED)
            .open()
            .client(pings(TOO_MANY))
            .dropped()
            .counts(&[(DroppedPoliced, 2)]),
        new("a segment of too many small frames is refused")
            .client(pings(TOO_MANY))
            .dropped()
            .counts(&[(DroppedPoliced, 1)]),
    ]
}

/// Send a segment of the server that offers a window.
fn offers(case: Case, acked: i64, window: u16) -> Case {
    case.server(acked, []).with(move |packet| packet.window = window)
}

/// Start as [`over`], with the edge at [`EDGE`].
fn held(name: &'static str) -> Case {
    offers(over(name, Some(&SCALED)), PINGS, 10)
}

fn paced(windows: u64) -> [(Counter, u64); 3] {
    [(Paced, 1), (WindowsHeld, windows), (Defused, 2)]
}

/// Return a frame that ends long past the edge, cut at the edge.
fn up_to_edge() -> Vec<u8> {
    [&[0x82, 0x80 | 126, 40, 0, 0, 0, 0, 0][..], &[0; 1272]].concat()
}

pub fn cases() -> Vec<Case> {
    let up_to_edge = up_to_edge();
    let mut cases = vec![
        offers(held("a window is held: one second's worth is granted at once"), PINGS, 200)
            .fate(Fate::Window(18))
            .counts(&paced(1)),
        offers(held("nothing is granted to a server that offers no more"), PINGS, 10)
            .counts(&paced(0)),
        offers(held("a server's own smaller window is left alone"), PINGS + 640, 5)
            .counts(&paced(0)),
        offers(
            offers(held("of a unit that is cut only the whole is offered"), PINGS, 200)
                .fate(Fate::Window(18)),
            PINGS + 64,
            200,
        )
        .fate(Fate::Window(17))
        .counts(&paced(2)),
        offers(held("what the server took beyond the edge has come"), EDGE + 640, 5)
            .counts(&paced(0)),
        held("data up to the edge passes, beyond it not")
            .client(up_to_edge.clone())
            .client_at(EDGE, [0; 9])
            .dropped()
            .client_at(EDGE - 1, [0; 2])
            .dropped()
            .client_at(EDGE + 5, [0; 1])
            .dropped()
            .counts(&[(DroppedBeyond, 3), (Probes, 0)]),
        held("a probe of one new byte passes, the next one at once not")
            .client(up_to_edge)
            .client_at(EDGE, [0; 1])
            .client_at(EDGE, [0; 1])
            .dropped()
            .counts(&[(DroppedBeyond, 1), (Probes, 1)]),
        offers(held("a reset has no window"), PINGS, 5000)
            .with(|packet| (packet.flags, packet.window) = (flag::RST | flag::ACK, 0))
            .counts(&paced(0)),
        offers(held("a release gives the window back").release(), PINGS, 200).counts(&[
            (Paced, 1),
            (Unpaced, 1),
            (WindowsHeld, 0),
        ]),
    ];
    cases.extend(dense());
    cases.extend(scales());
    cases.extend(beyond());
    cases.extend(liars());
    cases.extend(shrunk());
    cases.extend(races());
    cases.extend(policies());
    cases
}

/// Sources of the scale.
fn scales() -> Vec<Case> {
    let none = |name| over(name, Some(&[2, 4, 5, 0xB4]));
    let unknown = |name| over(name, None);
    vec![
        offers(offers(none("a server without window scaling"), PINGS, 2000), PINGS, 40_000)
            .fate(Fate::Window(3024))
            .counts(&paced(1)),
        offers(unknown("a scale that was not seen: the window is left alone"), PINGS, 200)
            .counts(&paced(0)),
        offers(unknown("and the client policed by bytes"), PINGS, 200)
            .client(LONG)
            .client([0; 3000])
            .client([0; 500])
            .dropped()
            .counts(&[(Paced, 1), (DroppedPoliced, 1), (DroppedBeyond, 0)]),
        offers(unknown("but for what the server waits for"), PINGS, 200)
            .client(LONG)
            .client([0; 3000])
            .server(PINGS + 3008, [])
            .client([0; 500])
            .client([0; 500])
            .dropped()
            .counts(&[(Paced, 1), (DroppedPoliced, 1)]),
        // Many connections of one source must not get more than a held window would give them.
        offers(unknown("and for that not ten times a second"), PINGS, 200)
            .client(LONG)
            .client([0; 3000])
            .server(PINGS + 3008, [])
            .client([0; 500])
            .flow(|flow| flow.hold.due_ms = flow.hold.due_ms.wrapping_sub(200))
            .server(PINGS + 3508, [])
            .client([0; 500])
            .dropped()
            .counts(&[(Paced, 1), (DroppedPoliced, 1)]),
        offers(unknown("and a longer segment, after which the next one waits longer"), PINGS, 200)
            .client(LONG)
            .client([0; 3000])
            .server(PINGS + 3008, [])
            .client([0; 3000])
            .flow(|flow| flow.hold.due_ms = flow.hold.due_ms.wrapping_sub(1000))
            .server(PINGS + 6008, [])
            .client([0; 500])
            .dropped()
            .flow(|flow| flow.hold.due_ms = flow.hold.due_ms.wrapping_sub(1000))
            .client_at(PINGS + 6008, [0; 500])
            .counts(&[(Paced, 1), (DroppedPoliced, 1)]),
        offers(unknown("what was merged on the way is paid for in full"), PINGS, 200)
            .policy(|policy| policy.pace = 512)
            .client(LONG)
            .client([0; 3000])
            .wait(Duration::from_millis(1300))
            .client([0; 500])
            .dropped()
            .counts(&[(Paced, 1), (DroppedPoliced, 1)]),
    ]
}

/// Segments beyond the edge: none passes, however cut; those before it still do.
fn beyond() -> Vec<Case> {
    const SIZES: [usize; 8] = [2, 3, 9, 127, 128, 129, 1400, 3000];
    let mut whole = held("whole segments of any size beyond the edge");
    for size in SIZES {
        for behind in [0, 1, 5000] {
            whole = whole.client_at(EDGE + behind, vec![0; size]).dropped();
        }
    }
    let mut partly = held("segments of any size partly beyond the edge");
    for size in SIZES {
        for before in [1, size as i64 - 1] {
            partly = partly.client_at(EDGE - before, vec![0; size]).dropped();
        }
    }
    let (rows, sizes) = ([whole, partly], SIZES.len() as u64);
    let mut rows: Vec<Case> = rows
        .into_iter()
        .zip([3 * sizes, 2 * sizes])
        // The edge is unchanged: up to it everything passes, and a server that offers no more opens
        // nothing.
        .map(|(row, dropped)| {
            offers(row.client(up_to_edge()), PINGS, 10).counts(&[
                (Paced, 1),
                (WindowsHeld, 0),
                (DroppedBeyond, dropped),
                (Probes, 0),
            ])
        })
        .collect();
    // With selective acknowledgements (RFC 2018): a hole before the edge stays, and later bytes are
    // beyond it.
    rows.push(
        held("a sender that leaves a gap before the edge, and sends beyond it")
            .client(&up_to_edge()[..600])
            .client_at(EDGE, [0; 500])
            .dropped()
            .client_at(EDGE - 200, [0; 201])
            .dropped()
            .client_at(PINGS + 600, &up_to_edge()[600..])
            .client_at(EDGE, [0; 500])
            .dropped()
            .counts(&[(DroppedBeyond, 3), (Probes, 0), (Gaps, 0)]),
    );
    rows
}

/// Segments of clients that try to move the edge, or to pass it.
fn liars() -> Vec<Case> {
    // As the server would send it, but arriving from outside.
    let forged = |packet: &mut ws_guard_testkit::packets::Packet| {
        std::mem::swap(&mut packet.from, &mut packet.to);
        std::mem::swap(&mut packet.seq, &mut packet.ack);
        packet.ack = packet.ack.wrapping_add(EDGE as u32 + 4096);
        packet.window = 0xFFFF;
    };
    let wide = |case: Case| case.with(|packet| packet.window = 0xFFFF);
    let kept =
        |case: Case| {
            offers(case.client_at(EDGE, [0; 9]).dropped(), PINGS, 200)
                .fate(Fate::Window(18))
                .counts(&[(Paced, 1), (WindowsHeld, 1), (DroppedBeyond, 1), (Probes, 0)])
        };
    let mut other = up_to_edge();
    other[8..].fill(1);
    vec![
        kept(
            held("a window that the client forges in the server's name")
                .client_at(0, [])
                .with(forged),
        ),
        kept(
            held("and one with a byte in it")
                .client_at(0, [0; 1])
                .with(forged)
                .client_at(0, [])
                .with(forged),
        ),
        kept(wide(held("the client's own window is not the server's").client_at(PINGS, []))),
        held("what was sent up to the edge comes again")
            .client(up_to_edge())
            .client_at(PINGS, up_to_edge())
            .client_at(PINGS + 8, vec![0; 700])
            .client_at(EDGE - 1, [0; 1])
            .client_at(PINGS, [up_to_edge(), vec![0]].concat())
            .dropped()
            .counts(&[(DroppedBeyond, 1), (Probes, 0)]),
        held("and with other bytes in it")
            .client(up_to_edge())
            .client_at(PINGS, other)
            .client_at(PINGS, [&up_to_edge()[..], &[1; 600]].concat())
            .dropped()
            // Pings in place of the header.
            .client_at(PINGS, pings(200))
            .dropped()
            .client_at(EDGE, [0; 9])
            .dropped()
            .counts(&[(DroppedBeyond, 2), (DroppedChanged, 1), (Probes, 0)]),
    ]
}

/// Servers that shrink the window they offered (RFC 9293, 3.8.6: they should not).
fn shrunk() -> Vec<Case> {
    let filled = |case: Case| {
        case.client(up_to_edge()).client_at(EDGE, [0; 9]).dropped().counts(&[
            (Paced, 1),
            (DroppedBeyond, 1),
            (Probes, 0),
        ])
    };
    vec![
        // The kept edge stays, and the server's TCP has its own.
        filled(offers(
            offers(held("a server shrinks its window while it is held"), PINGS, 1),
            PINGS,
            10,
        ))
        .counts(&[(WindowsHeld, 0)]),
        filled(offers(held("to nothing"), PINGS, 0)).counts(&[(WindowsHeld, 0)]),
        offers(offers(held("and opens it again"), PINGS, 0), PINGS, 200)
            .fate(Fate::Window(18))
            .counts(&paced(1)),
        filled(offers(
            offers(
                over("a server shrinks its window before the first edge", Some(&SCALED)),
                0,
                5000,
            )
            .with(|packet| packet.flags = flag::RST)
            .flow(|flow| flow.hidden = 0),
            PINGS,
            10,
        ))
        .counts(&[(WindowsHeld, 0)]),
        offers(
            offers(over("the first edge is of nothing", Some(&SCALED)), PINGS, 0)
                .client(&up_to_edge()[..9])
                .dropped(),
            PINGS,
            200,
        )
        .fate(Fate::Window(8))
        .counts(&[(Paced, 1), (WindowsHeld, 1), (DroppedBeyond, 1)]),
    ]
}

/// Races with other CPUs, programs and segments.
fn races() -> Vec<Case> {
    let reset = offers(over("a reset is not what sets the edge", Some(&SCALED)), PINGS, 0)
        .with(|packet| packet.flags = flag::RST)
        .with(|packet| packet.seq = packet.seq.wrapping_sub(1));
    let ended = held("pacing that ended when a window did, while pings came, begins anew")
        .flow(|flow| (flow.paced, flow.hold.held) = (pacing::NO, 0))
        .client(pings(2))
        .defused(&[0, 6]);
    vec![
        offers(offers(reset, PINGS, 10), PINGS, 200).fate(Fate::Window(18)).counts(&paced(1)),
        // Half the bucket pays for the pings' cost beyond their bytes.
        offers(offers(ended, PINGS + 12, 10), PINGS + 12, 200).fate(Fate::Window(14)).counts(&[
            (Paced, 2),
            (WindowsHeld, 1),
            (Defused, 4),
        ]),
        // As on a pod's interface behind a guarded uplink.
        held("a probe that other programs let pass passes here")
            .client(up_to_edge())
            .client_at(EDGE, [0; 1])
            .flow(|flow| flow.owner = owner::POD)
            .client_at(EDGE, [0; 1])
            .counts(&[(DroppedBeyond, 0), (Probes, 1)]),
    ]
}

/// Send a segment in a tunnel, and expect its window and both its checksums.
pub fn inside(name: &'static str, tunnel: Tunnel, v6: bool) -> Case {
    offers(held(name).inside(tunnel, v6), PINGS, 200).fate(Fate::Window(18)).counts(&paced(1))
}

/// Policies with and without pacing.
fn policies() -> Vec<Case> {
    let with = |name, action, pace| {
        over(name, Some(&SCALED))
            .policy(move |policy| (policy.action, policy.pace) = (action, pace))
    };
    let rule = |flags, action, pace| {
        let mut rule = Rule { flags, ..Rule::default() };
        (rule.limits.action, rule.limits.pace) = (action, pace);
        rule
    };
    let unheld = |case: Case| offers(offers(case, PINGS, 100), PINGS, 200);
    vec![
        unheld(with("without a pace", action::DEFUSE, 0)).counts(&[(Paced, 0), (Defused, 2)]),
        unheld(held("a network without a pace").rule(rule(own::PACE, 0, 0)))
            .counts(&[(Paced, 0), (Defused, 2)]),
        offers(
            with("a network with a pace of its own", action::DEFUSE, 0).rule(rule(
                own::PACE,
                0,
                RATE,
            )),
            PINGS,
            10,
        )
        .counts(&[(Paced, 1)]),
        // Pings as small as these are dense.
        offers(over("of an offered window small frames have a part", Some(&SCALED)), PINGS, 100)
            .fate(Fate::Window(52))
            .counts(&paced(1)),
    ]
}

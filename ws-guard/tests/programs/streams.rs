//! Frames in a stream that is cut, repeated or lost.
use ws_guard_common::{
    flow::{Flow, STALLED_NS, state},
    frame::Violation,
    maps::{Counter::*, action},
    trail::TRACES,
};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    packets::flag,
};

use crate::{
    answers::accepted,
    case::{Case, case, pings, text},
};

pub fn cases() -> Vec<Case> {
    let mut cases = frames();
    cases.extend(repeated());
    cases.extend(lost());
    cases.extend(ends());
    cases.extend(violations());
    cases.extend(server());
    cases
}

/// Return a header of 14 bytes: binary, masked, with a 64-bit length.
fn long(length: u64) -> Vec<u8> {
    let mut header = vec![0x82, 0xFF];
    header.extend(length.to_be_bytes());
    header.extend([1, 2, 3, 4]);
    header
}

fn frames() -> Vec<Case> {
    let medium = encode(&[Frame::new(opcode::BINARY, vec![9; 1000])]);
    vec![
        case("a text frame").open().client(text("hello")).counts(&[
            (Tracked, 1),
            (Frames, 1),
            (Pings, 0),
            (Coalesced, 0),
        ]),
        case("one ping").open().client(pings(1)).counts(&[(Frames, 1), (Pings, 1), (Defused, 0)]),
        case("a pong").open().client(encode(&[Frame::new(opcode::PONG, [])])).counts(&[
            (Frames, 1),
            (Pongs, 1),
            (Pings, 0),
        ]),
        case("two frames in a segment").open().client([text("a"), pings(1)].concat()).counts(&[
            (Frames, 2),
            (Pings, 1),
            (Coalesced, 1),
        ]),
        case("a 16 bit length, cut in the payload")
            .open()
            .client(&medium[..500])
            .client(&medium[500..])
            .client(pings(1))
            .counts(&[(Frames, 2), (Pings, 1), (SplitFrames, 1), (SplitHeaders, 0)]),
        case("one byte a segment")
            .open()
            .client(&medium[..1])
            .client(&medium[1..2])
            .client(&medium[2..3])
            .client(&medium[3..4])
            .client(&medium[4..])
            .client(pings(1))
            .counts(&[(Frames, 2), (Pings, 1), (SplitFrames, 1), (SplitHeaders, 1)]),
        case("a 64 bit length")
            .open()
            .client(long(70_000))
            .client_at(14, vec![0x89; 1400])
            .client_at(70_014, pings(1))
            .counts(&[(Tracked, 3), (Frames, 2), (Pings, 1)]),
        case("a frame longer than the sequence space")
            .open()
            .client(long(1 << 40))
            .client(vec![0x89; 1400])
            .client(vec![0x89; 1400])
            .counts(&[(Tracked, 3), (Frames, 1), (Pings, 0)]),
        case("more frames in a segment than can have a key")
            .open()
            .client([0x81, 0].repeat(600))
            .dropped()
            .violates(&[Violation::Unmasked; 216])
            .counts(&[(DroppedUnreadable, 1), (Tracked, 1)]),
        case("a header that cannot be traced, for another CPU is at the trail, comes again")
            .open()
            .client(encode(&[Frame::text(&"x".repeat(300)), Frame::text("")]))
            .trail_busy(true)
            .client(pings(1))
            .dropped()
            .trail_busy(false)
            .client_at(314, pings(1))
            .counts(&[(DroppedUntraced, 1), (Frames, 3), (Pings, 1)]),
        case("more frames than a client's, most of which are skipped at once")
            .open()
            .client([[0x81, 0].repeat(40), pings(45)].concat())
            .dropped()
            .violates(&[Violation::Unmasked; 40])
            .counts(&[(DroppedUnreadable, 1), (Tracked, 1)]),
        case("frames without a key")
            .open()
            .client([0x81, 0].repeat(16))
            .violates(&[Violation::Unmasked; 16])
            .counts(&[(Frames, 16)]),
        case("240 frames in a segment")
            .open()
            .client(encode(&vec![Frame::text(""); 240]))
            .counts(&[(Frames, 240), (Coalesced, 1)]),
    ]
}

fn repeated() -> Vec<Case> {
    let burst = pings(31);
    let more = pings(2);
    let (first, second) = (more[..6].to_vec(), more.clone());
    let count = i64::from(TRACES) + 4;
    let crowded = case("more segments in flight than a trail has room for");
    let crowded = (0..count).fold(crowded.open(), |case, _| case.client(text("y")));
    vec![
        crowded
            .client_at(7 * (count - 1), text("y"))
            .client_at(7 * (count - 3), text("y"))
            .dropped()
            .client_at(0, text("y"))
            .counts(&[(Frames, count as u64), (Rewalked, 2), (DroppedUntraced, 1)]),
        case("what cannot be judged puts its flow out of sync once nothing has passed for long")
            .open()
            .client(text("y"))
            .client(text("z"))
            .flow(Flow::lose_traces)
            .client_at(0, text("y"))
            .dropped()
            .flow(|flow| flow.last_ns -= 2 * STALLED_NS)
            .client_at(7, text("z"))
            .dropped()
            .client_at(0, text("y"))
            .dropped()
            .client_at(0, text("y"))
            .client_at(7, text("z"))
            .leaves(state::UNSYNCED)
            .counts(&[(Frames, 2), (DroppedUntraced, 3), (FlowsUnsynced, 1)]),
        case("a defused ping is defused again")
            .open()
            .client(&*burst)
            .defused(&[180])
            .client_at(0, &*burst)
            .defused(&[180])
            .counts(&[(Pings, 31), (Defused, 1), (Rewritten, 2), (Rewalked, 1)]),
        case("a ping that passed passes again, though the source is throttled by now")
            .open()
            .client(&*first)
            .client(&*burst)
            .defused(&[29 * 6, 30 * 6])
            .client_at(0, &*first)
            .counts(&[(Pings, 32), (Defused, 2), (Rewritten, 2), (Rewalked, 1)]),
        case("a retransmission that goes on with new bytes")
            .open()
            .client(pings(30))
            .server(180, "")
            .client(&*first)
            .defused(&[0])
            .client_at(180, second)
            .defused(&[0, 6])
            .counts(&[(Pings, 32), (Defused, 2), (Rewritten, 3)]),
        case("bytes that the server has already acknowledged")
            .open()
            .client(&*burst)
            .defused(&[180])
            .server(186, "")
            .client_at(0, &*burst)
            .counts(&[(Pings, 31), (Rewritten, 1), (Rewalked, 0)]),
        case("a cut ping comes whole, and is defused again")
            .open()
            .client(pings(30))
            .client(&first[..1])
            .defused(&[0])
            .client_at(180, &*first)
            .defused(&[0])
            .client_at(186, text("x"))
            .counts(&[(Pings, 31), (Defused, 1), (Frames, 32), (Rewritten, 2)]),
        case("from the middle of a segment")
            .open()
            .client(pings(20))
            .client_at(60, pings(10))
            .counts(&[(Pings, 20), (DroppedUntraced, 0), (Rewritten, 0)]),
        case("the same of one in which a ping was defused: that one again, and no other")
            .open()
            .client(&*burst)
            .defused(&[180])
            .client_at(60, &burst[60..84])
            .client_at(168, &burst[168..])
            .defused(&[12])
            .counts(&[(Pings, 31), (DroppedUntraced, 0), (Rewritten, 2)]),
        case("to the middle of a header")
            .open()
            .client([text(&"x".repeat(200)), text("y")].concat())
            .client_at(0, &[text(&"x".repeat(200)), text("y")].concat()[..209])
            .client_at(209, &text("y")[1..])
            .client(text("z"))
            .counts(&[(Frames, 3), (DroppedUntraced, 0), (DroppedChanged, 0)]),
        case("other frames in the middle of a segment")
            .open()
            .client([text("1"), text("2"), text("3"), text("4")].concat())
            .client_at(7, [text("2"), pings(1)].concat())
            .dropped()
            .counts(&[(Frames, 4), (Pings, 0), (DroppedChanged, 1)]),
        case("other frames than the first time are not believed")
            .open()
            .client(text(""))
            .client(text(""))
            .client_at(0, &*first)
            .dropped()
            .counts(&[(Frames, 2), (Pings, 0), (DroppedChanged, 1)]),
    ]
}

fn lost() -> Vec<Case> {
    vec![
        case("a gap passes where the guard only observes")
            .policy(|policy| policy.action = action::OBSERVE)
            .open()
            .client_at(10, pings(1))
            .counts(&[(Gaps, 1), (DroppedGap, 0), (Pings, 0)]),
        case("an acknowledgement past the cursor: frames were missed")
            .open()
            .client(text("x"))
            .server(100, "")
            .leaves(state::UNSYNCED)
            .counts(&[(FlowsUnsynced, 1)]),
        case("valid headers in a row bring it back")
            .open()
            .server(100, "")
            .client_at(100, encode(&vec![Frame::text("in step"); 7]))
            .client_at(191, pings(1))
            .leaves(state::OPEN)
            .counts(&[(FlowsUnsynced, 1), (FlowsResynced, 1), (Frames, 1), (Pings, 1)]),
        case("a flood out of sync is found anywhere in a segment")
            .open()
            .server(100, "")
            .client_at(100, [&[0xFF; 77][..], &pings(40)].concat())
            .defused(&[257, 263, 269, 275, 281, 287, 293, 299, 305, 311])
            .leaves(state::OPEN)
            .counts(&[(FlowsResynced, 1), (Frames, 40), (Pings, 40)]),
        case("a connection older than the guard is joined once the server has spoken")
            .client_at(0, pings(10))
            .server(60, [0x81, 1, b'x'])
            .client_at(60, pings(40))
            .defused(&[180, 186, 192, 198, 204, 210, 216, 222, 228, 234])
            .leaves(state::OPEN)
            .counts(&[(FlowsJoined, 1), (Frames, 40), (Pings, 40)]),
        case("frame by frame, too")
            .server(0, [0x81, 1, b'x'])
            .client_at(0, pings(1))
            .client_at(6, text("a"))
            .client_at(13, text("b"))
            .client_at(20, text("c"))
            .client_at(27, text("d"))
            .client_at(34, text("e"))
            .client_at(41, text("f"))
            .leaves_no_flow()
            .client_at(48, pings(31))
            .defused(&[180])
            .leaves(state::OPEN)
            .counts(&[(FlowsJoined, 1), (Pings, 31)]),
        case("one side alone makes no flow")
            .client_at(0, pings(40))
            .client_at(240, pings(40))
            .leaves_no_flow()
            .counts(&[(FlowsJoined, 0), (Pings, 0)]),
        case("HTTP is not joined")
            .server(0, b"HTTP/1.1 200 OK\r\n\r\n")
            .client_at(0, pings(40))
            .leaves_no_flow()
            .counts(&[(FlowsJoined, 0), (Pings, 0)]),
        case("pongs reveal unseen pings")
            .server(0, [0x81, 1, b'x'])
            .client_at(0, pings(10))
            .server(60, [0x8A, 0].repeat(41))
            .leaves(state::UNSYNCED)
            .client_at(60, [0xFF; 10])
            .dropped()
            .counts(&[(FlowsJoined, 1), (Witnessed, 31), (DroppedUnsynced, 1), (Throttled, 1)]),
        accepted("unsolicited pongs, where all frames were followed")
            .open()
            .server(0, [0x8A, 0].repeat(41))
            .leaves(state::OPEN)
            .counts(&[(Witnessed, 0), (PongsOut, 41)]),
    ]
}

fn ends() -> Vec<Case> {
    let reset = |name, at| {
        case(name).open().client(text("x")).server(7, "").client_at(at, "").with(|packet| {
            packet.flags = flag::RST;
        })
    };
    vec![
        reset("RST at the server's next byte ends a flow", 7)
            .leaves(state::CLOSED)
            .counts(&[(FlowsClosed, 1)]),
        reset("RST before it does not", 6).leaves(state::OPEN).counts(&[(FlowsClosed, 0)]),
        reset("RST behind it does not", 8).leaves(state::OPEN).counts(&[(FlowsClosed, 0)]),
        case("FIN does not end a flow before it is acknowledged")
            .open()
            .client("")
            .with(|packet| packet.flags = flag::FIN | flag::ACK)
            .server(0, "")
            .leaves(state::OPEN)
            .counts(&[(FlowsClosed, 0)]),
        case("FIN acknowledged ends it")
            .open()
            .client(text("x"))
            .with(|packet| packet.flags = flag::FIN | flag::ACK)
            .server(8, "")
            .leaves(state::CLOSED)
            .counts(&[(FlowsClosed, 1)]),
        case("the server's RST ends a flow")
            .open()
            .server(0, "")
            .with(|packet| packet.flags = flag::RST)
            .leaves(state::CLOSED)
            .counts(&[(FlowsClosed, 1)]),
        case("the server's SYN ACK removes the old flow")
            .open()
            .server(0, "")
            .with(|packet| packet.flags = flag::SYN | flag::ACK)
            .leaves_no_flow(),
    ]
}

/// One of each kind, after its preconditions.
fn violations() -> Vec<Case> {
    let kind =
        |name, bytes: Vec<u8>, kinds: &[Violation]| case(name).open().client(bytes).violates(kinds);
    let frame = |frame: Frame| encode(&[frame]);
    let reserved = Frame::new(3, []);
    vec![
        kind("reserved opcode", frame(reserved), &[Violation::ReservedOpcode]),
        kind(
            "reserved bits",
            frame(Frame { rsv: 1, ..Frame::text("x") }),
            &[Violation::ReservedBits],
        ),
        kind("unmasked", frame(Frame { mask: None, ..Frame::text("x") }), &[Violation::Unmasked]),
        kind("control too long", frame(Frame::ping([0; 126])), &[Violation::ControlTooLong]),
        kind(
            "control fragmented",
            frame(Frame { fin: false, ..Frame::ping([]) }),
            &[Violation::ControlFragmented],
        ),
        kind(
            "non-minimal length",
            vec![0x82, 0xFE, 0, 1, 0, 0, 0, 0, 7],
            &[Violation::NonMinimalLength],
        ),
        kind("length with the top bit", long(1 << 63), &[Violation::LengthTopBit]),
        kind(
            "continuation of nothing",
            frame(Frame::new(opcode::CONTINUATION, [])),
            &[Violation::UnexpectedContinuation],
        ),
        kind(
            "data inside a message",
            encode(&[Frame { fin: false, ..Frame::text("a") }, Frame::text("b")]),
            &[Violation::InterleavedData],
        ),
        kind("a message in three parts", encode(&Frame::fragments(1, b"abc", 1)), &[])
            .counts(&[(Frames, 3)]),
    ]
}

fn server() -> Vec<Case> {
    let unmasked = |opcode| encode(&[Frame { mask: None, ..Frame::new(opcode, b"x") }]);
    vec![
        case("a frame of the server").open().server(0, unmasked(opcode::TEXT)).counts(&[
            (EgressTracked, 1),
            (FramesOut, 1),
            (PongsOut, 0),
        ]),
        case("a pong of the server")
            .open()
            .client(pings(1))
            .server(6, unmasked(opcode::PONG))
            .counts(&[(EgressTracked, 1), (FramesOut, 1), (PongsOut, 1)]),
        case("a pong in two segments")
            .open()
            .server(0, &unmasked(opcode::PONG)[..1])
            .server(0, &unmasked(opcode::PONG)[1..])
            .counts(&[(FramesOut, 1), (PongsOut, 1)]),
        case("a server's frame comes twice")
            .open()
            .server(0, unmasked(opcode::TEXT))
            .server(0, "")
            .with(|packet| {
                packet.seq = packet.seq.wrapping_sub(3);
                packet.payload = vec![0x81, 1, b'x'];
            })
            .counts(&[(FramesOut, 1)]),
    ]
}

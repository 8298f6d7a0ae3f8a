use super::*;

const FIRST: u32 = u32::MAX - 50;
/// As in the TCP header.
const WINDOW: u32 = 0xFFFF;

fn began() -> Unopened {
    let began = Beginning { client_next: FIRST, server_next: 7, ..Beginning::default() };
    Unopened::new(began, 1)
}

fn at(offset: u32) -> u32 {
    FIRST.wrapping_add(offset)
}

impl Unopened {
    fn refuses(&self, seq: u32, ack: u32) -> bool {
        self.judge(seq, 10, ack) == judged::REFUSED
    }
}

#[test]
fn before_the_server_speaks_the_first_bytes_come_first() {
    let mut began = began();
    assert!(began.refuses(at(138), 7), "a gap in front");
    assert!(began.refuses(FIRST, 6) && began.refuses(FIRST, 9), "another acknowledgement");
    assert!(!began.refuses(FIRST, 7));
    began.pass(FIRST, 100, true);
    assert!(!began.refuses(at(200), 7), "an upload may come out of order");
    began.acknowledge(at(100), 7, WINDOW, false, 1);
    assert!(!began.refuses(at(200), 7), "also after a pure acknowledgement");
}

#[test]
fn after_the_server_has_spoken_the_next_bytes_come_first_again() {
    let mut began = began();
    began.pass(FIRST, 100, true);
    began.acknowledge(at(100), 9, WINDOW, true, 1);
    assert!(began.refuses(at(101), 9), "a gap in front of the next request");
    assert!(began.refuses(at(100), 11) && began.refuses(at(100), 6), "never sent by the server");
    assert!(!began.refuses(at(100), 7) && !began.refuses(at(50), 9));
    began.acknowledge(at(120), 9, WINDOW, false, 1);
    assert!(!began.refuses(at(120), 9), "the server has what is missing here");
    began.pass(at(100), 20, true);
    began.pass(at(120), 80, true);
    began.acknowledge(at(120), 11, WINDOW, true, 1);
    assert!(!began.refuses(at(200), 11), "under way while the server spoke");
    assert!(began.refuses(at(1 << 30), 11) && began.refuses(at(120 + FAR), 11), "too far");
}

#[test]
fn a_request_begins_where_the_stream_goes_on() {
    let mut began = began();
    assert_eq!(began.judge(FIRST, 10, 7), judged::BEGINS);
    began.pass(FIRST, 100, true);
    assert_eq!(began.judge(at(100), 10, 7), judged::BEGINS);
    assert_eq!(began.judge(at(90), 10, 7), judged::PASSES);
    assert_eq!(began.judge(at(0u32.wrapping_sub(1 << 20)), 10, 7), judged::PASSES);
}

#[test]
fn an_answer_that_comes_again_says_nothing_about_an_upload() {
    let mut began = began();
    began.pass(FIRST, 100, true);
    began.acknowledge(at(100), 9, WINDOW, true, 1);
    began.pass(at(100), 50, false);
    began.acknowledge(at(150), 9, WINDOW, true, 1);
    assert_eq!(began.judge(at(100), 80, 9), judged::REACHES, "merged with what comes again");
    assert!(!began.refuses(at(180), 9), "its order is anything");
    // Nor is a new one: the acknowledgement of the first bytes may be lost.
    began.acknowledge(at(150), 11, WINDOW, true, 1);
    assert_eq!(began.judge(at(100), 80, 11), judged::REACHES);
}

#[test]
fn under_a_new_policy_a_connection_is_followed_anew() {
    let mut began = began();
    began.pass(FIRST, 100, true);
    began.acknowledge(at(100), 9, WINDOW, true, 1);
    began.acknowledge(at(5000), 800, WINDOW, true, 2);
    assert!(!began.refuses(at(5000), 800) && began.refuses(at(5001), 800));
}

#[test]
fn a_request_is_late_behind_what_passed_unread_beyond_it() {
    let mut began = began();
    began.pass(FIRST, 138, true);
    assert!(!began.passed_beyond(at(0), false), "its rest was read");
    began.pass(at(100), 38, false);
    assert!(began.passed_beyond(at(137), false), "others came in its place");
    began.pass(at(138), 10, false);
    assert!(!began.passed_beyond(at(148), false));
    assert!(began.passed_beyond(at(147), false));
    began.pass(at(10), 5, false);
    assert_eq!((began.high, began.unread_high), (at(148), at(148)));
    began.acknowledge(at(138), 9, WINDOW, true, 1);
    began.pass(at(138), 1 << 20, false);
    assert!(began.passed_beyond(at(1 << 20), false));
}

#[test]
fn a_body_passes_in_any_order() {
    let mut began = began();
    began.complete(at(60), Some(1000));
    began.pass(FIRST, 100, true);
    assert!(began.asks_nothing(FIRST, 1) && !began.asks_nothing(FIRST, 2));
    for (seq, len) in [(500, 560), (100, 400), (60, 1000)] {
        assert_eq!(began.judge(at(seq), len, 7), judged::BODY);
        began.pass(at(seq), len, true);
    }
    assert_ne!(began.judge(at(1000), 61, 7), judged::BODY, "past its end");
    assert_ne!(began.judge(at(59), 61, 7), judged::BODY, "in front of it");
    assert!(!began.passed_beyond(at(60), false));
    assert!(began.asks_nothing(at(1060), 1) && began.asks_nothing(at(1061), 1), "with a FIN");
    assert!(!began.asks_nothing(at(1062), 1), "the server has more than has passed");
    assert_eq!(began.judge(at(1060), 10, 7), judged::BEGINS);
}

#[test]
fn a_chunked_body_goes_on_where_its_framing_does() {
    let mut began = began();
    began.pass(FIRST, 50, true);
    began.complete_chunked(at(60));
    assert_eq!(began.judge(at(60), 10, 7), judged::CHUNKS);
    let mut chunks = Chunks::BEGIN;
    assert_eq!((chunks.push(b'9'), chunks.push(b'\r'), chunks.push(b'\n')), (0, 0, 9));
    // Ten bytes of which the last seven are data, two more are to come.
    assert!(began.read_chunks(at(60), at(63), chunks, at(72)));
    began.pass(at(50), 20, true);
    assert!(began.awaits_body(at(70)) && began.asks_nothing(at(70), 1));
    assert_eq!(began.judge(at(63), 9, 7), judged::BODY, "data again");
    assert_eq!(began.judge(at(62), 9, 7), judged::PASSES, "a part of the framing again");
    assert_eq!(began.judge(at(60), 9, 7), judged::CHUNKS, "the framing again");
    assert_eq!(began.reader(at(60), at(69)), (Chunks::BEGIN, at(60)));
    assert!(began.read_chunks(at(60), at(63), chunks, at(72)), "the same");
    assert!(!began.read_chunks(at(60), at(63), chunks, at(73)), "a longer one");
    assert!(!began.read_chunks(at(60), at(64), chunks, at(72)), "one of more digits");
    assert_eq!((began.body_end, began.reader(at(70), at(80))), (at(72), (chunks, at(72))));
    assert_eq!(began.judge(at(70), 3, 7), judged::CHUNKS);
    assert_eq!(began.judge(at(72), 3, 7), judged::CHUNKS);
    assert!(began.refuses(at(73), 7), "past a hole in the framing, which could not be followed");
    assert_eq!(began.judge(at(71), 1, 7), judged::BODY, "past a hole in the data");
    began.acknowledge(at(63), 7, WINDOW, false, 1);
    began.acknowledge(at(63), 8, WINDOW, true, 1);
    assert!(began.refuses(at(73), 8), "the same of a server that talks");
    assert!(began.refuses(at(72 + FAR / 2), 8), "far behind it");
    assert_eq!(began.judge(at(70), 3, 8), judged::CHUNKS);
    assert_eq!(began.judge(at(63), 9, 8), judged::BODY, "the server has its framing");
    for byte in b"\r\n0\r\n\r\n" {
        chunks.push(*byte);
    }
    assert!(!chunks.is_open());
    assert!(began.read_chunks(at(72), at(79), chunks, at(79)));
    began.pass(at(70), 9, true);
    assert!(began.awaits_body(at(78)) && !began.awaits_body(at(79)));
    assert!(began.may_answer(at(79)));
    assert_eq!(began.judge(at(79), 10, 7), judged::BEGINS, "the next request");
    assert_eq!(began.judge(at(70), 30, 7), judged::CHUNKS, "its end again");
    assert_eq!(began.unread, 0);
    began.complete_chunked(at(75));
    assert_eq!(began.unread, 1, "another head, behind which bytes passed");
}

#[test]
fn what_passed_behind_replaced_bytes_is_paid_once() {
    let mut began = began();
    began.complete(at(60), Some(1_000_000));
    began.pass(FIRST, 60, true);
    began.pass(at(60), 50_000, true);
    assert_eq!(began.behind(at(60)), 50_000, "another head");
    assert_eq!(began.behind(at(50_060)), 0, "the next bytes");
    began.pass(at(50_060), 100, false);
    assert_eq!(began.pass_unread(at(0), 7, u32::MAX >> 16, 60, 9), unread::FEW);
    began.pay_behind(at(60));
    assert_eq!(began.behind(at(60)), 0);
    assert_eq!(began.pass_unread(at(0), 7, u32::MAX >> 16, 60, 9), unread::UNHEARD);
    began.pass(at(50_160), 100, true);
    began.acknowledge(at(100), 7, WINDOW, false, 1);
    assert_eq!(began.behind(at(100)), 0, "the server has it");
    assert_eq!(began.behind(at(101)), 50_159);
}

#[test]
fn another_head_in_front_of_a_body_makes_it_unread() {
    let followed = || {
        let mut began = began();
        began.complete(at(60), Some(1000));
        began.pass(FIRST, 100, true);
        began.pass(at(100), 900, true);
        began
    };
    for (from, length, known) in
        [(60, Some(1000), true), (60, Some(900), false), (61, Some(999), false), (60, None, false)]
    {
        let mut began = followed();
        began.complete(at(from), length);
        assert_eq!(began.unread == 0, known, "{from} {length:?}");
    }
    let mut began = followed();
    began.complete(at(1000), Some(5));
    assert_eq!(began.unread, 0, "the next request");
}

#[test]
fn what_was_not_read_may_ask_for_an_upgrade() {
    let mut began = began();
    began.pass(FIRST, 100, true);
    assert!(began.asks_nothing(FIRST, 1));
    began.asks = 1;
    assert!(!began.asks_nothing(FIRST, 1));
    began.complete(at(100), Some(0));
    assert!(began.asks_nothing(FIRST, 1));
    let mut ended = began;
    ended.acknowledge(at(101), 9, WINDOW, true, 1);
    assert!(ended.asks_nothing(at(101), 1), "behind the client's FIN");
    began.acknowledge(at(102), 7, WINDOW, false, 1);
    assert!(!began.asks_nothing(at(102), 1), "it passed elsewhere");
}

#[test]
fn an_upload_of_gigabytes_to_a_silent_server_goes_on() {
    let mut began = began();
    let mut end = FIRST;
    began.acknowledge(FIRST, 7, WINDOW, false, 1);
    for _ in 0..5000 {
        // Two segments are in flight.
        for _ in 0..2 {
            assert_ne!(
                began.judge(end, 1 << 20, 7),
                judged::REFUSED,
                "{}",
                end.wrapping_sub(FIRST)
            );
            began.pass(end, 1 << 20, false);
            end = end.wrapping_add(1 << 20);
        }
        began.acknowledge(end.wrapping_sub(1 << 20), 7, WINDOW, false, 1);
    }
    began.acknowledge(end, 9, WINDOW, true, 1);
    assert!(!began.passed_beyond(end.wrapping_add(500), false));
}

#[test]
fn a_keep_alive_probe_under_another_policy_forges_nothing() {
    let mut unopened = began();
    unopened.pass(FIRST, 100, true);
    unopened.acknowledge(at(100), 507, WINDOW, true, 1);
    // A probe repeats the number before the next one.
    unopened.acknowledge(at(100), 506, WINDOW, false, 2);
    assert_eq!(unopened.judge(at(100), 50, 507), judged::BEGINS);
    assert_eq!(unopened.unread, 0);
    // Nothing was followed between two policies: what passed may be anything.
    unopened.acknowledge(at(90_000), 900, WINDOW, true, 3);
    assert_eq!((unopened.unread, unopened.high), (1, at(90_000)));
    unopened.acknowledge(at(90_000), 899, WINDOW, false, 4);
    assert_eq!(unopened.judge(at(90_000), 50, 900), judged::BEGINS);
}

#[test]
fn a_refused_connection_passes_nothing() {
    let mut began = began();
    began.stage = stage::REFUSED;
    began.acknowledge(at(10), 9, WINDOW, true, 1);
    assert!(began.refuses(at(10), 9));
}

#[test]
fn a_slow_server_is_not_silent_before_it_has_read() {
    let mut began = began();
    let mut decided = Vec::new();
    for segment in 0..400u32 {
        let seq = at(1000 * segment);
        decided.push(began.pass_unread(seq, 7, 0xFFFF, 1000, 5000 + segment));
        began.pass(seq, 1000, false);
    }
    let first = |wanted| decided.iter().position(|one| *one == wanted).unwrap() as u32;
    assert_eq!(decided[0], unread::UNHEARD);
    assert_eq!(first(unread::SHARED), UNHEARD.div_ceil(1000));
    assert!(decided[HEARD.div_ceil(1000) as usize..].iter().all(|one| *one == unread::UNHEARD));
    began.spoke_ms = 5400;
    assert_eq!(began.pass_unread(at(400_000), 7, 0xFFFF, 1000, 5401), unread::SHARED, "it talks");
    began.turn(7, 107, at(400_000));
    began.acknowledge(at(400_000), 107, WINDOW, true, 1);
    assert_eq!(began.pass_unread(at(400_000), 107, 0xFFFF, 1000, 5401), unread::UNHEARD, "after");
    began.unheard = UNHEARD_SINCE;
    assert_eq!(began.pass_unread(at(400_000), 107, 0xFFFF, 1000, 5401), unread::SHARED);
    assert_eq!(began.pass_unread(at(400_000), 107, 0xFFFF, 1000, 5403), unread::UNHEARD, "silent");
}

#[test]
fn an_acknowledgement_is_credible_behind_four_gibibytes_of_answers() {
    let mut began = began();
    began.pass(FIRST, 100, true);
    let mut end = 7u32;
    for _ in 0..256 {
        end = end.wrapping_add(1 << 24);
        began.acknowledge(at(100), end, WINDOW, true, 1);
        assert!(!began.refuses(at(100), end.wrapping_sub(1 << 23)), "at {end}");
        assert!(began.refuses(at(100), end.wrapping_sub(FAR + 1)), "at {end}");
    }
}

#[test]
fn what_begins_long_before_the_server_s_bytes_is_refused() {
    let mut began = began();
    began.pass(FIRST, 1 << 28, true);
    began.acknowledge(at(1 << 28), 9, WINDOW, true, 1);
    assert!(!began.refuses(at((1 << 28) - FAR), 9));
    assert!(began.refuses(at((1 << 28) - FAR - 1), 9));
}

#[test]
fn bytes_that_come_again_or_do_not_pass_buy_no_credit() {
    let mut began = began();
    began.pass(FIRST, 1000, false);
    for _ in 0..1000 {
        began.pass_unread(at(1000), 7, 0xFFFF, 1000, 9);
        began.pass(FIRST, 1000, false);
    }
    assert_eq!(began.unheard, 1000);
}

#[test]
fn what_was_read_passes_with_room_for_an_answer() {
    let mut began = began();
    began.began.client_scale = 1;
    began.acknowledge(FIRST, 7, WINDOW, false, 1);
    began.complete(at(60), Some(1_000_000));
    began.pass(FIRST, 100, true);
    assert_eq!(began.pass_read(at(100), 7, BODY_ROOM, 1000, 9), unread::PASSES);
    assert_eq!(began.pass_read(at(100), 7, BODY_ROOM - 1, 1000, 9), unread::FEW);
    assert_eq!(began.pass_read(at(99), 7, 0xFFFF, 1000, 9), unread::FEW, "a later one was shut");
    assert_eq!(began.pass_read(at(100), 7, 0xFFFF, 1000, 9), unread::PASSES);
    let mut filled = began;
    filled.acknowledge(FIRST, 8007, WINDOW, true, 1);
    assert_eq!(filled.pass_read(at(100), 7, 8000 + BODY_ROOM, 1000, 9), unread::PASSES);
    assert_eq!(
        filled.pass_read(at(100), 7, 7999 + BODY_ROOM, 1000, 9),
        unread::PASSES,
        "a few into a full window"
    );
    let ahead = BODY_PER_ANSWER * PAID_AHEAD / 1000;
    for _ in 1..ahead {
        assert_eq!(filled.pass_read(at(100), 7, 9000, 1000, 9), unread::PASSES);
    }
    assert_eq!(filled.pass_read(at(100), 7, 9000, 1000, 9), unread::SHARED, "more");
    for _ in 0..4 {
        assert_eq!(filled.pass_read(at(100), 1007, 8000, 1000, 9), unread::PASSES, "as is taken");
    }
    assert_eq!(filled.pass_read(at(100), 1007, 8000, 1000, 9), unread::SHARED);
    while filled.pass_read(at(100), 1007, 8000, 1, 9) == unread::PASSES {}
    let passes = (0..9).filter(|_| filled.pass_read(at(100), 1009, 8000, 1, 9) == unread::PASSES);
    assert_eq!(passes.count(), 2, "each byte costs one");
    let mut long = filled;
    for lap in 1..32 {
        long.acknowledge(FIRST, 8007 + (lap << 27), WINDOW, true, 1);
    }
    let ack = long.server_high.wrapping_sub(8000);
    assert_eq!(long.pass_read(at(100), ack, 9000, 1000, 9), unread::PASSES, "a lap later");
    began.unread = 1;
    began.unheard = UNHEARD;
    assert_eq!(began.pass_read(at(100), 7, 0xFFFF, 1000, 9), unread::SHARED, "another is hidden");
}

#[test]
fn an_answer_shows_that_no_upgrade_was_hidden() {
    let unread = |offered: u32| {
        let mut began = began();
        began.began.client_scale = 1;
        began.pass_unread(FIRST, 7, offered, 5000, 9);
        began.pass(FIRST, 5000, false);
        began
    };
    let mut began = unread(ANSWER_ROOM + 100);
    began.turn(7, 107, at(4999));
    assert_eq!(began.unheard, 5000, "of an earlier request");
    began.turn(7, 107, at(5000));
    assert_eq!((began.unheard, began.had & TURNED), (0, TURNED));
    assert_eq!(began.unread_bytes, 5000);
    let mut began = unread(ANSWER_ROOM + 99);
    began.turn(7, 107, at(5000));
    assert_eq!(began.unheard, 5000, "the client lets little out");
}

#[test]
fn a_request_behind_an_early_answer_is_not_pipelined() {
    let mut began = began();
    began.complete(at(60), Some(1000));
    began.pass(FIRST, 500, true);
    let mut early = began;
    early.acknowledge(at(100), 20, WINDOW, true, 1);
    early.pass(at(500), 560, true);
    early.begin(at(1060));
    assert_eq!(early.unread, 0);
    began.acknowledge(at(59), 20, WINDOW, true, 1);
    began.pass(at(500), 560, true);
    began.begin(at(1060));
    assert_eq!(began.unread, 1, "an answer to what came before");
}

#[test]
fn nothing_passes_beyond_the_windows_of_the_server() {
    let mut began = began();
    began.began.scale = 1 + 7;
    began.acknowledge(FIRST, 7, 1000, false, 1);
    began.pass(FIRST, 10, true);
    assert!(!began.refuses(at(128_000), 7) && began.refuses(at(128_001), 7));
    began.acknowledge(FIRST, 7, 10, false, 1);
    assert!(!began.refuses(at(128_000), 7), "it may have shrunk its window");
}

/// Place of the framing in front of a chunk of [`chunked`].
fn place(number: u32) -> u32 {
    60 + 2008 * number
}

/// A body in chunks of 2,000 bytes with eight bytes of framing, of which the server has none.
/// `lost` are the numbers of those of which only the first 1,000 bytes have passed.
fn chunked(count: u32, lost: &[u32]) -> Unopened {
    let mut began = began();
    began.pass(FIRST, 60, true);
    began.complete_chunked(at(60));
    began.acknowledge(at(60), 7, WINDOW, false, 1);
    for number in 0..count {
        let from = place(number);
        assert!(began.read_chunks(at(from), at(from + 8), Chunks::BEGIN, at(from + 2008)));
        began.pass(at(from), if lost.contains(&number) { 1000 } else { 2008 }, true);
    }
    began
}

#[test]
fn what_comes_again_between_the_framing_is_data() {
    const COUNT: u32 = framing::PLACES as u32;
    let again = |began: &Unopened, from: u32, len: u32| began.judge(at(from), len, 7);
    let mut all = chunked(COUNT, &[]);
    for number in 0..COUNT {
        let from = place(number);
        assert_eq!(again(&all, from + 8, 2000), judged::BODY, "data {number}");
        assert_eq!(again(&all, from + 7, 2), judged::PASSES, "framing {number}");
        assert_eq!(again(&all, from + 1000, 1016), judged::CHUNKS, "data {number}, and framing");
    }
    all.acknowledge(at(place(3)), 7, WINDOW, false, 1);
    assert_eq!(again(&all, place(2) + 7, 2), judged::BODY, "the server has it");
    let more = chunked(COUNT + 1, &[]);
    assert_eq!(again(&more, 61, 5), judged::PASSES, "the first one is forgotten");
    assert_eq!(again(&more, place(0) + 8, 500), judged::BODY, "behind it");
}

#[test]
fn what_fills_a_hole_is_data_behind_any_number_of_chunks() {
    let mut began = chunked(40, &[1, 3, 5, 7]);
    for number in [1, 3, 5, 7] {
        let hole = place(number) + 1000;
        for _ in 0..2 {
            assert_eq!(began.judge(at(hole), 1008, 7), judged::BODY, "hole {number}");
            assert_eq!(began.judge(at(hole + 500), 508, 7), judged::BODY, "its end");
            began.pass(at(hole), 1008, true);
        }
        assert_eq!(began.judge(at(hole - 1), 1009, 7), judged::PASSES, "a byte before it");
        assert_eq!(began.judge(at(hole), 1009, 7), judged::PASSES, "a byte behind it");
    }
    assert_eq!(began.judge(at(place(2) + 1000), 8, 7), judged::PASSES, "no hole");
    let mut full = chunked(40, &[1, 3, 5, 7]);
    let (next, end) = (place(40), place(41));
    assert!(full.read_chunks(at(next), at(next + 8), Chunks::BEGIN, at(end)));
    assert_eq!(full.judge(at(next), 1000, 7), judged::CHUNKS, "in order");
    assert_eq!(full.judge(at(next + 100), 1000, 7), judged::REFUSED, "a fifth hole");
    full.acknowledge(at(place(2)), 7, WINDOW, false, 1);
    assert_eq!(full.judge(at(next + 100), 1000, 7), judged::BODY, "the server has the first");
}

#[test]
fn framing_of_a_segment_that_did_not_pass_is_in_no_hole() {
    let mut began = chunked(1, &[]);
    let from = place(1);
    assert!(began.read_chunks(at(from), at(from + 7), Chunks::BEGIN, at(from + 1_000_000)));
    began.pass(at(from + 2000), 1000, true);
    assert_eq!(began.judge(at(from), 7, 7), judged::CHUNKS, "read again");
    assert_eq!(began.judge(at(from), 5, 7), judged::PASSES, "other framing");
    assert_eq!(began.judge(at(from + 7), 1993, 7), judged::BODY, "data behind it");
}

#[test]
fn a_timestamp_tells_the_scale_until_the_server_speaks() {
    let begun = |client_scale| {
        let (client_next, server_next, stamps) = (FIRST, 7, stamp::of(0x47));
        let began = Beginning { client_next, server_next, client_scale, stamps, scale: 8 };
        Unopened::new(began, 1)
    };
    let mut one = begun(15);
    assert!(one.may_scale(FIRST, 7) && one.may_scale(FIRST, 9) && one.may_scale(at(1), 7));
    assert!(!one.may_scale(at(1400), 7) && !one.may_scale(FIRST, 700));
    one.began.echoes(stamp::of(0x47));
    assert_eq!(one.began.client_scale, 15);
    one.began.echoes(stamp::of(0x48));
    assert_eq!(one.began.client_scale, scale::NONE as u8);
    let mut again = begun(15);
    again.is_asked_again(FIRST.wrapping_sub(1), 0, 3);
    assert_eq!(again.began.client_scale, 15, "the SYN of another connection");
    again.is_asked_again(FIRST, 0, 14);
    again.begins_again(8, stamp::of(0x4D));
    again.began.echoes(stamp::of(0x47));
    again.began.echoes(stamp::of(0x4D));
    assert_eq!(again.began.client_scale, 14);
    again.confirm(6, FIRST, 0);
    assert!(again.may_scale(FIRST, 7), "a keep-alive probe");
    again.confirm(7, at(100), 0);
    assert!(!again.may_scale(FIRST, 7));
    again.begins_again(8, stamp::of(0x41));
    assert!(!again.may_scale(FIRST, 7), "not even then");
    let mut older = begun(15);
    older.confirm(17, at(100), 0);
    assert_eq!(older.began.client_scale, scale::NONE as u8, "an older SYN-ACK's");
    again.begins_again(scale::NONE, stamp::NONE);
    assert_eq!(again.began.client_scale, scale::NONE as u8, "a SYN-ACK without a scale");
}

#[test]
fn a_hole_that_the_server_has_is_none_when_its_numbers_come_again() {
    let mut began = chunked(2, &[0]);
    let (hole, mut from) = (place(0) + 1000, place(2));
    // Chunks of a quarter of a GiB, round the sequence space.
    for _ in 0..15 {
        began.acknowledge(at(from), 7, WINDOW, false, 1);
        let next = from.wrapping_add(1 << 28);
        assert!(began.read_chunks(at(from), at(from.wrapping_add(12)), Chunks::BEGIN, at(next)));
        began.pass(at(from), 1 << 28, true);
        from = next;
    }
    began.acknowledge(at(from), 7, WINDOW, false, 1);
    let next = hole.wrapping_add(10);
    assert!(began.read_chunks(at(from), at(from.wrapping_add(12)), Chunks::BEGIN, at(next)));
    began.pass(at(from), next.wrapping_sub(from), true);
    began.acknowledge(at(next), 7, WINDOW, false, 1);
    assert_eq!((began.unread, began.judge(at(next), 20, 7)), (0, judged::CHUNKS));
}

#[test]
fn other_framing_in_front_of_what_is_known_is_not_skipped() {
    let places = framing::PLACES as u32;
    let forgotten = chunked(places + 1, &[]);
    assert_eq!(
        forgotten.judge(at(place(0)), 2016, 7),
        judged::PASSES,
        "one that is forgotten, and one"
    );
    // The ring begins again in between.
    let two = chunked(places + 3, &[]);
    for number in 3..places + 2 {
        let segment = (at(place(number)), at(place(number + 1) + 8));
        assert_eq!(two.reader(segment.0, segment.1).1, segment.0, "the first of two, {number}");
    }
}

#[test]
fn bodies_are_followed_for_more_than_two_gibibytes() {
    let mut began = chunked(0, &[]);
    let mut next = at(60);
    for _ in 0..5 {
        began.complete(next, Some(1 << 30));
        for _ in 0..256 {
            assert_eq!(began.judge(next, 1 << 22, 7), judged::BODY);
            began.pass(next, 1 << 22, true);
            next = next.wrapping_add(1 << 22);
            began.acknowledge(next, 7, WINDOW, false, 1);
        }
        assert_eq!(began.unread, 0);
    }
}

#[test]
fn a_request_behind_an_early_answer_to_chunks_is_not_pipelined() {
    let mut began = chunked(3, &[]);
    began.acknowledge(at(70), 20, WINDOW, true, 1);
    began.acknowledge(at(4000), 20, WINDOW, false, 1);
    assert!(began.read_chunks(at(60 + 6024), at(60 + 6029), Chunks::NONE, at(60 + 6029)));
    began.pass(at(60 + 6024), 5, true);
    began.acknowledge(at(60 + 6029), 20, WINDOW, false, 1);
    began.begin(at(60 + 6029));
    assert_eq!(began.unread, 0);
}

#[test]
fn a_connection_is_gone_once_the_server_may_have_forgotten_it() {
    let begun = || {
        let mut began = began();
        began.pass(at(0), 1000, true);
        began.acknowledge(at(500), 100, WINDOW, true, 1);
        began.spoke_ms = 1000;
        began
    };
    let known = begun().server_high;
    for (seq, ack, passes, gone) in [
        (500, known, true, true),
        (500, known.wrapping_sub(1 << 30), true, true),
        (800, known, true, true),
        (800, known.wrapping_sub(1 << 30), false, false),
        (499, known, true, true),
        (499, known.wrapping_sub(1 << 30), false, false),
        (498, known, true, false),
        (5000, known, true, true),
        (5000, known.wrapping_sub(1 << 30), false, false),
        (2 * FAR, known, false, false),
        (800, known.wrapping_sub(80), true, true),
        (800, known.wrapping_sub(ends::CLOSE + 1), false, false),
    ] {
        let mut reset = begun();
        assert_eq!(reset.end_by_client(at(seq), 0, ack, true), passes, "{seq}");
        assert_eq!((reset.is_gone(1000), reset.unread != 0), (gone, gone), "{seq}");
    }
    let mut overlaps = begun();
    assert!(!overlaps.end_by_client(at(498), 3, known, true), "a RST with data");
    assert!(
        !begun().end_by_client(at(1000), 0, known.wrapping_sub(1 << 30), false),
        "nor such a FIN"
    );
    let mut ended = begun();
    ended.end_by_server(known, false, 1000);
    assert_eq!(ended.ends(), hidden::SERVER_FIN);
    assert!(!ended.is_gone(5000) && !ended.acknowledge(at(500), 100, WINDOW, false, 1));
    assert!(ended.acknowledge(at(600), 100, WINDOW, false, 1), "it reads what its client sends");
    assert!(ended.is_gone(6000), "and for long no more");
    let mut closed = begun();
    closed.end_by_server(known, false, 1000);
    closed.end_by_server(known.wrapping_add(1 << 29), true, 1000);
    assert!(closed.is_gone(1000), "its RST answers any number");
    let mut both = begun();
    assert!(both.end_by_client(at(900), 100, known, false) && !both.is_gone(1000));
    both.end_by_server(known, false, 1000);
    assert!(both.is_gone(1000));
    let mut reset = begun();
    reset.end_by_server(known.wrapping_add(1), true, 1000);
    assert!(!reset.is_gone(1000), "no connection's");
    reset.end_by_server(known.wrapping_sub(10), true, 1000);
    assert!(reset.is_gone(1000));
}

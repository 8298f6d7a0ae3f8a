use proptest::prelude::*;

use super::*;

/// [`Hold::wants`], where the source's first edges are not used up.
fn wants(hold: &mut Hold, server: &Advertised) -> u32 {
    let first = hold.first(server);
    hold.wants(server, first)
}

fn server(ack: u32, window: u32, shift: u32) -> Advertised {
    Advertised { ack, window, shift }
}

#[test]
fn many_that_wait_share_what_passes_in_any_case() {
    const RATE: u32 = 16 << 10;
    let mut firsts = Budget::default();
    // One connection's minimum, or its due segments, are refilled.
    for second in 0..60 {
        assert_eq!(firsts.patience(second * 1000, RATE, false), 0);
        firsts.owe_first(RATE, 1448, false);
    }
    let mut firsts = Budget { taken: FIRSTS, filled_ms: 60_000 };
    let (mut passed, mut next) = (0u32, [0u32; 300]);
    for ms in (60_000..360_000).step_by(100) {
        for next in &mut next {
            let wait = STALL_MS + firsts.patience(ms, RATE, false);
            if ms - *next >= wait {
                firsts.owe_first(RATE, 1448, false);
                (*next, passed) = (ms, passed + 1448);
            }
        }
    }
    // 300 of them for the longest wait each, after a first one.
    assert!(passed < 300 * 1448 * (2 + 300_000 / (STALL_MS + PATIENCE_MS)), "{passed}");
    assert_eq!(Budget::default().patience(0, 1, false), 0);
}

#[test]
fn the_edge_wraps_around() {
    let mut hold = Hold::default();
    hold.begin(0, 0, 0, 0, 0);
    assert_eq!(wants(&mut hold, &server(0xFFFF_FF00, 512, 0)), 0);
    assert_eq!(hold.open(&server(0xFFFF_FF00, 512, 0), 0, 0), 512);
    assert_eq!(hold.edge, 0x100);
    // The client sends it all, the server takes it and has as much room as before.
    let all = server(0x100, 512, 0);
    assert_eq!(wants(&mut hold, &all), 512);
    assert_eq!(hold.open(&all, 200, 0), 200);
    assert_eq!((hold.edge, hold.granted), (0x100 + 200, 200));
}

#[test]
fn a_large_window_is_cut_when_pacing_begins() {
    let mut hold = Hold::default();
    hold.begin(0, 0, 0, 0, 0);
    let large = server(u32::MAX - 9, 60_000, 7);
    assert_eq!(wants(&mut hold, &large), (60_000 << 7) - AT_FIRST);
    assert_eq!(hold.open(&large, 0, 0), AT_FIRST >> 7);
    assert!(hold.is_cut());
    wants(&mut hold, &server((60_000 << 7) - 10, 60_000, 7));
    assert!(!hold.is_cut());
    hold.begin(0, 0, 0, 0, 0);
    wants(&mut hold, &server(0, AT_FIRST >> 7, 7));
    assert!(!hold.is_cut());
}

#[test]
fn probes_pass_at_a_bounded_rate() {
    let mut hold = Hold::default();
    hold.begin(5, 0, 0, 0, 0);
    wants(&mut hold, &server(1000, 10, 0));
    assert_eq!(hold.reach(1000, 10, 5), Reach::Within);
    assert_eq!(hold.reach(1010, 1, 5), Reach::Probe);
    assert_eq!(hold.reach(1010, 1, 5 + PROBE_MS - 1), Reach::Beyond);
    assert_eq!(hold.reach(1010, 2, 5 + PROBE_MS), Reach::Beyond);
    assert_eq!(hold.reach(1010, 1, 5 + PROBE_MS), Reach::Probe);
    // The server took it: the next one is one byte further.
    wants(&mut hold, &server(1011, 10, 0));
    assert_eq!(hold.reach(1011, 1, 5 + 2 * PROBE_MS), Reach::Probe);
}

#[test]
fn a_bucket_gives_one_second_at_once_and_the_rate_after() {
    let mut budget = Budget::default();
    assert_eq!(budget.take(10_000, 16_384, 60_000), 16_384);
    assert_eq!(budget.take(10_000, 16_384, 60_000), 0);
    assert_eq!(budget.take(10_500, 16_384, 60_000), 8192);
    budget.owe(16_384, u32::MAX);
    assert_eq!(budget.take(11_500, 16_384, 60_000), 0);
    assert_eq!(budget.take(12_500, 16_384, 60_000), 16_384);
}

#[test]
fn a_long_segment_is_paid_for_in_full() {
    let (mut budget, rate, mut passed) = (Budget::default(), 1024, 0u32);
    for ms in 0..100_000 {
        passed += if budget.admits(10_000 + ms, rate, 65_000) { 65_000 } else { 0 };
        budget.owe(rate, u32::from(ms % 1000 == 0));
    }
    assert_eq!(passed, 2 * 65_000);
}

/// A paced client and its source's bucket. A millisecond passes between two turns.
struct Client {
    hold: Hold,
    budget: Budget,
    rate: u32,
    now: u32,
    bytes: u32,
    frames: u32,
}

impl Client {
    fn new(rate: u32) -> Client {
        let mut hold = Hold::default();
        hold.begin(10_000, 0, 0, 0, 0);
        Client { hold, budget: Budget::default(), rate, now: 10_000, bytes: 0, frames: 0 }
    }

    /// Ask for `bytes`, and send them in frames of this size. Returns the number of frames.
    fn send(&mut self, wanted: u32, size: u32) -> u32 {
        self.now += 1;
        let more = self.hold.count(self.bytes, self.frames);
        self.budget.owe_frames(self.now, self.rate, more);
        let granted = self.budget.take(self.now, self.rate, wanted);
        let before = self.bytes;
        self.bytes += granted;
        self.frames += self.bytes.div_ceil(size) - before.div_ceil(size);
        granted
    }

    fn seconds(&self) -> u32 {
        (self.now - 10_000) / 1000
    }
}

#[test]
fn small_frames_count_as_larger_ones() {
    let rate = 16 << 10;
    for size in (6..FRAME).step_by(5).chain([256, 1000, 4000]) {
        let mut client = Client::new(rate);
        for _ in 0..60_000 {
            client.send(60_000, size);
        }
        // The first bucket is taken before its frames are counted, and paid for with a debt.
        let (most, least) =
            (rate / size + 61 * rate / FRAME.max(size), 53 * rate / FRAME.max(size));
        let frames = client.frames;
        assert!((least..=most).contains(&frames), "{frames} frames of {size} bytes");
    }
}

#[test]
fn small_frames_between_large_ones_cost_no_more_than_alone() {
    let rate = 16 << 10;
    let mut client = Client::new(rate);
    for _ in 0..300 {
        for (bytes, size) in [(600, 6), (10_000, 10_000)] {
            let mut left = bytes;
            while left > 0 {
                left -= client.send(left, size);
            }
        }
    }
    let worth = 300 * (100 * FRAME + 10_000) / rate;
    let seconds = client.seconds();
    assert!((worth * 9 / 10..=worth * 11 / 10).contains(&seconds), "{seconds} s, not {worth}");
}

/// The best that a client can do: it waits for a full bucket, and takes it all for small frames.
#[test]
fn bursts_of_small_frames_are_paid_for() {
    let mut client = Client::new(16 << 10);
    while client.seconds() < 300 {
        // It has paid, and waits for a full one.
        client.send(0, 6);
        if client.budget.taken == 0 {
            client.send(60_000, 6);
        }
    }
    let frames = client.frames / client.seconds();
    assert!(frames < 9 * client.rate / FRAME, "{frames} frames a second");
}

proptest! {
    /// Whatever passes between them, of what fits a packet: that is paid for in LONGEST_DUE_MS.
    #[test]
    fn what_is_due_is_paid_for_with_time(steps in prop::collection::vec((0u32..3000, 0u32..65_536, any::<bool>()), 1..200)) {
        let (mut hold, mut now, mut passed) = (Hold::default(), 1000u32, 0u64);
        hold.begin(now, 0, 0, 0, 0);
        for (wait, len, probes) in steps {
            now += wait;
            if probes {
                hold.reach(hold.edge, 1, now);
            } else if hold.due(len, now, 0, false) {
                let most = u64::from(now - 1000) * u64::from(DUE) / u64::from(STALL_MS);
                prop_assert!(passed <= most, "{passed} bytes before the last one, {most} allowed");
                passed += u64::from(len);
            }
        }
    }
}

#[test]
fn what_is_under_way_is_paid_for_once() {
    let mut hold = Hold::default();
    hold.begin(0, 5000, 0, 0, 0);
    hold.granted = 700;
    let offers = server(4000, 8192, 0);
    assert_eq!(hold.paid(&offers, 5000), 700);
    assert_eq!(hold.paid(&offers, 4300), 300);
    assert_eq!(hold.paid(&offers, 3000), 0);
    assert_eq!(hold.paid(&server(4000, 200, 0), 5000), 200);
}

#[test]
fn a_due_segment_of_small_frames_is_waited_for_longer() {
    let mut hold = Hold::default();
    hold.begin(1000, 0, 0, 0, 0);
    assert!(hold.due(1448, 1000, 0, false));
    // Its 200 frames count as 51,200 bytes.
    assert_eq!(hold.count(1448, 200), 200 * FRAME - 1448);
    let wait = STALL_MS + (200 * FRAME - 1448) * STALL_MS / DUE;
    assert!(!hold.due(1448, 1000 + wait - 1, 0, false));
    assert!(hold.due(1448, 1000 + wait, 0, false));
    for frames in 0..100 {
        hold.count(10_000 + frames, 1_000_000 * frames);
    }
    assert!(!hold.due(1448, 2000 + wait, 0, false));
    assert!(hold.due(1448, 2000 + wait + LONGEST_DUE_MS, 0, false));
}

#[test]
fn first_edges_are_used_up() {
    let (mut firsts, rate) = (Budget::default(), 16 << 10);
    let granted: u32 =
        (0..100).map(|_| firsts.take_first(10_000, rate, AT_FIRST, 0, AT_FIRST, 0)).sum();
    assert_eq!(granted, FIRSTS);
    assert_eq!(firsts.take_first(11_000, rate, AT_FIRST, 0, AT_FIRST, 0), rate / FIRSTS_FILL);
    // Small frames take what their bytes do not, and leave no debt.
    assert_eq!(firsts.take_first(12_000, rate, 100, 0, 100, FRAME), 100);
    assert_eq!(firsts.take_first(12_000, rate, AT_FIRST, 0, AT_FIRST, FIRSTS), 0);
    firsts.taken = firsts.taken.min(FIRSTS);
    // Bytes that are to hold small frames are fewer.
    let cost = Hold::cost(1000, 1448, 200 * FRAME - 1448);
    assert_eq!(cost, 1000 + 1000 * (200 * FRAME - 1448) / 1448);
    let granted = 1000 * (rate / FIRSTS_FILL) / cost;
    assert_eq!(firsts.take_first(13_000, rate, 1000, 0, cost, 0), granted);
    assert_eq!(Hold::cost(1000, 0, 5), 1000);
    assert_eq!(firsts.take_first(14_000, rate, AT_FIRST, 0, AT_FIRST, 0), rate / FIRSTS_FILL);
    let mut hold = Hold::default();
    hold.begin(0, 0, 0, 0, 0);
    assert_eq!(hold.wants(&server(1000, 512, 7), 100), (512 << 7) - 100);
    assert!(hold.is_cut());
}

/// Event at the server.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many milliseconds pass.
    Wait(u32),
    /// The client sends what it may, at most so much.
    Send(u32),
    /// The server's application reads, and its receive buffer is so large from now on.
    Read(u32, u32),
    /// The server sends a segment.
    Answer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u32..1500).prop_map(Step::Wait),
        (1u32..200_000).prop_map(Step::Send),
        (0u32..300_000, 1u32..AT_FIRST).prop_map(|(read, buffer)| Step::Read(read, buffer)),
        Just(Step::Answer),
        Just(Step::Answer),
    ]
}

proptest! {
    #[test]
    fn an_honest_client_is_never_beyond_the_edge_and_gets_no_more_than_its_rate(
        shift in 0u32..=14, start: u32, rate in 1024u32..100_000,
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let (mut hold, mut budget, mut now) = (Hold::default(), Budget::default(), 77u32);
        hold.begin(now, start, 0, start, start);
        // The server's receive buffer, what waits in it, and the edge that it has offered.
        let (mut buffer, mut unread) = (65_536u32, 0u32);
        let (mut taken, mut offered) = (start, start);
        // The client: next byte, and its view of the window.
        let (mut next, mut view) = (start, start);
        let mut first = None;
        for step in steps {
            match step {
                Step::Wait(ms) => now += ms,
                Step::Send(most) => {
                    let may = view.wrapping_sub(next);
                    let sent = if after(view, next) { may.min(most) } else { 0 };
                    if sent > 0 && hold.held != 0 {
                        prop_assert_eq!(hold.reach(next, sent, now), Reach::Within);
                    }
                    next = next.wrapping_add(sent);
                    taken = next;
                    unread += sent;
                }
                Step::Read(bytes, size) => {
                    unread -= bytes.min(unread);
                    buffer = size;
                }
                Step::Answer => {
                    let room = buffer.saturating_sub(unread).min(0xFFFF << shift);
                    let mut window = room >> shift;
                    // Servers do not shrink what they offered (RFC 9293, 3.8.6).
                    let due = offered.wrapping_sub(taken);
                    if after(offered, taken) && window << shift < due {
                        window = due.div_ceil(1 << shift);
                    }
                    if window > 0xFFFF {
                        continue;
                    }
                    let said = server(taken, window, shift);
                    offered = later(offered, said.edge());
                    let before = hold;
                    let wanted = wants(&mut hold, &said);
                    let mut granted = budget.take(now, rate, wanted);
                    let least = hold.minimum(&said, wanted, now);
                    if granted < least {
                        budget.owe(rate, least - granted);
                        granted = least;
                    }
                    let field = hold.open(&said, granted, now);
                    first.get_or_insert(hold.edge.wrapping_sub(start));
                    prop_assert!(field <= window);
                    prop_assert!(before.held == 0 || !after(before.edge, hold.edge));
                    let advertised = taken.wrapping_add(field << shift);
                    prop_assert!(!after(advertised, hold.edge));
                    prop_assert!(hold.edge.wrapping_sub(advertised) < 1 << shift);
                    prop_assert!(!after(hold.edge, offered));
                    view = advertised;
                }
            }
        }
        // What came after the first edge: a burst, the rate, and the minimum each second.
        let ms = u64::from(now - 77);
        let least = u64::from(LEAST.max(1 << shift));
        let most = u64::from(rate) * (1 + 1) + u64::from(rate) * ms / 1000
            + least * (ms / u64::from(STALL_MS) + 1);
        let got = u64::from(next.wrapping_sub(start).saturating_sub(first.unwrap_or(u32::MAX)));
        prop_assert!(got <= most, "{got} of {most}");
    }
}

/// An initial window of pings of 131 bytes: length, and cost of its frames beyond that.
const PINGS: (u32, u32) = (14_480, 111 * FRAME - 14_480);
/// The same of messages of 7 bytes.
const MESSAGES: (u32, u32) = (14_480, 2068 * FRAME - 14_480);

#[test]
fn the_initial_windows_of_fifty_connections_pass_unless_they_are_dense() {
    let first = |(len, more): (u32, u32)| {
        let mut firsts = Budget::default();
        let windows = (0..60).map(|_| {
            let sent = if dense(len, more) { 0 } else { len };
            firsts.take_first(10_000, 16 << 10, len, sent, len + more, 0) == len
        });
        windows.filter(|passes| *passes).count()
    };
    assert!(!dense(PINGS.0, PINGS.1) && dense(MESSAGES.0, MESSAGES.1));
    assert!((50..=(FIRSTS + CROWD) as usize / FRAME as usize / 111).contains(&first(PINGS)));
    assert_eq!(first(MESSAGES), 0);
    // What was offered and is not under way comes of the first edges alone.
    let mut firsts = Budget::default();
    let all: u32 = (0..50).map(|_| firsts.take_first(0, 1, AT_FIRST, 1000, AT_FIRST, 0)).sum();
    assert_eq!(all, FIRSTS + 48 * 1000);
    // A crowd has an end as well.
    let passes = (0..5000).filter(|_| firsts.take_first(0, 1, 1000, 1000, 1000, 0) == 1000).count();
    assert_eq!(passes, (CROWD as usize - 48 * 1000) / 1000);
}

#[test]
fn a_connection_has_no_more_than_500_or_so_of_the_smallest_frames_at_first() {
    let (bytes, more) = MESSAGES;
    let cost = Hold::cost(65_536, bytes, more);
    let affordable = Hold::affordable(65_536, cost);
    assert_eq!(affordable / 7, 526);
    assert_eq!(Hold::affordable(65_536, Hold::cost(65_536, PINGS.0, PINGS.1)), 65_536);
    assert_eq!(Hold::affordable(0, 0), 0);
    let mut hold = Hold::default();
    assert!(!hold.exceeds_surplus(1448, bytes, more));
    hold.granted = 2 * 1448;
    assert!(hold.exceeds_surplus(1448, bytes, more));
    assert!(!hold.exceeds_surplus(50_000, PINGS.0, PINGS.1));
    assert!(!hold.exceeds_surplus(u32::MAX, bytes, 0));
}

#[test]
fn what_a_client_may_have_in_flight_is_known_when_pacing_begins() {
    // After a request of 300 bytes: an initial window behind it.
    let mut hold = Hold::default();
    hold.begin(0, 14_780, 2068, 0, 300);
    assert_eq!(hold.under_way(&server(14_780, 512, 7), 14_780), 300 + INITIAL + 300 - 14_780);
    // What has passed is under way as well, but no more than the server offers.
    assert_eq!(hold.under_way(&server(300, 512, 7), 40_000), 39_700);
    assert_eq!(hold.under_way(&server(300, 10, 7), 40_000), 1280);
    // As much again as was acknowledged, over the wrap of sequence numbers.
    hold.begin(0, 20_000, 2068, 0u32.wrapping_sub(10_000), 10_000);
    assert_eq!(hold.under_way(&server(10_000, 512, 7), 20_000), INITIAL + 20_000);
}

#[test]
fn dense_segments_that_are_due_queue_up() {
    const RATE: u32 = 16 << 10;
    let (len, cost) = (1448, Hold::cost(1448, MESSAGES.0, MESSAGES.1));
    let mut firsts = Budget { taken: FIRSTS, filled_ms: 1000 };
    let mut holds = [Hold::default(); 50];
    holds.iter_mut().for_each(|hold| hold.begin(1000, 0, 0, 0, 0));
    let mut passed = [0; 50];
    // Retransmissions of 50 clients, after ever longer times.
    for wait in [200, 600, 1400, 3000, 6200, 12_600, 25_400, 51_000, 102_200] {
        let now = 1000 + wait;
        for (hold, passed) in holds.iter_mut().zip(&mut passed) {
            let patience = firsts.patience(now, RATE, true);
            if *passed == 0 && hold.due(len, now, patience, true) {
                firsts.owe_first(RATE, cost, true);
                *passed += 1;
            }
        }
        let all: u32 = passed.iter().sum();
        assert!(wait > 60_000 || all <= 2 + wait / 1000 / 4, "{all} after {wait} ms");
    }
    // None waits for good.
    assert_eq!(passed, [1; 50]);
    // Others do not wait for their first one.
    assert!(holds[0].due(len, 1000 + 400_000, 0, false));
    let mut hold = Hold::default();
    hold.begin(1000, 0, 0, 0, 0);
    assert!(hold.due(len, 1000, PATIENCE_MS, false));
}

#[test]
fn a_slightly_earlier_time_fills_nothing() {
    let full = Budget { taken: FIRSTS, filled_ms: 1004 };
    for now in [1004, 1000, 0, 1004u32.wrapping_sub(9_999)] {
        assert!(!full.clone().admits_first(now, 16 << 10, 1448), "{now}");
    }
    // After weeks without a byte.
    assert!(full.clone().admits_first(1004u32.wrapping_sub(20_000), 16 << 10, 1448));
}

//! Upload from a real TCP to another, on two bad paths with the guard between them.
//!
//! ```text
//! sender ──▶ path ──▶ guard ──▶ path ──▶ receiver
//!    ▲         ◀────────┴────────◀          │
//!    └──────────── acknowledgements ────────┘
//! ```

use std::{collections::BTreeMap, ops::Range};

use fastrand::Rng;
use ws_guard_common::{
    flow::{SETTLED_NS, STALLED_NS},
    replay::{Reason, Verdict},
};

use crate::{
    cases::one_in,
    guard::Guard,
    receiver::{Overlap, Receiver},
    sender::{Ack, Sender, Time},
    wire::{Mangling, Piece, Wire, cut, recut},
};

/// Time after which nothing is lost any more.
const BAD: Time = 20_000;
/// Time limit of a transfer, after which it has failed.
const PATIENCE: Time = 400_000;
/// Maximum delay of an acknowledgement.
const DELAYED: Time = 40;

/// Content of an acknowledgement, in order of comparison.
type Told = (usize, usize, Vec<(usize, usize)>);

/// Endpoints of a transfer, and the path between them.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Path before the guard, and after it.
    pub before: Mangling,
    pub behind: Mangling,
    /// Path of acknowledgements: to the guard, and from there on.
    pub back: [Mangling; 2],
    pub mss: usize,
    /// Time and size of a later, smaller MTU after the guard.
    /// Longer segments are lost, and the sender is informed.
    pub shrinks: Option<(Time, usize)>,
    pub burst: usize,
    pub sack: bool,
    /// Receive buffer in bytes.
    pub room: usize,
    /// Bytes that the receiver's application reads in a millisecond.
    pub reads: usize,
    /// Download rate in bytes a millisecond, and delay of the client's data.
    /// The delay, in milliseconds, is that of a queue that its bare acknowledgements bypass.
    pub download: (usize, Time),
}

impl Route {
    /// Choose random faults of each kind, or none.
    pub fn any(rng: &mut Rng) -> Route {
        let slow = |rng: &mut Rng| Mangling { cuts: 0, merges: 0, ..Mangling::any(rng) };
        Route {
            before: Mangling::any(rng),
            behind: Mangling::any(rng),
            back: [slow(rng), slow(rng)],
            mss: [1448, 1448, 8948, 536][rng.usize(..4)],
            shrinks: one_in(rng, 3).then(|| (rng.u64(..300), [1348, 1208, 524][rng.usize(..3)])),
            burst: [1, 1, 2, 10, 44][rng.usize(..5)],
            sack: !one_in(rng, 4),
            room: [65_535, 20_000, 400_000][rng.usize(..3)],
            reads: [1_000_000, 1_000_000, 2_000][rng.usize(..3)],
            download: if one_in(rng, 4) { (rng.usize(..6_000), rng.u64(..400)) } else { (0, 0) },
        }
    }
}

/// Transfer in progress.
pub struct Transfer<'a, G> {
    stream: &'a [u8],
    base: u32,
    route: Route,
    pub guard: &'a mut G,
    pub receiver: Receiver,
    pub sender: Sender,
    before: Wire<Piece>,
    behind: Wire<Piece>,
    back: [Wire<Told>; 2],
    /// MTU reports on their way to the sender, and their arrival.
    too_long: Option<(Time, usize)>,
    read: usize,
    told: (usize, usize),
    owes: Option<Time>,
    owed: u32,
    downloaded: usize,
    /// Milliseconds since its beginning.
    pub now: Time,
    passed: Time,
    /// Segments that the guard dropped, by reason.
    pub dropped: BTreeMap<Reason, u64>,
    /// Number of segments whose acknowledgement the guard rejected.
    pub forged: u64,
    /// Longest time without new data at the receiver.
    pub pause: Time,
}

impl<'a, G: Guard> Transfer<'a, G> {
    /// Create a transfer of `stream`, whose first byte has sequence number `base`.
    pub fn new(base: u32, stream: &'a [u8], route: Route, guard: &'a mut G) -> Transfer<'a, G> {
        Transfer {
            stream,
            base,
            route,
            guard,
            receiver: Receiver::new(base, Overlap::Linux),
            sender: Sender::new(stream.len(), route.mss, route.burst, route.sack),
            before: Wire::new(route.before.slower(route.download.1)),
            behind: Wire::new(route.behind),
            back: route.back.map(Wire::new),
            too_long: None,
            read: 0,
            told: (0, route.room),
            owes: None,
            owed: 0,
            downloaded: 0,
            now: 0,
            passed: 0,
            dropped: BTreeMap::new(),
            forged: 0,
            pause: 0,
        }
    }

    /// Run until the sender knows that everything has arrived; return whether it does.
    pub fn run(&mut self, rng: &mut Rng) -> bool {
        let (mut had, mut since) = (0, 0);
        while !self.sender.is_done() && self.now < PATIENCE {
            self.turn(rng);
            if self.receiver.stream.len() > had {
                (had, since) = (self.receiver.stream.len(), self.now);
            }
            self.pause = self.pause.max(self.now - since);
            if self.sender.is_done() {
                break;
            }
            self.now = self.next_time();
            if self.now > BAD {
                for mangling in [&mut self.before.mangling, &mut self.behind.mangling] {
                    *mangling = mangling.calm();
                }
                for wire in &mut self.back {
                    wire.mangling = wire.mangling.calm();
                }
            }
        }
        self.sender.is_done()
    }

    /// Return the time of the next event.
    fn next_time(&self) -> Time {
        let unread = self.receiver.stream.len() - self.read;
        let reads = (unread > 0 || self.route.download.0 > 0).then_some(self.now + 5);
        let times = [self.before.due(), self.behind.due(), self.back[0].due(), self.back[1].due()];
        let ends = [self.sender.due(), self.owes, self.too_long.map(|(due, _)| due), reads];
        let next = times.into_iter().chain(ends).flatten().min();
        next.unwrap_or(PATIENCE).max(self.now + 1)
    }

    /// Process all events that are due now.
    fn turn(&mut self, rng: &mut Rng) {
        self.applications();
        if let Some((due, mss)) = self.too_long
            && due <= self.now
        {
            self.sender.shrink(self.now, mss);
            self.too_long = None;
        }
        while let Some((to, window, sacks)) = self.back[1].leave(self.now) {
            let sacks = sacks.into_iter().map(|(from, to)| from..to).collect();
            self.sender.hear(self.now, &Ack { to, window, sacks });
        }
        self.sender.wake(self.now);
        while let Some(range) = self.sender.send(self.now) {
            self.send(rng, range);
        }
        self.at_guard(rng);
        self.at_receiver(rng);
        while let Some(told) = self.back[0].leave(self.now) {
            self.guard.acknowledge(self.base.wrapping_add(told.0 as u32));
            self.back[1].enter(rng, self.now, told);
        }
    }

    /// Run the server's application, which reads and sends.
    fn applications(&mut self) {
        let unread = self.receiver.stream.len() - self.read;
        self.read += unread.min(self.route.reads * 5);
        let (rate, _) = self.route.download;
        self.downloaded = rate * self.now as usize;
        self.guard.server_sends(self.downloaded as u32);
        // Bare acknowledgements overtake everything else.
        self.guard.hears(self.downloaded.saturating_sub(rate * 20) as u32);
    }

    /// Send the sender's segment into the first path.
    fn send(&mut self, rng: &mut Rng, range: Range<usize>) {
        let seq = self.base.wrapping_add(range.start as u32);
        let ack = self.downloaded as u32;
        let piece = Piece { seq, bytes: self.stream[range].to_vec(), mss: self.sender.mss, ack };
        self.before.enter(rng, self.now, piece);
    }

    /// Pass segments through the guard.
    fn at_guard(&mut self, rng: &mut Rng) {
        let mut arrived = Vec::new();
        while let Some(piece) = self.before.leave(self.now) {
            arrived.push(piece);
        }
        for mut piece in recut(rng, self.before.mangling, arrived) {
            if !self.guard.hears(piece.ack) {
                self.forged += 1;
                continue;
            }
            if self.now - self.passed > SETTLED_NS / 1_000_000 {
                self.guard.rest();
            }
            if self.now - self.passed > STALLED_NS / 1_000_000 {
                self.guard.fall_silent();
            }
            match self.guard.client(piece.seq, &mut piece.bytes, true) {
                Verdict::Pass => self.leave_guard(rng, piece),
                Verdict::Drop(reason) => *self.dropped.entry(reason).or_default() += 1,
            }
        }
    }

    /// Cut merged segments again, and drop those that are too long for the path.
    fn leave_guard(&mut self, rng: &mut Rng, piece: Piece) {
        self.passed = self.now;
        let mss = piece.mss;
        if let Some((from, longest)) = self.route.shrinks
            && self.now >= from
            && mss > longest
        {
            let delay = self.route.before.delay;
            self.too_long = self.too_long.or(Some((self.now + delay, longest)));
            return;
        }
        for piece in cut(piece, mss) {
            self.behind.enter(rng, self.now, piece);
        }
    }

    /// Pass segments to the receiver, which acknowledges.
    fn at_receiver(&mut self, rng: &mut Rng) {
        let mut arrived = Vec::new();
        while let Some(piece) = self.behind.leave(self.now) {
            arrived.push(piece);
        }
        let mut at_once = false;
        for piece in recut(rng, self.behind.mangling, arrived) {
            let had = self.receiver.stream.len();
            let offset = piece.seq.wrapping_sub(self.receiver.ack()) as i32;
            let end = i64::from(offset) + piece.bytes.len() as i64;
            // Segments outside its window are discarded whole; parts of them may be as well.
            if end <= self.window() as i64 {
                self.receiver.take(piece.seq, &piece.bytes);
            }
            self.owed += 1;
            let in_order = offset == 0 && self.receiver.stream.len() == had + piece.bytes.len();
            at_once |= !in_order || self.owed >= 2;
        }
        let opens = self.window() >= self.told.1 + 2 * self.route.mss;
        if at_once || opens || self.owes.is_some_and(|due| due <= self.now) {
            self.answer(rng);
        } else if self.owed > 0 {
            self.owes = self.owes.or(Some(self.now + DELAYED));
        }
    }

    /// Return the receiver's free space.
    fn window(&self) -> usize {
        // Never less than was announced.
        let room = self.route.room.saturating_sub(self.receiver.stream.len() - self.read);
        let told = self.told.0 + self.told.1;
        room.max(told.saturating_sub(self.receiver.stream.len()))
    }

    fn answer(&mut self, rng: &mut Rng) {
        let to = self.receiver.stream.len();
        let window = self.window();
        self.told = (to, window);
        (self.owes, self.owed) = (None, 0);
        let sacks = self.receiver.ranges().into_iter().map(|range| (range.start, range.end));
        self.back[0].enter(rng, self.now, (to, window, sacks.take(4).collect()));
    }
}

//! Connection from its 101 to its end: one future, with no other task or buffer.

mod closing;
mod handling;
mod path;
mod timing;
mod view;
mod working;

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::{BufMut, BytesMut};
use tokio_util::io::poll_read_buf;
use ws_guard_common::window::RateWindow;

use self::{path::Looked, timing::FrameTime};
use super::{
    admission::Ticket,
    cause::Cause,
    coding::{Coding, Opening},
    handler::{Echo, Handler},
    handshake::Done,
    heartbeat::{Heartbeat, State},
    io::Stream,
    journal::Happened,
    metrics::{Standee, Standing},
    outbox::Outbox,
    places::Place,
    pool,
    protocol::{
        Close, Decoder, Event, Role,
        deflate::{Deflater, Inflater},
    },
    record::{Origin, Totals},
    shard::Shard,
    topics::subscriber::{Beginning, Subscriber},
    turn::{self, Turn},
};

/// Number of bytes read before others get their turn: small frames take their time.
const TURN: u64 = turn::TURN as u64;

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Close frame sent or queued, without the peer's yet.
    Closing,
    /// End of reading frames: flush, end this side of TCP, wait for the other to end.
    Ending,
    /// The same, with this side's end sent.
    Lingering,
}

/// WebSocket connection.
pub struct Connection<I> {
    io: I,
    shard: Rc<Shard>,
    /// Slot in the shard's wheel.
    slot: usize,
    origin: Origin,
    ticket: Ticket,
    decoder: Decoder,
    deflater: Option<Deflater>,
    /// Coding of messages by the subprotocol.
    coding: Option<Box<Coding>>,
    /// Message whose decoding takes more than a turn.
    opening: Option<Box<Opening>>,
    /// Place for work that takes more than a turn.
    place: Option<Box<Place>>,
    handler: Box<dyn Handler>,
    /// Bytes of an incomplete frame; without memory between frames.
    input: BytesMut,
    outbox: Outbox,
    heartbeat: Heartbeat,
    /// Ping window, once a ping came, where pings are limited by connection.
    pings: Option<Box<RateWindow>>,
    phase: Phase,
    /// Membership in the gauge of connections.
    standee: Standee,
    /// Heartbeat state last reported to the journal.
    told: State,
    cause: Option<Cause>,
    close: Option<Box<Close>>,
    sent_close: Option<u16>,
    /// Time at which the socket last accepted bytes, while there are more.
    stuck_since: Option<Instant>,
    /// Frame being read, once its rest had to be waited for.
    frame: Option<FrameTime>,
    /// `true` if everything received was processed, without waiting for the peer.
    caught_up: bool,
    /// Arrival of the ping being answered, unless it had to wait for the peer.
    answering: Option<Instant>,
    /// Deadline of closing.
    close_by: Option<Instant>,
    totals: Totals,
    looked: Looked,
    /// Number of bytes last reported as held in memory.
    held: usize,
}

impl<I: Stream> Connection<I> {
    /// Create a connection after its handshake.
    pub fn new(
        shard: Rc<Shard>,
        origin: Origin,
        ticket: Ticket,
        done: Done<I, ()>,
        beginning: Beginning,
    ) -> Connection<I> {
        let config = &shard.service.config;
        let agreed = done.upgrade.deflate;
        let inflater = agreed.as_ref().map(Inflater::new);
        let mut decoder = Decoder::new(Role::Server, config.limits, inflater);
        let choice = done.upgrade.protocol.as_ref();
        let handler: Box<dyn Handler> = match &shard.service.topics {
            // Without state it takes no memory.
            None => Box::new(Echo),
            Some(topics) => Box::new(Subscriber::new(origin.id, topics.clone(), beginning)),
        };
        if handler.streams() && choice.is_some_and(|choice| choice.features.streaming) {
            decoder.stream();
        }
        let coding = choice.and_then(|choice| {
            let deadline = Instant::now() + config.handshake_timeout;
            Coding::of(choice, agreed.is_some(), config.negotiation.noise_key(), deadline)
        });
        // Consecutive numbers times the golden ratio are distributed evenly.
        let spread = (origin.id as u32).wrapping_mul(0x9E37_79B9);
        let heartbeat = Heartbeat::new(Instant::now(), &config.heartbeat, spread);
        let slot = shard.wheel.enter(origin.id);
        let standee = Standee::new(origin.region.clone());
        let input = BytesMut::from(done.leftover);
        let bytes_in = input.len() as u64;
        Connection {
            io: done.io,
            slot,
            origin,
            ticket,
            decoder,
            deflater: agreed.as_ref().map(Deflater::new),
            coding: coding.map(Box::new),
            opening: None,
            place: None,
            handler,
            input,
            outbox: Outbox::default(),
            heartbeat,
            pings: None,
            phase: Phase::Open,
            standee,
            told: State::Idle,
            cause: None,
            close: None,
            sent_close: None,
            stuck_since: None,
            frame: None,
            caught_up: true,
            answering: None,
            close_by: None,
            looked: Looked::default(),
            held: 0,
            totals: Totals { bytes_in, ..Totals::default() },
            shard,
        }
    }

    /// Work until it has to wait; ready when the connection is over.
    fn run(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let before = self.totals;
        let mut turn = Turn::new(now);
        loop {
            if self.flush(cx, now, &mut turn).is_err() {
                return self.vanished();
            }
            if turn.is_over() {
                self.caught_up = false;
                yield_turn(cx);
                return Poll::Pending;
            }
            if self.outbox.is_working() || self.is_working() && !self.is_full() {
                if !self.has_place(cx) {
                    self.caught_up = false;
                    return Poll::Pending;
                }
                self.work(now, &mut turn);
                continue;
            }
            let open = matches!(self.phase, Phase::Open | Phase::Closing);
            let may_deliver = self.may_deliver(cx);
            if open && self.is_full() {
                self.caught_up = false;
                return Poll::Pending;
            }
            if may_deliver && self.deliver(now, &mut turn) {
                if self.totals.bytes_out - before.bytes_out >= TURN {
                    yield_turn(cx);
                    return Poll::Pending;
                }
                continue;
            }
            if open && self.is_to_decode() && self.decode(now, &mut turn) {
                continue;
            }
            if self.phase == Phase::Ending && self.outbox.is_empty() {
                match Pin::new(&mut self.io).poll_shutdown(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(())) => self.phase = Phase::Lingering,
                }
            }
            if self.totals.bytes_in - before.bytes_in >= TURN {
                self.caught_up = false;
                yield_turn(cx);
                return Poll::Pending;
            }
            match self.read(cx, now) {
                Poll::Pending => {
                    self.caught_up = true;
                    return Poll::Pending;
                }
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false) | Err(_)) => return self.vanished(),
            }
        }
    }

    fn is_full(&self) -> bool {
        self.outbox.is_full(self.shard.service.output_limit())
    }

    /// Check whether an unfinished message takes more memory than there is for it.
    fn hoards(&self, in_time: bool) -> bool {
        let bytes = self.input.len() + self.decoder.held() + self.opening_held();
        let reads = matches!(self.phase, Phase::Open | Phase::Closing);
        reads && bytes > 0 && self.shard.service.is_too_much(bytes, in_time)
    }

    /// Report the memory held until the next report.
    fn account(&mut self) {
        let incoming = self.input.capacity() + self.decoder.held() + self.opening_held();
        let now = incoming + self.outbox.held() + self.handler.held();
        self.shard.service.hold(self.held, now);
        self.held = now;
    }

    fn flush(&mut self, cx: &mut Context<'_>, now: Instant, turn: &mut Turn) -> io::Result<()> {
        if self.outbox.is_flushed() {
            return Ok(());
        }
        let progress = match self.outbox.poll_flush(cx, &mut self.io, turn) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.totals.bytes_out += progress as u64;
        if self.outbox.is_flushed() {
            self.stuck_since = None;
        } else if progress > 0 {
            self.stuck_since = Some(now);
        } else {
            self.stuck_since.get_or_insert(now);
        }
        let answering = self.answering.take();
        if !self.outbox.owes_pong() {
            self.heartbeat.pong_sent();
            answering
                .inspect(|arrived| self.shard.answered_ping(self.origin.id, arrived.elapsed()));
        }
        Ok(())
    }

    /// Read once; `false` at the end of the stream.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<bool>> {
        pool::borrow_read(&mut self.input);
        // A bound, as whatever is read has to be unmasked and checked before others get their turn.
        let mut room = (&mut self.input).limit(pool::ROOM);
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut room);
        let Poll::Ready(Ok(n)) = read else { return read.map_ok(|_| true) };
        self.totals.bytes_in += n as u64;
        self.heartbeat.heard(now, &self.shard.service.config.heartbeat);
        if matches!(self.phase, Phase::Ending | Phase::Lingering) {
            self.input.clear();
        }
        Poll::Ready(Ok(n > 0))
    }

    /// Check whether bytes were read, or the end of a frame was missing.
    fn is_to_decode(&self) -> bool {
        !self.input.is_empty() || self.frame.is_some()
    }

    /// Process events of the bytes read, and return whether there was anything to do.
    fn decode(&mut self, now: Instant, turn: &mut Turn) -> bool {
        // The peer has time to send more; what waits here is not its fault.
        let (mut worked, mut starved) = (false, false);
        while !starved && !self.is_full() && !turn.is_over() && self.opening.is_none() {
            match self.decoder.decode_within(&mut self.input, turn) {
                Ok(Some(event)) => {
                    worked = true;
                    self.handle(event, now, turn);
                    if self.phase == Phase::Ending {
                        return true;
                    }
                    starved = self.input.is_empty();
                }
                Ok(None) if self.decoder.is_working() => worked = true,
                Ok(None) => starved = true,
                Err(error) => {
                    self.end(Cause::Protocol(error), now);
                    return true;
                }
            }
        }
        if starved {
            self.time_frame(now);
        } else {
            self.frame = None;
        }
        worked
    }

    fn handle(&mut self, event: Event, now: Instant, turn: &mut Turn) {
        match event {
            Event::Message(message) => self.message(message, now, turn),
            Event::Chunk(chunk) => self.chunk(chunk, turn),
            Event::Ping(payload) => self.ping(&payload, now),
            Event::Pong(payload) => {
                let answers = self.heartbeat.pong(now, &payload);
                let rtt = self.heartbeat.round_trip().filter(|_| answers);
                self.detail(|| Happened::Pong(rtt));
            }
            Event::Close(close) => self.peer_closes(close, now),
        }
    }

    /// Update the gauge of connections by state.
    fn show(&mut self) {
        let state = match (self.phase, self.heartbeat.state()) {
            (Phase::Open, State::Suspect | State::Dead) => Standing::Suspect,
            (Phase::Open, _) => Standing::Open,
            _ => Standing::Closing,
        };
        if self.told != self.heartbeat.state() {
            self.told = self.heartbeat.state();
            self.shard.service.journal.record(self.origin.id, Happened::State(self.told));
        }
        self.standee.change(state);
    }

    /// Report to the followers of this connection, if any.
    fn detail(&self, what: impl FnOnce() -> Happened) {
        self.shard.service.journal.detail(self.origin.id, what);
    }
}

impl<I: Stream> Future for Connection<I> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = Instant::now();
        let before = this.totals;
        let signals = this.shard.wheel.signals(this.slot, cx);
        this.handler.register(cx.waker());
        let order = this.shard.closing.get().then_some(Cause::Shutdown);
        if let Some(cause) = signals.order.or(order) {
            this.begin_close(cause, now);
        }
        let over = signals.abandon || signals.due && this.on_time(now);
        let mut over = over || this.run(cx, now).is_ready();
        if !over && this.hoards(!signals.due) {
            this.end(Cause::Shed, now);
            over = this.run(cx, now).is_ready();
        }
        let messages = this.totals.messages_in - before.messages_in;
        if messages > 0 {
            this.origin.region.message.inc_by(messages);
            this.shard.service.metrics.queue_bytes.observe(this.outbox.waiting() as f64);
        }
        this.shard.count(&before, &this.totals);
        this.shard.turns.took(this.origin.id, now, Instant::now());
        let messages = |totals: &Totals| (totals.messages_in, totals.messages_out);
        this.shard.service.see_pings(&this.origin, this.totals.pings_in - before.pings_in);
        if messages(&before) != messages(&this.totals) {
            this.shard.wheel.touch(this.slot, now);
        }
        if over {
            let ended = this.ended();
            // Also where the peer just left: TLS ends with a close_notify (RFC 8446, 6.1).
            let _ = Pin::new(&mut this.io).poll_shutdown(cx);
            this.shard.closed(&this.origin, &ended);
            return Poll::Ready(());
        }
        pool::return_read(&mut this.input);
        this.account();
        this.show();
        this.look_at_path(now);
        if signals.report {
            this.shard.reports.borrow_mut().push(this.view());
        }
        this.arm();
        Poll::Pending
    }
}

/// Schedule a wake-up after the thread's check for other events.
/// A plain wake-up would come before it.
fn yield_turn(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        self.input.clear();
        pool::return_read(&mut self.input);
        self.shard.service.hold(self.held, 0);
        self.shard.wheel.leave(self.slot);
    }
}

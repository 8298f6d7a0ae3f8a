//! One connection, from its 101 to its end: a single future, with no task or buffer beside it.

mod handling;
mod view;

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio_util::io::poll_read_buf;
use ws_guard_common::window::RateWindow;

use super::{
    admission::Ticket,
    cause::Cause,
    coding::Coding,
    handler::{Echo, Handler},
    handshake::Done,
    heartbeat::{Action, Heartbeat, State},
    io::Stream,
    journal::Happened,
    outbox::Outbox,
    pool,
    protocol::{
        Close, Decoder, Event, Role, code,
        deflate::{Deflater, Inflater},
    },
    record::{Ended, Origin, Totals, wall},
    shard::Shard,
    topics::subscriber::Subscriber,
};

/// Bytes that come on top of the time a frame may take, for each second.
const FRAME_RATE: u64 = 1024;

/// Bytes that are read before others get their turn: as many small frames take their time.
const TURN: u64 = 64 * 1024;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// This side's close frame is out or queued, the peer's has not come.
    Closing,
    /// Nothing more is read as frames: flush, end this side of TCP, wait for the other to end.
    Ending,
    /// The same, with this side's end sent.
    Lingering,
}

/// When a frame began to be waited for.
#[derive(Clone, Copy, Debug)]
struct FrameTime {
    /// Whole frames before it.
    number: u64,
    since: Instant,
    /// Bytes that had come by then.
    bytes: u64,
}

/// A WebSocket connection.
pub struct Connection<I> {
    io: I,
    shard: Rc<Shard>,
    /// Its place in the shard's wheel.
    slot: usize,
    origin: Origin,
    ticket: Ticket,
    decoder: Decoder,
    deflater: Option<Deflater>,
    /// What the subprotocol does to messages.
    coding: Option<Box<Coding>>,
    handler: Box<dyn Handler>,
    /// Bytes of a frame that is not whole; without memory between frames.
    input: BytesMut,
    outbox: Outbox,
    heartbeat: Heartbeat,
    /// Its pings, once it sent one, where they are limited by connection.
    pings: Option<Box<RateWindow>>,
    phase: Phase,
    /// The gauge it is counted in.
    shown: &'static str,
    /// What the journal was told of the heartbeat.
    told: State,
    cause: Option<Cause>,
    close: Option<Box<Close>>,
    sent_close: Option<u16>,
    /// When the socket last took bytes, while there are more.
    stuck_since: Option<Instant>,
    /// The frame that is being read, once it had to be waited for.
    frame: Option<FrameTime>,
    /// Everything that had come was read, and nothing of it had to wait for the peer.
    caught_up: bool,
    /// When the ping came that is being answered, if it did not have to wait for the peer.
    answering: Option<Instant>,
    /// When closing has to be over.
    close_by: Option<Instant>,
    totals: Totals,
    /// Bytes of memory that it said it holds.
    held: usize,
}

impl<I: Stream> Connection<I> {
    /// A connection whose handshake is done.
    pub fn new(
        shard: Rc<Shard>,
        origin: Origin,
        ticket: Ticket,
        done: Done<I, ()>,
    ) -> Connection<I> {
        let config = &shard.service.config;
        let agreed = done.upgrade.deflate;
        let inflater = agreed.as_ref().map(Inflater::new);
        let mut decoder = Decoder::new(Role::Server, config.limits, inflater);
        let choice = done.upgrade.protocol.as_ref();
        let handler: Box<dyn Handler> = match &shard.service.topics {
            // Without state it takes no memory.
            None => Box::new(Echo),
            Some(topics) => Box::new(Subscriber::new(origin.id, topics.clone())),
        };
        if handler.streams() && choice.is_some_and(|choice| choice.features.streaming) {
            decoder.stream();
        }
        let coding = choice.and_then(|choice| {
            let deadline = Instant::now() + config.handshake_timeout;
            Coding::of(choice, agreed.is_some(), config.negotiation.noise_key(), deadline)
        });
        // Consecutive numbers times the golden ratio fall evenly.
        let spread = (origin.id as u32).wrapping_mul(0x9E37_79B9);
        let heartbeat = Heartbeat::new(Instant::now(), &config.heartbeat, spread);
        let slot = shard.wheel.enter(origin.id);
        shard.show(&origin.region, None, Some("open"));
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
            handler,
            input,
            outbox: Outbox::default(),
            heartbeat,
            pings: None,
            phase: Phase::Open,
            shown: "open",
            told: State::Idle,
            cause: None,
            close: None,
            sent_close: None,
            stuck_since: None,
            frame: None,
            caught_up: true,
            answering: None,
            close_by: None,
            held: 0,
            totals: Totals { bytes_in, ..Totals::default() },
            shard,
        }
    }

    /// Work until there is nothing to do but to wait; returns when the connection is over.
    fn run(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let before = self.totals;
        loop {
            if self.flush(cx, now).is_err() {
                return self.vanished();
            }
            let open = matches!(self.phase, Phase::Open | Phase::Closing);
            if open && self.is_full() {
                self.caught_up = false;
                return Poll::Pending;
            }
            if open && self.deliver(now) {
                if self.totals.bytes_out - before.bytes_out >= TURN {
                    yield_turn(cx);
                    return Poll::Pending;
                }
                continue;
            }
            if open && self.decode(now) {
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

    /// Say how much memory is held between now and the next time.
    fn account(&mut self) {
        let now = self.input.capacity()
            + self.outbox.held()
            + self.decoder.held()
            + self.handler.waiting();
        self.shard.service.hold(self.held, now);
        self.held = now;
    }

    /// The peer's TCP stream is at its end.
    fn vanished(&mut self) -> Poll<()> {
        self.cause.get_or_insert(Cause::PeerVanished);
        Poll::Ready(())
    }

    fn flush(&mut self, cx: &mut Context<'_>, now: Instant) -> io::Result<()> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let progress = match self.outbox.poll_flush(cx, &mut self.io) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.totals.bytes_out += progress as u64;
        if self.outbox.is_empty() {
            self.stuck_since = None;
        } else if progress > 0 {
            self.stuck_since = Some(now);
        } else {
            self.stuck_since.get_or_insert(now);
        }
        let answering = self.answering.take();
        if !self.outbox.owes_pong() {
            self.heartbeat.pong_sent();
            answering.inspect(|arrived| self.shard.answered_ping(arrived.elapsed()));
        }
        Ok(())
    }

    /// Read once; `false` at the end of the stream.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<bool>> {
        pool::borrow_read(&mut self.input);
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
        let Poll::Ready(Ok(n)) = read else { return read.map_ok(|_| true) };
        self.totals.bytes_in += n as u64;
        self.heartbeat.heard(now, &self.shard.service.config.heartbeat);
        if matches!(self.phase, Phase::Ending | Phase::Lingering) {
            self.input.clear();
        }
        Poll::Ready(Ok(n > 0))
    }

    /// Take events out of what was read; whether there was anything to do.
    fn decode(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while !self.is_full() {
            match self.decoder.decode(&mut self.input) {
                Ok(Some(event)) => {
                    worked = true;
                    self.handle(event, now);
                    if self.phase == Phase::Ending {
                        return true;
                    }
                }
                Ok(None) => {
                    self.time_frame(now);
                    break;
                }
                Err(error) => {
                    self.end(Cause::Protocol(error), now);
                    return true;
                }
            }
        }
        worked
    }

    /// Note whether a frame has begun and not come to its end.
    fn time_frame(&mut self, now: Instant) {
        let number = self.decoder.frames();
        if self.input.is_empty() && !self.decoder.in_frame() {
            self.frame = None;
        } else if self.frame.is_none_or(|frame| frame.number != number) {
            self.frame = Some(FrameTime { number, since: now, bytes: self.totals.bytes_in });
        }
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Message(message) => self.message(message, now),
            Event::Chunk(chunk) => self.chunk(chunk),
            Event::Ping(payload) => self.ping(&payload, now),
            Event::Pong(payload) => {
                let answers = self.heartbeat.pong(now, &payload);
                let rtt = self.heartbeat.round_trip().filter(|_| answers);
                self.detail(|| Happened::Pong(rtt));
            }
            Event::Close(close) => self.peer_closes(close, now),
        }
    }

    fn ping(&mut self, payload: &[u8], now: Instant) {
        self.totals.pings_in += 1;
        if self.phase != Phase::Open {
            return;
        }
        let charged = self.charge_ping();
        self.detail(|| Happened::Ping(charged));
        if !charged {
            self.totals.pings_ignored += 1;
            return self.shard.service.metrics.pings_over_limit.inc();
        }
        if self.caught_up && self.outbox.is_empty() {
            let arrived = self.io.since_arrival().and_then(|ago| Instant::now().checked_sub(ago));
            self.answering = arrived;
        }
        let service = &self.shard.service;
        self.heartbeat.owes_pong(now, &service.config.heartbeat);
        if self.outbox.pong(payload) {
            service.metrics.pings_passed_over.inc();
        } else {
            service.metrics.pings_answered.inc();
        }
    }

    /// Whether a ping keeps to the limits of its source and its connection.
    fn charge_ping(&mut self) -> bool {
        let rates = self.shard.service.ping_rates();
        let by_source = self.ticket.charge_ping(rates.source);
        if rates.connection.limit == 0 {
            return by_source;
        }
        let now_ms = self.ticket.clock_ms();
        let window = self.pings.get_or_insert_default();
        window.charge(now_ms, rates.connection, 1) == 1 && by_source
    }

    /// The peer's close frame: answer it, if it is not an answer itself, and end (RFC 6455, 7.1.1).
    fn peer_closes(&mut self, close: Option<Close>, now: Instant) {
        if self.phase == Phase::Open {
            self.cause.get_or_insert(Cause::PeerClosed);
            let code = close.as_ref().map_or(code::NO_STATUS, |close| close.code);
            self.send_close(code, "");
        }
        let none = || Close { code: code::NO_STATUS, reason: String::new() };
        self.close = Some(Box::new(close.unwrap_or_else(none)));
        self.phase = Phase::Ending;
        self.bound_closing(now);
    }

    fn send_close(&mut self, code: u16, reason: &str) {
        self.outbox.close(code, reason);
        self.sent_close = Some(code);
    }

    /// Close from this side and wait for the peer to agree.
    fn begin_close(&mut self, cause: Cause, now: Instant) {
        if self.phase == Phase::Open {
            self.cause.get_or_insert(cause);
            self.send_close(cause.close_code(), cause.reason());
            self.shard.service.journal.record(self.origin.id, Happened::Closing(cause));
            self.phase = Phase::Closing;
            self.bound_closing(now);
        }
    }

    /// Close from this side for something after which no frame of the peer is worth reading.
    fn end(&mut self, cause: Cause, now: Instant) {
        self.begin_close(cause, now);
        self.cause.get_or_insert(cause);
        self.input.clear();
        self.phase = Phase::Ending;
    }

    fn bound_closing(&mut self, now: Instant) {
        self.close_by.get_or_insert(now + self.shard.service.config.close_timeout);
    }

    /// Do what time has come for; whether the connection is over.
    fn on_time(&mut self, now: Instant) -> bool {
        if self.close_by.is_some_and(|by| by <= now) {
            return true;
        }
        for (deadline, cause) in [
            (self.stuck_until(), Cause::SlowReader),
            (self.frame_until(), Cause::SlowSender),
            (self.keys_until(), Cause::SlowSender),
        ] {
            if deadline.is_some_and(|deadline| deadline <= now) {
                return self.give_up(cause, now);
            }
        }
        if self.phase != Phase::Open {
            return false;
        }
        let times = &self.shard.service.config.heartbeat;
        match self.heartbeat.poll(now, times) {
            None => false,
            Some(Action::Ping(payload)) => {
                self.outbox.ping(payload);
                self.shard.service.metrics.pings_sent.inc();
                self.detail(|| Happened::PingSent);
                false
            }
            Some(action) => self.give_up(action.into(), now),
        }
    }

    /// End without waiting for the peer; whether there is nothing left to try.
    fn give_up(&mut self, cause: Cause, now: Instant) -> bool {
        // Behind bytes that the socket does not take, a close frame would not go out either.
        let hopeless = cause == Cause::SlowReader || !self.outbox.is_empty();
        if hopeless {
            self.cause.get_or_insert(cause);
        } else {
            self.end(cause, now);
        }
        hopeless
    }

    fn stuck_until(&self) -> Option<Instant> {
        self.stuck_since.map(|since| since + self.shard.service.config.write_timeout)
    }

    fn frame_until(&self) -> Option<Instant> {
        let frame = self.frame.as_ref()?;
        let came = Duration::from_secs((self.totals.bytes_in - frame.bytes) / FRAME_RATE);
        Some(frame.since + self.shard.service.config.frame_timeout + came)
    }

    /// When keys have to be agreed, where messages are encrypted.
    fn keys_until(&self) -> Option<Instant> {
        self.coding.as_ref().filter(|_| self.phase == Phase::Open)?.deadline()
    }

    /// Wait for the earliest of what is to come.
    fn arm(&self) {
        let heartbeat = (self.phase == Phase::Open).then(|| self.heartbeat.deadline());
        let all =
            [heartbeat, self.close_by, self.stuck_until(), self.frame_until(), self.keys_until()];
        if let Some(deadline) = all.into_iter().flatten().min() {
            self.shard.wheel.arm(self.slot, deadline);
        }
    }

    /// Keep the gauge of connections by state true.
    fn show(&mut self) {
        let state = match (self.phase, self.heartbeat.state()) {
            (Phase::Open, State::Suspect | State::Dead) => "suspect",
            (Phase::Open, _) => "open",
            _ => "closing",
        };
        if self.told != self.heartbeat.state() {
            self.told = self.heartbeat.state();
            self.shard.service.journal.record(self.origin.id, Happened::State(self.told));
        }
        if state != self.shown {
            self.shard.show(&self.origin.region, Some(self.shown), Some(state));
            self.shown = state;
        }
    }

    /// Tell those who follow this connection, if anybody does.
    fn detail(&self, what: impl FnOnce() -> Happened) {
        self.shard.service.journal.detail(self.origin.id, what);
    }

    fn ended(&mut self) -> Ended {
        Ended {
            cause: self.cause.unwrap_or(Cause::PeerVanished),
            close: self.close.take().map(|close| *close),
            sent: self.sent_close,
            totals: self.totals,
            queued: self.outbox.waiting() + self.handler.waiting(),
            round_trip: self.heartbeat.round_trip(),
            last_pong: self.heartbeat.last_pong().map(|at| wall(at).0),
        }
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
        let order = this.shard.service.is_stopping().then_some(Cause::Shutdown);
        if let Some(cause) = signals.order.or(order) {
            this.begin_close(cause, now);
        }
        let over = signals.abandon || signals.due && this.on_time(now);
        let over = over || this.run(cx, now).is_ready();
        let messages = this.totals.messages_in - before.messages_in;
        if messages > 0 {
            this.origin.region.message.inc_by(messages);
            this.shard.service.metrics.queue_bytes.observe(this.outbox.waiting() as f64);
        }
        this.shard.count(&before, &this.totals);
        let messages = |totals: &Totals| (totals.messages_in, totals.messages_out);
        this.shard.service.see_pings(&this.origin, this.totals.pings_in - before.pings_in);
        if messages(&before) != messages(&this.totals) {
            this.shard.wheel.touch(this.slot, now);
        }
        if over {
            let ended = this.ended();
            this.shard.closed(&this.origin, &ended);
            return Poll::Ready(());
        }
        pool::return_read(&mut this.input);
        this.account();
        this.show();
        if signals.report {
            this.shard.reports.borrow_mut().push(this.view());
        }
        this.arm();
        Poll::Pending
    }
}

/// Be woken once the thread has looked for other events; a plain wake would come before.
fn yield_turn(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

impl<I> Drop for Connection<I> {
    fn drop(&mut self) {
        self.input.clear();
        pool::return_read(&mut self.input);
        self.shard.service.hold(self.held, 0);
        self.shard.show(&self.origin.region, Some(self.shown), None);
        self.shard.wheel.leave(self.slot);
    }
}

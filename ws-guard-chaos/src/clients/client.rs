//! One client: it follows a topic, publishes on others, and comes back after anything.

use std::{rc::Rc, time::Duration};

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{
    Shared,
    backoff::{Backoff, hinted},
    connect::{Connector, Failure, Socket},
    outbox::Outbox,
    track::{Position, Track, Verdict},
};
use crate::log::Event;

/// For an attempt to connect, and for going on where the client was.
const CONNECT: Duration = Duration::from_secs(10);
/// For the answer to a heartbeat, while nothing else arrives.
const ANSWER: Duration = Duration::from_secs(5);
/// A token older than so many messages is not presented.
const FRESH: u32 = 256;

pub struct Client {
    pub shared: Rc<Shared>,
    pub who: String,
    pub topic: String,
    connector: Connector,
    track: Track,
    /// A token, and how long it is valid.
    token: Option<(String, Instant)>,
    /// Messages since the token.
    stale: u32,
    outbox: Outbox,
    published: u64,
    backoff: Backoff,
    /// Attempts since the last connection.
    tries: u32,
    next_publication: Instant,
    /// Whether this client is counted as one that follows its topic.
    counted: bool,
}

/// A connection's state.
struct Session {
    socket: Socket,
    last_id: u64,
    subscribe: Option<u64>,
    /// When a refused subscription may be asked for again.
    ask_at: Option<Instant>,
    /// A token was presented, and is not answered yet.
    resuming: bool,
    following: bool,
    opened: Instant,
    heard: Instant,
    beat: Option<(u64, Instant)>,
    next_beat: Instant,
}

/// What the server says.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Said {
    r#type: String,
    id: Option<u64>,
    topic: Option<String>,
    epoch: Option<String>,
    offset: Option<u64>,
    data: Value,
    recovered: Option<bool>,
    repeated: bool,
    ok: bool,
    resume: Option<String>,
    expires_in: Option<u64>,
    status: Option<u64>,
    retry_after_ms: Option<u64>,
    error: Option<String>,
}

impl Said {
    fn position(&self) -> Option<Position> {
        Some(Position { epoch: self.epoch.clone()?, offset: self.offset? })
    }
}

impl Session {
    async fn say(&mut self, mut request: Value) -> Result<u64, Failure> {
        self.last_id += 1;
        request["id"] = self.last_id.into();
        self.socket.send(Message::text(request.to_string())).await?;
        Ok(self.last_id)
    }
}

impl Client {
    pub fn new(shared: Rc<Shared>, who: String, topic: String, connector: Connector) -> Client {
        Client {
            shared,
            who,
            topic,
            connector,
            track: Track::default(),
            token: None,
            stale: 0,
            outbox: Outbox::default(),
            published: 0,
            backoff: Backoff::default(),
            tries: 0,
            next_publication: Instant::now(),
            counted: false,
        }
    }

    fn log(&self, event: Event) -> Result<()> {
        self.shared.log.write(&self.who, event)
    }

    /// For ever.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn run(mut self) -> Result<()> {
        self.log(Event::Began { topic: self.topic.clone() })?;
        loop {
            let failure = match self.connect().await {
                Ok(session) => {
                    let failure = self.live(session).await?;
                    self.outbox.detach();
                    failure
                }
                Err(failure) => failure,
            };
            let was_open = std::mem::take(&mut self.counted);
            let why = failure.why;
            if was_open {
                self.shared.following.set(self.shared.following.get() - 1);
                self.log(Event::Closed { why })?;
            } else {
                self.log(Event::Failed { why })?;
            }
            if let Some(wait) = failure.wait {
                self.log(Event::Wait { ms: wait.as_millis() as u64 })?;
            }
            sleep(failure.wait.unwrap_or_else(|| self.backoff.next())).await;
        }
    }

    async fn connect(&mut self) -> Result<Session, Failure> {
        // Without it every other time: what is on the way may refuse so long a line.
        let usable = self.tries.is_multiple_of(2) && self.stale <= FRESH;
        self.tries += 1;
        let token = self.token.as_ref().filter(|(_, until)| usable && *until > Instant::now());
        let query = token.map_or(String::new(), |(token, _)| format!("?resume={token}"));
        let resuming = token.is_some();
        let open = timeout(CONNECT, self.connector.open(&query)).await;
        let socket = open.map_err(|_| Failure::from("no connection in time"))??;
        let now = Instant::now();
        Ok(Session {
            socket,
            last_id: 0,
            subscribe: None,
            ask_at: None,
            resuming,
            following: false,
            opened: now,
            heard: now,
            beat: None,
            next_beat: now + self.shared.heartbeat.mul_f64(0.5 + fastrand::f64() / 2.0),
        })
    }

    /// Until the connection ends, and why that was.
    async fn live(&mut self, mut session: Session) -> Result<Failure> {
        let failure = match self.talk(&mut session).await {
            Ok(never) => match never {},
            Err(Ended::Connection(failure)) => failure,
            Err(Ended::Log(error)) => return Err(error),
        };
        self.backoff.lived(session.opened.elapsed());
        Ok(failure)
    }

    async fn talk(&mut self, session: &mut Session) -> Result<std::convert::Infallible, Ended> {
        self.track.asking = !session.resuming;
        if !session.resuming {
            self.subscribe(session).await?;
        }
        loop {
            self.publish(session).await?;
            let now = Instant::now();
            if session.ask_at.is_some_and(|at| at <= now) {
                session.ask_at = None;
                self.subscribe(session).await?;
            }
            self.beat(session, now).await?;
            let next = match timeout_at(self.deadline(session), session.socket.next()).await {
                Err(_) => continue,
                Ok(next) => next.ok_or_else(|| Failure::from("the stream ended"))?,
            };
            session.heard = Instant::now();
            match next.map_err(Failure::from)? {
                Message::Text(text) => {
                    let said: Said = serde_json::from_str(text.as_str()).map_err(Failure::from)?;
                    self.hear(session, said).await?;
                }
                Message::Close(frame) => {
                    let (code, reason) = frame
                        .map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
                    let wait = hinted(code, &reason);
                    return Err(Failure { why: format!("{code} {reason}"), wait }.into());
                }
                // Pongs are sent by the library.
                _ => flush(session).await?,
            }
        }
    }

    /// When something is to be done, whatever arrives.
    fn deadline(&self, session: &Session) -> Instant {
        let beat = match session.beat {
            Some((_, sent)) => sent.max(session.heard) + ANSWER,
            None => session.next_beat,
        };
        let back = (!session.following).then(|| session.opened + CONNECT);
        let publication =
            (session.following && self.shared.publishing.get()).then_some(self.next_publication);
        let again = self.outbox.due(Instant::now().into_std()).map(Instant::from_std);
        let again = again.filter(|_| session.following);
        [back, publication, again, session.ask_at].into_iter().flatten().fold(beat, Instant::min)
    }

    async fn beat(&mut self, session: &mut Session, now: Instant) -> Result<(), Ended> {
        if !session.following && now > session.opened + CONNECT {
            return Err(Failure::from("the session was not back in time").into());
        }
        match session.beat {
            Some((_, sent)) if now >= sent.max(session.heard) + ANSWER => {
                Err(Failure::from("no answer to a heartbeat").into())
            }
            None if now >= session.next_beat => {
                let request = if self.stale > 0 || self.token.is_none() {
                    json!({"type": "heartbeat", "resume": true})
                } else {
                    json!({"type": "heartbeat"})
                };
                session.beat = Some((session.say(request).await?, now));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn subscribe(&mut self, session: &mut Session) -> Result<(), Ended> {
        let mut request = json!({"type": "subscribe", "topic": self.topic});
        if let Some(at) = &self.track.at {
            request["since"] = at.as_json();
        }
        self.track.asking = true;
        session.subscribe = Some(session.say(request).await?);
        Ok(())
    }

    /// Publish what is due, and what was refused or on its way when the last connection ended.
    async fn publish(&mut self, session: &mut Session) -> Result<(), Ended> {
        if !session.following {
            return Ok(());
        }
        let now = Instant::now();
        if self.shared.publishing.get() && now >= self.next_publication {
            self.next_publication = now + self.shared.every.mul_f64(0.5 + fastrand::f64());
            let topic = self.shared.topic(fastrand::usize(..self.shared.topics));
            let id = format!("{}-{}", self.who, self.published);
            self.published += 1;
            self.log(Event::Publish { topic: topic.clone(), id: id.clone() })?;
            self.outbox.push(topic, id);
            self.shared.waiting.set(self.shared.waiting.get() + 1);
        }
        while let Some(next) = self.outbox.send(session.last_id + 1, now.into_std()) {
            let request =
                json!({"type": "publish", "topic": next.topic, "key": next.id, "data": next.id});
            session.say(request).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, session: &mut Session, said: Said) -> Result<(), Ended> {
        match said.r#type.as_str() {
            "message" if said.topic.as_deref() == Some(&self.topic) => {
                self.message(session, said).await
            }
            "subscribed" if said.topic.as_deref() == Some(&self.topic) => {
                self.subscribed(session, said).await
            }
            "resumed" => {
                session.resuming = said.ok;
                if !said.ok {
                    self.token = None;
                    self.subscribe(session).await?;
                }
                Ok(())
            }
            "published" => self.acknowledged(said),
            "heartbeat" => {
                session.beat = None;
                session.next_beat =
                    Instant::now() + self.shared.heartbeat.mul_f64(0.9 + fastrand::f64() / 5.0);
                if let (Some(token), Some(seconds)) = (said.resume, said.expires_in) {
                    self.token = Some((token, Instant::now() + Duration::from_secs(seconds)));
                    self.stale = 0;
                }
                Ok(())
            }
            "error" => self.refused(session, said),
            _ => Ok(()),
        }
    }

    async fn message(&mut self, session: &mut Session, said: Said) -> Result<(), Ended> {
        let Some(position) = said.position() else {
            return Err(Failure::from("a message without a position").into());
        };
        let offset = position.offset;
        match self.track.receive(position) {
            Verdict::Drop => return Ok(()),
            Verdict::Ask => return self.subscribe(session).await,
            Verdict::Tell(from) => {
                self.log(Event::Gap { topic: self.topic.clone(), from, to: offset - 1 })?;
            }
            Verdict::Deliver => {}
        }
        self.stale += 1;
        self.shared.heard.set(Instant::now());
        let id = said.data.as_str().unwrap_or_default().to_owned();
        self.log(Event::Message { topic: self.topic.clone(), offset, id })?;
        Ok(())
    }

    async fn subscribed(&mut self, session: &mut Session, said: Said) -> Result<(), Ended> {
        let Some(position) = said.position() else {
            return Err(Failure::from("the topic has no history").into());
        };
        let answers = said.id.is_some() && said.id == session.subscribe;
        let resumed = said.id.is_none() && session.resuming;
        if said.id.is_some() && !answers {
            return Ok(());
        }
        let topic = self.topic.clone();
        let mut recovered = said.recovered == Some(true);
        if self.track.at.is_none() {
            let offset = position.offset;
            self.track.restart(position);
            self.log(Event::Subscribed { topic, offset })?;
            recovered = true;
        } else if !recovered && resumed {
            // The history may still have what follows this client's own position.
            session.resuming = false;
            return self.subscribe(session).await;
        } else if !recovered {
            let (from, to) = (self.track.offset(), position.offset);
            self.track.restart(position);
            self.log(Event::Gap { topic, from, to })?;
        }
        if answers || resumed {
            self.track.asking = false;
            session.subscribe = None;
            session.resuming = false;
            self.back(session, recovered)?;
        }
        Ok(())
    }

    /// The session is there, for the first time or again.
    fn back(&mut self, session: &mut Session, recovered: bool) -> Result<()> {
        if session.following {
            return Ok(());
        }
        session.following = true;
        self.counted = true;
        self.tries = 0;
        self.next_publication = Instant::now() + self.shared.every.mul_f64(fastrand::f64());
        // A token as soon as there is something to go on with.
        if self.token.is_none() {
            session.next_beat = Instant::now();
        }
        self.shared.following.set(self.shared.following.get() + 1);
        self.log(Event::Open { recovered })
    }

    fn acknowledged(&mut self, said: Said) -> Result<(), Ended> {
        let Some(done) = said.id.and_then(|id| self.outbox.take(id)) else { return Ok(()) };
        let Some(offset) = said.offset else {
            return Err(Failure::from("an acknowledgement without a position").into());
        };
        self.shared.waiting.set(self.shared.waiting.get() - 1);
        let (topic, id, repeated) = (done.topic, done.id, said.repeated);
        Ok(self.log(Event::Published { topic, id, offset, repeated })?)
    }

    fn refused(&mut self, session: &mut Session, said: Said) -> Result<(), Ended> {
        let (Some(request), status) = (said.id, said.status.unwrap_or(0)) else { return Ok(()) };
        let wait = said.retry_after_ms.filter(|_| matches!(status, 429 | 503));
        if session.beat.is_some_and(|(id, _)| id == request) {
            session.beat = None;
            return Ok(());
        }
        if session.subscribe == Some(request) {
            let Some(wait) = wait else {
                let why = said.error.unwrap_or_default();
                return Err(Failure::from(format!("refused to subscribe: {status} {why}")).into());
            };
            session.ask_at = Some(Instant::now() + Duration::from_millis(wait));
            return Ok(());
        }
        let refused = match wait {
            Some(ms) => {
                let now = std::time::Instant::now();
                let again = self.outbox.again(request, Duration::from_millis(ms), now);
                again.map(|publication| publication.id.clone())
            }
            None => self.outbox.take(request).map(|publication| {
                self.shared.waiting.set(self.shared.waiting.get() - 1);
                publication.id
            }),
        };
        if let Some(id) = refused {
            self.log(Event::Refused { id, status, again: wait.is_some() })?;
        }
        Ok(())
    }
}

async fn flush(session: &mut Session) -> Result<(), Ended> {
    match session.socket.flush().await {
        // The close frame, or the end, is read next.
        Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Ok(()),
        Err(error) => Err(Failure::from(error).into()),
    }
}

/// What ends a connection, and what ends the run.
enum Ended {
    Connection(Failure),
    Log(anyhow::Error),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Connection(failure)
    }
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Ended {
        Ended::Log(error)
    }
}

//! One connection as a subscriber.

use std::{sync::Arc, task::Waker};

use bytes::Bytes;

use super::{
    Topics,
    mailbox::{Mailbox, Next},
    protocol::{self, Problem, Request, Topic, Verb},
};
use crate::{
    handler::{Handler, Overflow, Replies},
    journal::Happened,
    protocol::{Chunk, Kind, Message},
};

/// What a request has besides its data, in bytes; more is white space.
const ENVELOPE: usize = 1024;
/// What it takes to put a publication into a mailbox, as bytes that are compressed.
const DELIVERY: usize = 2;

/// What a connection has subscribed to, and what waits for it.
pub struct Subscriber {
    id: u64,
    shared: Arc<Topics>,
    mailbox: Arc<Mailbox>,
    topics: Vec<Arc<str>>,
}

impl Subscriber {
    /// A connection that has subscribed to nothing yet.
    pub fn new(id: u64, shared: Arc<Topics>) -> Subscriber {
        let mailbox = Arc::new(Mailbox::new(shared.limits.mailbox));
        Subscriber { id, shared, mailbox, topics: Vec::new() }
    }

    /// Do what a message asks for; the answer to it, what happened, and whom it reached.
    fn request(&mut self, message: &Message) -> (Bytes, Option<Happened>, usize) {
        let request = match self.parse(message) {
            Ok(request) => request,
            Err(problem) => return (protocol::failed(&problem, None), None, 0),
        };
        match self.obey(&request) {
            Ok((topic, subscribers, happened)) => {
                let done = protocol::done(request.verb, &topic, subscribers, request.id);
                (done, happened, subscribers.unwrap_or(0))
            }
            Err(problem) => (protocol::failed(&problem, request.id), None, 0),
        }
    }

    /// The request that a message is. One with more data than a mailbox holds reaches nobody, and is
    /// not worth reading.
    fn parse<'a>(&self, message: &'a Message) -> Result<Request<'a>, Problem> {
        if message.kind != Kind::Text {
            let error = "this is a binary message".into();
            return Err(Problem { error, remedy: "send requests as text" });
        }
        let (size, most) = (message.payload.len(), self.shared.limits.mailbox.bytes);
        if size > most + ENVELOPE {
            let error = format!("a request of {size} bytes is too large");
            return Err(Problem { error, remedy: "publish no more at a time than may wait" });
        }
        Request::parse(&message.payload)
    }

    fn obey(
        &mut self,
        request: &Request<'_>,
    ) -> Result<(Topic, Option<usize>, Option<Happened>), Problem> {
        let topic = Topic::new(&request.topic)?;
        let name = Box::from(&*topic.name());
        match request.verb {
            Verb::Subscribe => {
                self.subscribe(&topic)?;
                Ok((topic, None, Some(Happened::Subscribed(name))))
            }
            Verb::Unsubscribe => {
                self.unsubscribe(&topic);
                Ok((topic, None, Some(Happened::Unsubscribed(name))))
            }
            Verb::Publish => {
                let missing = || {
                    let error = "there is nothing to publish".into();
                    Problem { error, remedy: "name the data, which may be any JSON but null" }
                };
                let data = request.data.ok_or_else(missing)?;
                let reached = self.shared.publish(&topic, data).map_err(|error| Problem {
                    error: error.to_string(),
                    remedy: "try again later",
                })?;
                Ok((topic, Some(reached), None))
            }
        }
    }

    /// Subscribing twice is subscribing once.
    fn subscribe(&mut self, topic: &Topic) -> Result<(), Problem> {
        let name = topic.name();
        if self.topics.contains(&name) {
            return Ok(());
        }
        if self.topics.len() >= self.shared.limits.topics {
            let error = format!("this connection has {} topics", self.topics.len());
            return Err(Problem {
                error,
                remedy: "unsubscribe from one, or open another connection",
            });
        }
        self.shared.exchange.join(&name, self.id, &self.mailbox, &*self.shared.bus);
        self.topics.push(name);
        Ok(())
    }

    fn unsubscribe(&mut self, topic: &Topic) {
        let name = topic.name();
        let Some(place) = self.topics.iter().position(|other| *other == name) else { return };
        self.topics.swap_remove(place);
        self.leave(&name);
    }

    fn leave(&self, topic: &Arc<str>) {
        self.shared.exchange.leave(topic, self.id, &*self.shared.bus);
    }
}

impl Handler for Subscriber {
    fn message(&mut self, message: Message, replies: &mut Replies<'_>) {
        let (payload, happened, reached) = self.request(&message);
        replies.spend(message.payload.len() + DELIVERY * reached);
        replies.happened = happened;
        replies.message(Message { kind: Kind::Text, payload });
    }

    /// Requests come whole.
    fn chunk(&mut self, _chunk: Chunk, _replies: &mut Replies<'_>) {}

    fn streams(&self) -> bool {
        false
    }

    fn register(&self, waker: &Waker) {
        self.mailbox.register(waker);
    }

    fn deliver(&mut self, replies: &mut Replies<'_>) -> Result<bool, Overflow> {
        let text = |payload| Message { kind: Kind::Text, payload };
        match self.mailbox.next() {
            None => return Ok(false),
            Some(Next::Overflow) => return Err(Overflow),
            Some(Next::Missed(count)) => {
                replies.happened = Some(Happened::Dropped(count));
                replies.message(text(protocol::missed(count)));
            }
            Some(Next::Text(payload)) => replies.shared(text(payload)),
        }
        Ok(true)
    }

    fn waiting(&self) -> usize {
        self.mailbox.waiting()
    }

    fn held(&self) -> usize {
        self.mailbox.held()
    }

    fn topics(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.to_string()).collect()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        for topic in std::mem::take(&mut self.topics) {
            self.leave(&topic);
        }
    }
}

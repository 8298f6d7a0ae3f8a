//! One connection as a subscriber.

use std::{sync::Arc, task::Waker};

use bytes::Bytes;

use super::{
    Topics,
    bus::{BusError, Handed, Publication},
    exchange::{Joined, Wish},
    mailbox::{Answer, Mailbox, Next},
    protocol::{self, Problem, Request, Topic, Verb},
    resume::Kept,
    rules::{Grants, permits},
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
/// The placeholder of the user's name in the topics of `--auto-subscribe`.
const USER: &str = "{user_id}";

/// What a connection begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    pub user: Option<Box<str>>,
    pub grants: Grants,
    /// The resume token that it presented.
    pub resume: Option<Box<str>>,
}

/// Who publishes and subscribes.
struct Client {
    user: Option<Box<str>>,
    grants: Grants,
}

/// What a connection has subscribed to, and what waits for it.
pub struct Subscriber {
    id: u64,
    shared: Arc<Topics>,
    mailbox: Arc<Mailbox>,
    topics: Vec<Arc<str>>,
    /// Where anything is known of it.
    client: Option<Box<Client>>,
}

/// A request that is done: what to say at once, if the answer does not come through the mailbox.
struct Done {
    text: Option<Bytes>,
    happened: Option<Happened>,
}

impl Done {
    const fn later() -> Done {
        Done { text: None, happened: None }
    }

    const fn saying(text: Bytes) -> Done {
        Done { text: Some(text), happened: None }
    }
}

impl Subscriber {
    /// A connection that has subscribed to nothing but what the server chooses for it, and what it had
    /// before where it shows that.
    pub fn new(id: u64, shared: Arc<Topics>, beginning: Beginning) -> Subscriber {
        let mailbox = Arc::new(Mailbox::new(shared.limits.mailbox));
        let Beginning { user, grants, resume } = beginning;
        let known = user.is_some() || !grants.is_empty();
        let client = known.then(|| Box::new(Client { user, grants }));
        let mut subscriber = Subscriber { id, shared, mailbox, topics: Vec::new(), client };
        if let Some(token) = resume {
            subscriber.resume(&token);
        }
        subscriber.subscribe_by_itself();
        subscriber
    }

    fn user(&self) -> Option<&str> {
        self.client.as_ref().and_then(|client| client.user.as_deref())
    }

    /// Go on where a token says that the client was.
    fn resume(&mut self, token: &str) {
        let read = self.shared.resume.read(token, self.user());
        let metrics = &self.shared.metrics;
        if read.is_ok() { &metrics.resumed } else { &metrics.not_resumed }.inc();
        let said = protocol::resumed(read.as_ref().map(Vec::len).map_err(|error| *error));
        self.mailbox.answer(Answer::unasked(said));
        for (name, since) in read.unwrap_or_default() {
            let subscribed = Topic::new(&name).and_then(|topic| {
                if !self.is_its_own(&name) {
                    self.may_subscribe(&name)?;
                }
                self.subscribe(&topic, Wish { since, id: None, asked: false })
            });
            let text = subscribed.unwrap_or_else(|problem| Some(protocol::failed(&problem, None)));
            text.into_iter().for_each(|text| self.mailbox.answer(Answer::unasked(text)));
        }
    }

    /// The topics that the server subscribes it to.
    fn own_topics(&self) -> Vec<String> {
        let user = self.user();
        let wanted = self.shared.limits.auto_subscribe.iter();
        let named = wanted.filter_map(|template| match (template.contains(USER), user) {
            (false, _) => Some(template.clone()),
            (true, user) => user.map(|user| template.replace(USER, user)),
        });
        named.collect()
    }

    fn is_its_own(&self, name: &str) -> bool {
        self.own_topics().iter().any(|own| own == name)
    }

    fn subscribe_by_itself(&mut self) {
        for name in self.own_topics() {
            if self.topics.iter().any(|topic| **topic == *name) {
                continue;
            }
            let subscribed =
                Topic::new(&name).and_then(|topic| self.subscribe(&topic, Wish::default()));
            let text = subscribed.unwrap_or_else(|problem| Some(protocol::failed(&problem, None)));
            text.into_iter().for_each(|text| self.mailbox.answer(Answer::unasked(text)));
        }
    }

    /// The request that a message is. One with more data than a mailbox holds is delivered to none, and is
    /// not worth reading.
    fn parse<'a>(&self, message: &'a Message) -> Result<Request<'a>, Problem> {
        if message.kind != Kind::Text {
            return Err(Problem::new(400, "this is a binary message", "send requests as text"));
        }
        let (size, most) = (message.payload.len(), self.shared.limits.mailbox.bytes);
        if size > most + ENVELOPE {
            let error = format!("a request of {size} bytes is too large");
            return Err(Problem::new(413, error, "publish no more at a time than may wait"));
        }
        Request::parse(&message.payload)
    }

    /// Do what a message asks for; `None` where the answer comes through the mailbox.
    fn request(&mut self, message: &Message) -> Done {
        let request = match self.parse(message) {
            Ok(request) => request,
            Err(problem) => return Done::saying(protocol::failed(&problem, None)),
        };
        let id = request.id;
        self.obey(&request).unwrap_or_else(|problem| Done::saying(protocol::failed(&problem, id)))
    }

    fn obey(&mut self, request: &Request<'_>) -> Result<Done, Problem> {
        if request.verb == Verb::Heartbeat {
            return Ok(self.heartbeat(request));
        }
        let topic = Topic::new(&request.topic)?;
        let (name, id) = (topic.name(), request.id);
        match request.verb {
            Verb::Heartbeat => Ok(Done::later()),
            Verb::Subscribe => {
                if !self.is_its_own(&name) {
                    self.may_subscribe(&name)?;
                }
                let since = request.since.as_ref().map(protocol::Since::position);
                let text = self.subscribe(&topic, Wish { since, id, asked: true })?;
                Ok(Done { text, happened: Some(Happened::Subscribed((&*name).into())) })
            }
            Verb::Unsubscribe => {
                self.unsubscribe(&name);
                let text = Some(protocol::unsubscribed(&name, id));
                Ok(Done { text, happened: Some(Happened::Unsubscribed((&*name).into())) })
            }
            Verb::Publish => self.publish(name, request).map(|()| Done::later()),
            Verb::Ack => self.acknowledge(name, request).map(|()| Done::later()),
        }
    }

    fn heartbeat(&self, request: &Request<'_>) -> Done {
        let key = &self.shared.resume;
        let token = request.resume.then(|| key.sign(self.user(), self.positions()));
        let token = token.as_ref().map(|token| token.as_deref());
        Done::saying(protocol::heartbeat(token, key.lifetime(), request.id))
    }

    /// Each topic, and where the client is in it as of the next that it is sent.
    fn positions(&self) -> Vec<Kept> {
        let exchange = &self.shared.exchange;
        let kept = |topic: &Arc<str>| (topic.to_string(), exchange.position(topic, &self.mailbox));
        self.topics.iter().map(kept).collect()
    }

    fn is_restricted(&self, name: &str) -> bool {
        self.shared.exchange.rule(name).is_some_and(|rule| rule.restricted)
    }

    fn may_subscribe(&self, name: &str) -> Result<(), Problem> {
        let granted = self.client.as_ref().and_then(|client| client.grants.subscribe.as_deref());
        if permits(granted, name, self.is_restricted(name)) {
            return Ok(());
        }
        let remedy = "have the topic in the token's claim `subscribe`";
        Err(Problem::new(403, "this client may not subscribe to the topic", remedy))
    }

    fn may_publish(&self, name: &str) -> Result<(), Problem> {
        let granted = self.client.as_ref().and_then(|client| client.grants.publish.as_deref());
        if permits(granted, name, self.is_restricted(name)) {
            return Ok(());
        }
        let remedy = "have the topic in the token's claim `publish`";
        Err(Problem::new(403, "this client may not publish on the topic", remedy))
    }

    fn publish(&self, topic: Arc<str>, request: &Request<'_>) -> Result<(), Problem> {
        let data = request.data.ok_or_else(|| {
            let remedy = "name the data, which may be any JSON but null";
            Problem::new(400, "there is nothing to publish", remedy)
        })?;
        self.may_publish(&topic)?;
        self.expect_answer()?;
        // A key is its user's own: others cannot use it up.
        let user = self.user().unwrap_or_default();
        let key = request.key.as_ref().map(|key| format!("{user}\n{key}").into());
        let data = Bytes::copy_from_slice(data.get().as_bytes());
        let publication = Publication { topic: topic.clone(), data, key };
        let (mailbox, id) = (self.mailbox.clone(), request.id);
        self.shared.publish(
            publication,
            Box::new(move |stored| {
                let reached = stored.as_ref().ok().and_then(|stored| stored.reached).unwrap_or(0);
                let text = protocol::published(&topic, stored, id);
                mailbox.answer(Answer { text, reached, expected: true });
            }),
        );
        Ok(())
    }

    fn acknowledge(&self, topic: Arc<str>, request: &Request<'_>) -> Result<(), Problem> {
        let name = request.entry.clone().unwrap_or_default();
        let position = protocol::parse_entry(&name).ok_or_else(|| {
            Problem::new(400, "this is no entry", "repeat the `entry` of the message")
        })?;
        self.expect_answer()?;
        let (mailbox, id, name) = (self.mailbox.clone(), request.id, name.into_owned());
        let handed = Handed { topic: topic.clone(), position, connection: self.id };
        self.shared.bus.acknowledge(
            handed,
            Box::new(move |done: Result<bool, BusError>| {
                let text = protocol::acked(&topic, &name, done, id);
                mailbox.answer(Answer { text, reached: 0, expected: true });
            }),
        );
        Ok(())
    }

    fn expect_answer(&self) -> Result<(), Problem> {
        if self.mailbox.expect() {
            return Ok(());
        }
        let problem =
            Problem::new(429, "too many requests wait for their answers", "wait for some");
        Err(Problem { retry_after: Some(BusError::RETRY_AFTER), ..problem })
    }

    /// Subscribe, or begin at another position; what to say, if that is known already. Subscribing
    /// twice is subscribing once.
    fn subscribe(&mut self, topic: &Topic, wish: Wish) -> Result<Option<Bytes>, Problem> {
        let name = topic.name();
        let new = !self.topics.contains(&name);
        if new && self.topics.len() >= self.shared.limits.topics {
            let error = format!("this connection has {} topics", self.topics.len());
            let remedy = "unsubscribe from one, or open another connection";
            return Err(Problem::new(429, error, remedy));
        }
        if wish.asked {
            self.expect_answer()?;
        }
        let shared = &self.shared;
        let joined = shared.exchange.join(&name, self.id, &self.mailbox, wish, &*shared.bus);
        let text = match joined {
            Joined::Live => Some(protocol::subscribed_live(&name, wish.since.is_some(), wish.id)),
            Joined::At(placed) => Some(protocol::subscribed(&name, Some(placed), wish.id)),
            Joined::Later => None,
        };
        if wish.asked && text.is_some() {
            self.mailbox.forgo();
        }
        if new {
            self.topics.push(name);
        }
        Ok(text)
    }

    fn unsubscribe(&mut self, name: &Arc<str>) {
        let Some(place) = self.topics.iter().position(|other| other == name) else { return };
        self.topics.swap_remove(place);
        self.leave(name);
    }

    fn leave(&self, topic: &Arc<str>) {
        self.shared.exchange.leave(topic, self.id, &*self.shared.bus);
    }
}

impl Handler for Subscriber {
    fn message(&mut self, message: Message, replies: &mut Replies<'_>) {
        let text = |payload| Message { kind: Kind::Text, payload };
        let done = self.request(&message);
        replies.spend(message.payload.len());
        replies.happened = done.happened;
        if let Some(payload) = done.text {
            replies.spend(payload.len());
            replies.message(text(payload));
        }
        // A bus of this process has answered already, and its answer comes before what it delivered.
        while let Some(answer) = self.mailbox.next_answer() {
            replies.spend(DELIVERY * answer.reached);
            replies.message(text(answer.text));
        }
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
            Some(Next::Answer(answer)) => replies.message(text(answer.text)),
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

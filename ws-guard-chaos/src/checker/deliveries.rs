//! Whether every acknowledged publication reached every subscriber that was entitled to it, in order.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Found;
use crate::{log::Event, verdict};

/// What was said of one topic.
#[derive(Default)]
struct Topic {
    /// Acknowledged, by offset: id and time.
    acknowledged: BTreeMap<u64, (String, u64)>,
    /// Acknowledged under an offset that another one has.
    collisions: Vec<(u64, String, u64)>,
    subscribers: HashMap<String, Subscriber>,
}

/// What one client got of the topic it follows.
#[derive(Default)]
struct Subscriber {
    /// It is entitled to all that follows.
    from: Option<u64>,
    began: u64,
    got: Vec<Got>,
}

enum Got {
    Message {
        offset: u64,
        id: String,
        at: u64,
    },
    /// What it was told is missing.
    Gap {
        from: u64,
        to: u64,
    },
}

#[derive(Default)]
pub struct Deliveries {
    topics: BTreeMap<String, Topic>,
    published: HashSet<String>,
    refused: u64,
    gaps: u64,
}

impl Deliveries {
    pub fn take(&mut self, at: u64, who: String, event: Event) {
        match event {
            Event::Began { topic } => self.subscriber(topic, who).began = at,
            Event::Subscribed { topic, offset } => {
                self.subscriber(topic, who).from.get_or_insert(offset);
            }
            Event::Publish { id, .. } => drop(self.published.insert(id)),
            Event::Published { topic, id, offset, .. } => {
                let topic = self.topics.entry(topic).or_default();
                match topic.acknowledged.get(&offset) {
                    Some((known, _)) if *known != id => topic.collisions.push((offset, id, at)),
                    _ => drop(topic.acknowledged.insert(offset, (id, at))),
                }
            }
            Event::Refused { .. } => self.refused += 1,
            Event::Message { topic, offset, id } => {
                self.subscriber(topic, who).got.push(Got::Message { offset, id, at });
            }
            Event::Gap { topic, from, to } => {
                self.gaps += 1;
                self.subscriber(topic, who).got.push(Got::Gap { from, to });
            }
            _ => {}
        }
    }

    fn subscriber(&mut self, topic: String, who: String) -> &mut Subscriber {
        self.topics.entry(topic).or_default().subscribers.entry(who).or_default()
    }

    pub fn judge(self) -> (verdict::Deliveries, Vec<Found>) {
        let mut sums = verdict::Deliveries {
            published: self.published.len() as u64,
            refused: self.refused,
            gaps: self.gaps,
            ..verdict::Deliveries::default()
        };
        let mut found = Vec::new();
        for (name, topic) in &self.topics {
            topic.judge(name, &self.published, &mut sums, &mut found);
        }
        (sums, found)
    }
}

impl Topic {
    fn judge(
        &self,
        name: &str,
        published: &HashSet<String>,
        sums: &mut verdict::Deliveries,
        found: &mut Vec<Found>,
    ) {
        sums.acknowledged += (self.acknowledged.len() + self.collisions.len()) as u64;
        for (offset, id, at) in &self.collisions {
            let text = format!("{name}: {id} and another one were both acknowledged at {offset}");
            let who = publisher(id);
            found.push(Found { kind: "acknowledged twice at an offset", who, text, at: *at });
        }
        let stored = self.stored();
        for (who, subscriber) in &self.subscribers {
            let Some(from) = subscriber.from else {
                let text = format!("{name}: its subscription was never confirmed");
                let at = subscriber.began;
                found.push(Found { kind: "never subscribed", who: who.clone(), text, at });
                continue;
            };
            let mut judged = Judged { name, who, published, topic: self, sums, found };
            judged.order(subscriber);
            judged.missing(subscriber, from, &stored);
            for (offset, id, at) in self.collisions.iter().filter(|(offset, ..)| *offset > from) {
                judged.one(subscriber, *offset, id, *at, true);
            }
        }
    }

    /// All that has to be in the history: what was acknowledged, and what anybody got.
    fn stored(&self) -> BTreeMap<u64, (&str, u64, bool)> {
        let mut stored = BTreeMap::new();
        for got in self.subscribers.values().flat_map(|subscriber| &subscriber.got) {
            if let Got::Message { offset, id, at } = got {
                stored.entry(*offset).or_insert((id.as_str(), *at, false));
            }
        }
        for (offset, (id, at)) in &self.acknowledged {
            stored.insert(*offset, (id, *at, true));
        }
        stored
    }
}

/// Who publishes what has this id.
fn publisher(id: &str) -> String {
    id.rsplit_once('-').map_or(id, |(who, _)| who).to_owned()
}

/// One subscriber of a topic, while it is judged.
struct Judged<'a> {
    name: &'a str,
    who: &'a str,
    published: &'a HashSet<String>,
    topic: &'a Topic,
    sums: &'a mut verdict::Deliveries,
    found: &'a mut Vec<Found>,
}

impl Judged<'_> {
    fn find(&mut self, kind: &'static str, at: u64, text: String) {
        let text = format!("{}: {text}", self.name);
        self.found.push(Found { kind, who: self.who.to_owned(), text, at });
    }

    /// What it got: in the order of offsets, once, and what was published.
    fn order(&mut self, subscriber: &Subscriber) {
        let (mut last, mut ids) = (None, HashSet::new());
        for got in &subscriber.got {
            let (offset, id, at) = match got {
                Got::Message { offset, id, at } => (*offset, id, *at),
                // What it was told to go on from.
                Got::Gap { to, .. } => {
                    last = Some(*to);
                    continue;
                }
            };
            self.sums.delivered += 1;
            if let Some(last) = last.filter(|last| offset <= *last) {
                self.find("out of order", at, format!("{id} at {offset} came after {last}"));
            }
            last = Some(offset);
            if !ids.insert(id) {
                self.find("delivered twice", at, format!("{id} came again at {offset}"));
            } else if !self.published.contains(id) {
                self.find(
                    "never published",
                    at,
                    format!("no publisher has sent {id}, at {offset}"),
                );
            } else if let Some((other, _)) = self.topic.acknowledged.get(&offset)
                && other != id
            {
                let text = format!("{id} came at {offset}, where {other} was acknowledged");
                self.find("another at its offset", at, text);
            }
        }
    }

    /// What it did not get although it was entitled to it.
    fn missing(
        &mut self,
        subscriber: &Subscriber,
        from: u64,
        stored: &BTreeMap<u64, (&str, u64, bool)>,
    ) {
        let ids = subscriber.got.iter().filter_map(|got| match got {
            Got::Message { id, .. } => Some(id.as_str()),
            Got::Gap { .. } => None,
        });
        let ids: HashSet<&str> = ids.collect();
        for (offset, (id, at, acknowledged)) in stored.range(from + 1..) {
            self.sums.expected += u64::from(*acknowledged);
            if !ids.contains(id) {
                self.lost(subscriber, *offset, id, *at, *acknowledged);
            }
        }
    }

    /// One that was acknowledged at an offset that another one has.
    fn one(&mut self, subscriber: &Subscriber, offset: u64, id: &str, at: u64, acknowledged: bool) {
        self.sums.expected += 1;
        let came =
            subscriber.got.iter().any(|got| matches!(got, Got::Message { id: it, .. } if it == id));
        if !came {
            self.lost(subscriber, offset, id, at, acknowledged);
        }
    }

    fn lost(
        &mut self,
        subscriber: &Subscriber,
        offset: u64,
        id: &str,
        at: u64,
        acknowledged: bool,
    ) {
        let covers =
            |got: &Got| matches!(got, Got::Gap { from, to } if *from < offset && offset <= *to);
        let told = subscriber.got.iter().any(covers);
        self.sums.lost += u64::from(acknowledged);
        self.sums.told += u64::from(acknowledged && told);
        if !told {
            let what = if acknowledged { "acknowledged" } else { "delivered to others" };
            self.find("lost in silence", at, format!("{id}, {what} at {offset}, never came"));
        }
    }
}

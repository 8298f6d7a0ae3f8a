//! Topics against a model: whatever is published, dropped, trimmed or cut off, no subscriber has a gap
//! that it was not told of, and none gets anything twice.

use std::{sync::Arc, time::Duration};

use prometheus::{IntGauge, Registry};
use proptest::prelude::*;
use serde_json::Value;

use super::{
    bus::{Bus, Promise, Publication, Stored},
    exchange::{Arrival, Exchange, HistoryBounds, Joined, Wish},
    local_bus::LocalBus,
    log::Position,
    mailbox::{Bounds, Mailbox, Next, WhenFull},
    metrics::TopicMetrics,
    rules::{History, InForce, Kind, Pattern, Rule, Rules},
};
use crate::memory_budget::MemoryBudget;

const CLIENTS: usize = 3;
const HISTORY: usize = 6;
const MAILBOX: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Publish,
    /// A client takes up to this number of messages.
    Take(usize, usize),
    Disconnect(usize),
    /// A client comes back, or asks again, with the position that it has.
    Subscribe(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Publish),
        3 => (0..CLIENTS, 1..6usize).prop_map(|(client, most)| Step::Take(client, most)),
        1 => (0..CLIENTS).prop_map(Step::Disconnect),
        3 => (0..CLIENTS).prop_map(Step::Subscribe),
    ]
}

#[derive(Default)]
struct Client {
    mailbox: Option<Arc<Mailbox>>,
    position: Option<Position>,
    /// The next message may be any, as it was told.
    told: bool,
}

struct World {
    exchange: Arc<Exchange>,
    bus: Arc<dyn Bus>,
    topic: Arc<str>,
    clients: [Client; CLIENTS],
    published: u64,
}

/// Topics that all have a history.
fn exchange() -> Arc<Exchange> {
    let history = History { messages: HISTORY, bytes: 1 << 20, age: Duration::from_secs(3600) };
    let pattern = Pattern::new("*").unwrap();
    let rule = Rule { pattern, kind: Kind::History(history), restricted: false };
    let metrics = TopicMetrics::new(&Registry::new()).unwrap();
    let held = MemoryBudget::new(IntGauge::new("held", "Bytes.").unwrap());
    let rules = InForce::new(Rules(vec![Arc::new(rule)]));
    Arc::new(Exchange::new(rules, HistoryBounds::DEFAULT, metrics, held))
}

fn bounds() -> Bounds {
    Bounds { messages: MAILBOX, bytes: 1 << 20, when_full: WhenFull::DropOldest }
}

impl World {
    fn new() -> World {
        let exchange = exchange();
        let bus = LocalBus::connect(exchange.clone());
        World { exchange, bus, topic: "t".into(), clients: Default::default(), published: 0 }
    }

    fn publish(&mut self) {
        self.published += 1;
        let (topic, data) = (self.topic.clone(), self.published.to_string().into());
        let publication = Publication { topic, data, key: None };
        let number = self.published;
        self.bus.publish(
            publication,
            Box::new(move |stored| assert_eq!(stored.unwrap().position.unwrap().offset, number)),
        );
    }

    fn take(&mut self, client: usize, most: usize) {
        let client = &mut self.clients[client];
        let Some(mailbox) = &client.mailbox else { return };
        for _ in 0..most {
            match mailbox.next() {
                None => return,
                Some(Next::Missed(count)) => {
                    assert!(count > 0);
                    client.told = true;
                }
                Some(Next::Text(text)) => {
                    let said: Value = serde_json::from_slice(&text).unwrap();
                    let offset = said["offset"].as_u64().unwrap();
                    let epoch = u64::from_str_radix(said["epoch"].as_str().unwrap(), 16).unwrap();
                    let before = client.position.unwrap().offset;
                    assert!(offset > before, "{offset} came after {before}");
                    assert!(client.told || offset == before + 1, "{offset} came after {before}");
                    assert_eq!(said["data"], offset);
                    client.told = false;
                    client.position = Some(Position { epoch, offset });
                }
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    fn disconnect(&mut self, client: usize) {
        if self.clients[client].mailbox.take().is_some() {
            self.exchange.leave(&self.topic, client as u64, &*self.bus);
            self.clients[client].told = false;
        }
    }

    fn subscribe(&mut self, id: usize) {
        let client = &mut self.clients[id];
        let mailbox = client.mailbox.get_or_insert_with(|| Arc::new(Mailbox::new(bounds())));
        let wish = Wish { since: client.position, ..Wish::default() };
        let joined = self.exchange.join(&self.topic, id as u64, mailbox, wish, &*self.bus);
        let Joined::At(placed) = joined else { panic!("{joined:?}") };
        assert_eq!(placed.position.offset, self.published);
        if let Some(since) = client.position {
            let missed = (self.published - since.offset) as usize;
            let there = missed <= HISTORY.min(MAILBOX);
            assert_eq!(placed.recovered, Some(there), "{missed} were missed");
        }
        if placed.recovered != Some(true) {
            client.position = Some(placed.position);
        }
        client.told = false;
    }
}

proptest! {
    #[test]
    fn no_gap_is_silent_and_nothing_comes_twice(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Publish => world.publish(),
                Step::Take(client, most) => world.take(client, most),
                Step::Disconnect(client) => world.disconnect(client),
                Step::Subscribe(client) => world.subscribe(client),
            }
        }
        for client in 0..CLIENTS {
            // Once all is taken, each has all, or knows that it has not.
            world.take(client, usize::MAX);
            let there = &world.clients[client];
            if let (Some(_), Some(position)) = (&there.mailbox, there.position) {
                prop_assert!(there.told || position.offset == world.published);
            }
        }
    }
}

/// A bus whose topics a test loads.
struct Elsewhere;

impl Bus for Elsewhere {
    fn publish(&self, _publication: Publication, promise: Promise<Stored>) {
        promise(Ok(Stored::default()));
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// The bus's thread loads the topic while the connection's takes what is there.
#[test]
fn what_was_missed_comes_after_the_word_that_it_will() {
    let topic: Arc<str> = "t".into();
    let since = Position { epoch: 1, offset: 0 };
    for round in 0..2000 {
        let (exchange, mailbox) = (exchange(), Arc::new(Mailbox::new(bounds())));
        let wish = Wish { since: Some(since), ..Wish::default() };
        let joined = exchange.join(&topic, round, &mailbox, wish, &Elsewhere);
        assert!(matches!(joined, Joined::Later));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                loop {
                    match mailbox.next() {
                        None => std::hint::spin_loop(),
                        Some(first) => return first,
                    }
                }
            });
            let arrival = |offset| Arrival {
                position: Position { offset, ..since },
                data: "1".into(),
                age: Duration::ZERO,
            };
            exchange.load(&topic, since, (1..=3).map(arrival).collect());
            let first = first.join().unwrap();
            assert!(matches!(first, Next::Answer(_)), "round {round}: {first:?}");
        });
    }
}

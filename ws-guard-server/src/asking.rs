//! How the connections of a thread are looked at from outside: each is woken and says how it stands,
//! a few at a time. So listing costs a connection nothing while nobody asks.

use std::rc::Rc;

use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
};

use super::shard::Shard;
use crate::view::ConnectionView;

/// Connections that are asked at once; others get their turn in between.
const AT_ONCE: usize = 128;

/// A question to a thread.
pub struct Ask {
    /// One connection, or all.
    pub id: Option<u64>,
    pub reply: oneshot::Sender<Vec<ConnectionView>>,
}

impl Shard {
    /// Answer questions, for ever.
    pub async fn answer(self: Rc<Shard>, mut asked: mpsc::Receiver<Ask>) {
        while let Some(ask) = asked.recv().await {
            for places in self.wheel.places(ask.id).chunks(AT_ONCE) {
                self.wheel.ask(places);
                while self.wheel.awaited() > 0 {
                    yield_now().await;
                }
            }
            // Who asked may have left.
            let _ = ask.reply.send(self.reports.take());
        }
    }
}

//! Introspection of a thread's connections: each is woken and reports its state.
//! A few are woken at a time, so listing costs a connection nothing except while it runs.

use std::rc::Rc;

use tokio::{sync::mpsc, task::yield_now};

use super::{service::Ask, shard::Shard};

/// Number of connections queried at once; others run in between.
const AT_ONCE: usize = 128;

impl Shard {
    /// Answer queries, for ever.
    pub async fn answer(self: Rc<Shard>, mut asked: mpsc::Receiver<Ask>) {
        while let Some(ask) = asked.recv().await {
            for places in self.wheel.places(ask.id).chunks(AT_ONCE) {
                self.wheel.ask(places);
                while self.wheel.awaited() > 0 {
                    yield_now().await;
                }
            }
            // The querying side may be gone.
            let _ = ask.reply.send(self.reports.take());
        }
    }
}

//! Readiness for new clients: the answer to `/readyz`.
//! Load balancers and Kubernetes ask for it. Not being ready ends no connection.

use std::sync::atomic::Ordering;

use super::{service::Service, stall::Level};

/// Reason why new clients should use another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the server is ending and closes its connections")]
    Ending,
    #[error("the server is about to end")]
    Leaving,
    #[error("{held} bytes wait in buffers, over the memory budget of {budget}")]
    Memory { held: usize, budget: usize },
    #[error("connection limit reached ({0})")]
    Full(usize),
    #[error("{late} of {threads} threads are late and refuse new connections")]
    Stalled { late: usize, threads: usize },
}

impl Service {
    /// Check whether a new client is admitted, as far as its identity does not matter.
    ///
    /// A late thread refuses its own share of newcomers only: with fewer than half of the threads
    /// late, sending all clients to other servers would do more harm.
    pub fn ready(&self) -> Result<(), NotReady> {
        let (config, held, open) = (&self.config, self.held(), self.admission.open());
        let (late, threads) = (self.late.load(Ordering::Relaxed), config.shards.max(1));
        if self.is_stopping() {
            Err(NotReady::Ending)
        } else if self.is_leaving() {
            Err(NotReady::Leaving)
        } else if self.over_budget() {
            Err(NotReady::Memory { held, budget: config.memory_budget })
        } else if open >= config.max_connections {
            Err(NotReady::Full(open))
        } else if late * 2 >= threads {
            Err(NotReady::Stalled { late, threads })
        } else {
            Ok(())
        }
    }

    /// Record a thread's change of level.
    pub(super) fn thread_changes(&self, before: Level, now: Level) {
        match (before >= Level::Refuse, now >= Level::Refuse) {
            (false, true) => self.late.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.late.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
    }
}

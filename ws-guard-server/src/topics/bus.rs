//! How publications travel.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::log::Position;

/// Something to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub topic: Arc<str>,
    /// JSON.
    pub data: Bytes,
    /// The same key on the same topic is stored once.
    pub key: Option<Box<str>>,
}

/// What became of a publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Where the topic has a history.
    pub position: Option<Position>,
    /// Subscribers that it is known to reach, where the bus knows.
    pub reached: Option<usize>,
    /// It had been stored before.
    pub repeated: bool,
}

/// Why something was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// It takes no more for now.
    #[error("the bus is full")]
    Full,
    /// What it runs on does not answer.
    #[error("the bus is not available: {0}")]
    Unavailable(String),
}

impl BusError {
    /// When to try again.
    pub const RETRY_AFTER: Duration = Duration::from_secs(1);
}

/// Who waits for the answer, from any thread.
pub type Promise<T> = Box<dyn FnOnce(Result<T, BusError>) + Send>;

/// Where an entry of a queue topic is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    pub topic: Arc<str>,
    pub position: Position,
    /// Number of the connection that has it.
    pub connection: u64,
}

/// Carries publications to the subscribers of their topic, of this server and of others.
///
/// It is called on the threads that serve connections, so nothing here may wait, and `joined` and
/// `left` must not call the exchange. What comes from
/// other servers goes to the [`Exchange`](super::exchange::Exchange), from any thread.
pub trait Bus: Send + Sync {
    /// Take a publication, for this server's subscribers too, and keep the promise.
    fn publish(&self, publication: Publication, promise: Promise<Stored>);

    /// This server's first subscriber of a topic has come. A bus that stores histories loads it.
    fn joined(&self, _topic: &Arc<str>) {}

    /// This server's last subscriber of a topic has gone.
    fn left(&self, _topic: &Arc<str>) {}

    /// An entry of a queue topic is done with; whether it still was this connection's.
    fn acknowledge(&self, _entry: Handed, promise: Promise<bool>) {
        promise(Ok(false));
    }

    /// Histories are the bus's, and not this process's own.
    fn is_remote(&self) -> bool {
        false
    }
}

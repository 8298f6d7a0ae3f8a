//! How publications travel.

use std::sync::Arc;

use bytes::Bytes;

use super::exchange::Exchange;

/// Something that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub topic: Arc<str>,
    /// The text that subscribers are sent, made once for all of them.
    pub text: Bytes,
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

/// Carries publications to the subscribers of their topic, of this server and of others.
///
/// It is called on the threads that serve connections, so nothing here may wait, and `joined` and
/// `left` must not call the exchange. What comes from
/// other servers goes to [`Exchange::deliver`], from any thread.
pub trait Bus: Send + Sync {
    /// Take a publication, for this server's subscribers too. Returns how many it is known to reach.
    fn publish(&self, publication: Publication) -> Result<usize, BusError>;

    /// This server's first subscriber of a topic has come.
    fn joined(&self, _topic: &Arc<str>) {}

    /// This server's last subscriber of a topic has gone.
    fn left(&self, _topic: &Arc<str>) {}
}

/// A bus that ends at this process.
pub struct LocalBus(Arc<Exchange>);

impl LocalBus {
    /// For the subscribers of `exchange`.
    pub fn connect(exchange: Arc<Exchange>) -> Arc<dyn Bus> {
        Arc::new(LocalBus(exchange))
    }
}

impl Bus for LocalBus {
    fn publish(&self, publication: Publication) -> Result<usize, BusError> {
        Ok(self.0.deliver(&publication))
    }
}

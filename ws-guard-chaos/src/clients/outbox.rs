//! Publications of one client, kept until they are acknowledged.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// On the way at a time.
const IN_FLIGHT: usize = 16;

/// A publication that is not acknowledged yet.
pub struct Publication {
    /// Both its key and its data.
    pub id: String,
    pub topic: String,
    /// The request on the present connection.
    request: Option<u64>,
    not_before: Option<Instant>,
}

#[derive(Default)]
pub struct Outbox(VecDeque<Publication>);

impl Outbox {
    pub fn push(&mut self, topic: String, id: String) {
        self.0.push_back(Publication { id, topic, request: None, not_before: None });
    }

    /// The connection has ended: nothing is on its way.
    pub fn detach(&mut self) {
        self.0.iter_mut().for_each(|waiting| waiting.request = None);
    }

    /// The next one to send, as this request.
    pub fn send(&mut self, request: u64, now: Instant) -> Option<&Publication> {
        let sent = self.0.iter().filter(|waiting| waiting.request.is_some()).count();
        let may = |waiting: &&mut Publication| {
            waiting.request.is_none() && waiting.not_before.is_none_or(|after| after <= now)
        };
        let next = self.0.iter_mut().find(may).filter(|_| sent < IN_FLIGHT)?;
        next.request = Some(request);
        Some(next)
    }

    /// When one that was refused may be sent again.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let waiting = self.0.iter().filter(|waiting| waiting.request.is_none());
        waiting.filter_map(|waiting| waiting.not_before.filter(|after| *after > now)).min()
    }

    /// The one that is done with, by its request.
    pub fn take(&mut self, request: u64) -> Option<Publication> {
        let at = self.0.iter().position(|waiting| waiting.request == Some(request))?;
        self.0.remove(at)
    }

    /// Keep the one of this request for later.
    pub fn again(&mut self, request: u64, after: Duration, now: Instant) -> Option<&Publication> {
        let refused = self.0.iter_mut().find(|waiting| waiting.request == Some(request))?;
        refused.request = None;
        refused.not_before = Some(now + after);
        Some(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_acknowledged_is_sent_again() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.push("t".into(), "a".into());
        outbox.push("t".into(), "b".into());
        assert_eq!(outbox.send(1, now).unwrap().id, "a");
        assert_eq!(outbox.send(2, now).unwrap().id, "b");
        assert!(outbox.send(3, now).is_none());
        assert_eq!(outbox.take(1).unwrap().id, "a");
        outbox.detach();
        assert!(outbox.take(2).is_none());
        assert_eq!(outbox.send(1, now).unwrap().id, "b");
        let later = Duration::from_secs(1);
        outbox.again(1, later, now);
        assert!(outbox.send(2, now).is_none());
        assert_eq!((outbox.due(now), outbox.due(now + later)), (Some(now + later), None));
        assert_eq!(outbox.send(2, now + later).unwrap().id, "b");
    }
}

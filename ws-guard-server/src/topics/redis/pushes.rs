//! What Redis pushes, and reads where that is not enough.
//!
//! The script that stores a publication also sends it on the stream's own shard channel, together with the
//! id of the entry before it. Where that is the last one read here, the publication is delivered at once.
//! Otherwise something is missing, or there is more than is known here, and the stream is read: after a
//! gap, after a topic was loaded, when a slot has moved, and now and then in any case.

use std::{rc::Rc, str::from_utf8};

use bytes::Bytes;
use redis::{PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::{task::spawn_local, time::interval};

use super::{
    keys::Keys,
    link::{CHECK, Node, Pushes, problem},
    session::{Entries, Shared, content},
};

/// Most entries of a topic in one answer.
const BATCH: usize = 256;
/// Pushes handled in one go.
const TOGETHER: usize = 128;
/// Checks in which each stream is read once, though nothing says that there is more.
const ROUND: usize = 30;

/// A publication as it is pushed: `BEFORE ID MILLISECONDS DATA`.
struct Pushed {
    /// The entry before it.
    before: String,
    id: String,
    stored_ms: i64,
    data: Bytes,
}

impl Pushed {
    /// Read a message; `None` where it is only a notice.
    fn read(message: Vec<u8>) -> Option<Pushed> {
        let mut words = message.splitn(4, |byte| *byte == b' ');
        let mut word = || from_utf8(words.next()?).ok();
        let (before, id, stored) = (word()?.to_owned(), word()?.to_owned(), word()?);
        let (stored_ms, length) = (stored.parse().ok()?, words.next()?.len());
        let data = Bytes::from(message);
        let data = data.slice(data.len() - length..);
        Some(Pushed { before, id, stored_ms, data })
    }
}

impl Shared {
    /// Take what nodes push, until one of them fails.
    pub async fn heed(self: &Rc<Self>, mut pushes: Pushes) -> RedisError {
        let mut checks = interval(CHECK);
        let (mut some, mut turn) = (Vec::new(), 0);
        loop {
            tokio::select! {
                count = pushes.recv_many(&mut some, TOGETHER) => {
                    if count == 0 {
                        return problem("nothing more is pushed");
                    }
                    for push in some.drain(..) {
                        if let Err(error) = self.pushed(push) {
                            return error;
                        }
                    }
                }
                _ = checks.tick() => {
                    if let Err(error) = self.are_there().await {
                        return error;
                    }
                    turn = (turn + 1) % ROUND;
                    for stream in self.streams().into_iter().skip(turn).step_by(ROUND) {
                        spawn_local(self.clone().fetch(stream));
                    }
                }
            }
        }
    }

    /// Make sure that nodes answer and still take writes: a replica pushes late, or nothing.
    async fn are_there(&self) -> RedisResult<()> {
        for node in &self.link.nodes {
            redis::cmd("PING").query_async::<()>(&mut node.pushes.clone()).await?;
            node.is_primary().await?;
        }
        Ok(())
    }

    fn pushed(self: &Rc<Self>, push: PushInfo) -> RedisResult<()> {
        let mut words = push.data.into_iter();
        let mut channel = || -> RedisResult<String> {
            let channel = words.next().ok_or_else(|| problem("a push names no channel"))?;
            Ok(redis::from_redis_value(channel)?)
        };
        match push.kind {
            PushKind::SMessage => {
                let channel = channel()?;
                if let Some(Value::BulkString(message)) = words.next() {
                    self.published(channel, message);
                }
            }
            PushKind::SUnsubscribe => self.moved(channel()?),
            PushKind::Disconnection => return Err(problem("a node is gone")),
            _ => {}
        }
        Ok(())
    }

    fn published(self: &Rc<Self>, stream: String, message: Vec<u8>) {
        match Pushed::read(message) {
            Some(next) if self.is_last_read(&stream, &next.before) => {
                self.arrived(&stream, next.id, next.data, next.stored_ms);
            }
            _ => drop(spawn_local(self.clone().fetch(stream))),
        }
    }

    /// A node pushes no more of a stream: its slot has another one now.
    fn moved(self: &Rc<Self>, stream: String) {
        let Some(topic) = self.name(&stream) else { return };
        let shared = self.clone();
        spawn_local(async move {
            let is_queue = shared.has_queue(&topic);
            if !is_queue {
                // What was published there before anything is pushed from there is read with the rest.
                return shared.begin(topic).await;
            }
            match shared.follow(&shared.keys(&topic), is_queue).await {
                Ok(()) => shared.fetch(stream).await,
                Err(error) => shared.failed(&error),
            }
        });
    }

    /// The channels of a topic: its stream's, and of a queue the one that shows that this server is there.
    fn channels(&self, keys: &Keys, is_queue: bool) -> impl Iterator<Item = String> + use<> {
        let present = is_queue.then(|| keys.present(&self.work.settings.server));
        present.into_iter().chain([keys.stream.clone()])
    }

    /// Have publications on a topic pushed from now on.
    pub async fn follow(&self, keys: &Keys, is_queue: bool) -> RedisResult<()> {
        for channel in self.channels(keys, is_queue) {
            let command = redis::cmd("SSUBSCRIBE").arg(&channel).to_owned();
            let send = async |node: &Node, _| {
                command.query_async::<Value>(&mut node.pushes.clone()).await.map(drop)
            };
            self.link.route(&channel, send).await?;
        }
        Ok(())
    }

    /// Have none pushed any more.
    pub fn unfollow(self: &Rc<Self>, keys: Keys, is_queue: bool) {
        let shared = self.clone();
        spawn_local(async move {
            if shared.is_read(&keys.stream) {
                return;
            }
            for channel in shared.channels(&keys, is_queue) {
                let command = redis::cmd("SUNSUBSCRIBE").arg(&channel).to_owned();
                let mut pushes = shared.link.node(&channel).pushes.clone();
                let _ = command.query_async::<Value>(&mut pushes).await;
            }
        });
    }

    /// Read a stream to its end, and again where it was said meanwhile that there is more.
    pub async fn fetch(self: Rc<Self>, stream: String) {
        if self.wake_queue(&stream) {
            return;
        }
        if let Some(again) = self.fetching.borrow_mut().get_mut(&stream) {
            *again = true;
            return;
        }
        self.fetching.borrow_mut().insert(stream.clone(), true);
        while self.fetching.borrow_mut().get_mut(&stream).is_some_and(std::mem::take) {
            if let Err(error) = self.fetch_once(&stream).await {
                self.failed(&error);
                break;
            }
        }
        self.fetching.borrow_mut().remove(&stream);
    }

    async fn fetch_once(self: &Rc<Self>, stream: &str) -> RedisResult<()> {
        while let Some(last) = self.last_read(stream) {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(BATCH).arg("STREAMS").arg(stream).arg(&last);
            let read: Option<Vec<(String, Entries)>> = self.link.ask(stream, &command).await?;
            let entries = read.into_iter().flatten().flat_map(|(_, entries)| entries);
            let entries: Entries = entries.collect();
            // Where it was loaded meanwhile, or some were pushed, these may be old.
            if entries.is_empty() || !self.is_last_read(stream, &last) {
                break;
            }
            for (id, fields) in entries {
                let (data, stored_ms) = content(fields).unwrap_or_default();
                if !self.arrived(stream, id, data, stored_ms) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_names_the_entry_before_it_and_anything_else_is_a_notice() {
        let read = |text: &str| Pushed::read(text.into());
        let pushed = read("7-1 8-2 123 {\"a\": \" b\"}").unwrap();
        assert_eq!((&*pushed.before, &*pushed.id, pushed.stored_ms), ("7-1", "8-2", 123));
        assert_eq!(pushed.data, r#"{"a": " b"}"#);
        assert_eq!(read(" 8-1 123 1").unwrap().before, "", "of a stream that there was not");
        assert!(["", "7-1", "7-1 8-2 123", "7-1 8-2 x 1"].iter().all(|text| read(text).is_none()));
        assert!(Pushed::read(vec![0xff, b' ', b'1', b' ', b'1', b' ', b'1']).is_none());
    }
}

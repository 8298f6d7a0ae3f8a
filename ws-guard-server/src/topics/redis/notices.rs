//! Reading from a Redis Cluster.
//!
//! One command there can read only streams of one slot, so that a read which waits for all topics is
//! none. Instead, publishing tells those who follow the stream's own shard channel, and they read.

use std::rc::Rc;

use redis::{PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::{task::spawn_local, time::interval};

use super::{
    link::{BLOCK, Node, Notices, problem},
    session::{BATCH, Entries, Shared},
};

impl Shared {
    /// Read what nodes say is new, until one of them fails.
    pub async fn heed(self: &Rc<Self>, mut notices: Notices) -> RedisError {
        let mut ticks = interval(BLOCK);
        loop {
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => if let Err(error) = self.noticed(notice) {
                        return error;
                    },
                    None => return problem("there are no more notices"),
                },
                // One that has gone without a word is noticed too.
                _ = ticks.tick() => if let Err(error) = self.are_there().await {
                    return error;
                },
            }
        }
    }

    async fn are_there(&self) -> RedisResult<()> {
        for node in &self.link.nodes {
            redis::cmd("PING").query_async::<()>(&mut node.reads.clone()).await?;
        }
        Ok(())
    }

    fn noticed(self: &Rc<Self>, notice: PushInfo) -> RedisResult<()> {
        let channel = || -> RedisResult<String> {
            let channel =
                notice.data.first().ok_or_else(|| problem("a notice names no channel"))?;
            Ok(redis::from_redis_value_ref(channel)?)
        };
        match notice.kind {
            PushKind::SMessage => drop(spawn_local(self.clone().fetch(channel()?))),
            PushKind::SUnsubscribe => self.moved(channel()?),
            PushKind::Disconnection => return Err(problem("a node is gone")),
            _ => {}
        }
        Ok(())
    }

    /// A node has no more notices of a stream: its slot has another one now.
    fn moved(self: &Rc<Self>, stream: String) {
        let Some(topic) = self.name(&stream) else { return };
        let shared = self.clone();
        spawn_local(async move {
            if !shared.has_queue(&topic) {
                // What was published there before there are notices is read with the rest.
                return shared.begin(topic).await;
            }
            match shared.follow(&stream).await {
                Ok(()) => shared.fetch(stream).await,
                Err(error) => shared.failed(&error),
            }
        });
    }

    /// Have notices of a stream from now on.
    pub async fn follow(&self, stream: &str) -> RedisResult<()> {
        if !self.link.is_cluster() {
            return Ok(());
        }
        let command = redis::cmd("SSUBSCRIBE").arg(stream).to_owned();
        let send = async |node: &Node, _| {
            command.query_async::<Value>(&mut node.reads.clone()).await.map(drop)
        };
        self.link.route(stream, send).await
    }

    /// Have none any more.
    pub fn unfollow(self: &Rc<Self>, stream: String) {
        if !self.link.is_cluster() {
            return;
        }
        let shared = self.clone();
        spawn_local(async move {
            if !shared.is_read(&stream) {
                let command = redis::cmd("SUNSUBSCRIBE").arg(&stream).to_owned();
                let mut reads = shared.link.node(&stream).reads.clone();
                let _ = command.query_async::<Value>(&mut reads).await;
            }
        });
    }

    /// Read a stream to its end, and again where it was said meanwhile that there is more.
    pub async fn fetch(self: Rc<Self>, stream: String) {
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
            // Where it was loaded meanwhile, these may be old.
            if entries.is_empty() || self.last_read(stream).as_ref() != Some(&last) {
                break;
            }
            self.arrived(stream, entries);
        }
        Ok(())
    }
}

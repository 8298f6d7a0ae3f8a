//! Connections to Redis, and the scripts that run there.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, PushInfo, RedisError, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::sync::mpsc;

use super::{
    place::{Place, Primaries},
    slots::Slots,
};

/// Time for a connection, and for the answer to a command.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a read waits for entries.
pub const BLOCK: Duration = Duration::from_secs(1);

/// The scripts, by the digests that Redis knows them by.
#[derive(Clone, Debug)]
pub struct Scripts {
    pub open: String,
    pub publish: String,
    pub enqueue: String,
    pub claim: String,
    pub hold: String,
    pub acknowledge: String,
    pub tidy: String,
}

/// Connections to one Redis that takes writes.
#[derive(Clone)]
pub struct Node {
    /// For commands that are answered at once.
    pub commands: MultiplexedConnection,
    /// For the one command that waits; of a cluster's node, for its notices.
    pub reads: MultiplexedConnection,
    /// Redis's number for `reads`.
    pub reader: i64,
    /// The run of Redis that both are connected to: a restart ends them.
    pub run: String,
}

/// Connections that live and die together.
pub struct Link {
    /// One, or all that a cluster has.
    pub nodes: Vec<Node>,
    slots: Option<Slots>,
    pub scripts: Scripts,
}

/// What nodes of a cluster push.
pub type Notices = mpsc::UnboundedReceiver<PushInfo>;

/// A connection; answers may take as long.
pub async fn connect(client: &Client, patience: Duration) -> RedisResult<MultiplexedConnection> {
    client.get_multiplexed_async_connection_with_config(&configuration(patience)).await
}

fn configuration(patience: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(patience))
}

impl Node {
    /// Connect, and make sure that it is a Redis that takes writes.
    async fn open(client: &Client, pushes: &mpsc::UnboundedSender<PushInfo>) -> RedisResult<Node> {
        let mut commands = connect(client, PATIENCE).await?;
        let mut config = configuration(BLOCK + PATIENCE);
        if client.get_connection_info().redis_settings().protocol().supports_resp3() {
            config = config.set_push_sender(pushes.clone());
        }
        let mut reads = client.get_multiplexed_async_connection_with_config(&config).await?;
        let reader = redis::cmd("CLIENT").arg("ID").query_async(&mut reads).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut commands).await?;
        let run = field(&info, "run_id")?;
        let replication: String =
            redis::cmd("INFO").arg("replication").query_async(&mut commands).await?;
        if field(&replication, "role")? != "master" {
            return Err(problem("it is a replica"));
        }
        Ok(Node { commands, reads, reader, run })
    }

    /// Load the scripts, whose names are the same everywhere.
    async fn load(&self) -> RedisResult<Scripts> {
        let mut commands = self.commands.clone();
        let mut load = async |script: &str| -> RedisResult<String> {
            redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(&mut commands).await
        };
        Ok(Scripts {
            open: load(include_str!("open.lua")).await?,
            publish: load(include_str!("publish.lua")).await?,
            enqueue: load(include_str!("enqueue.lua")).await?,
            claim: load(include_str!("claim.lua")).await?,
            hold: load(include_str!("hold.lua")).await?,
            acknowledge: load(include_str!("acknowledge.lua")).await?,
            tidy: load(include_str!("tidy.lua")).await?,
        })
    }
}

impl Link {
    /// Connect to all that take writes.
    pub async fn open(place: &Place) -> RedisResult<(Link, Notices)> {
        let Primaries { nodes: clients, slots } = place.primaries().await?;
        let (pushes, notices) = mpsc::unbounded_channel();
        let (mut nodes, mut scripts) = (Vec::new(), None);
        for client in &clients {
            let node = Node::open(client, &pushes).await?;
            scripts = Some(node.load().await?);
            nodes.push(node);
        }
        let scripts = scripts.ok_or_else(|| problem("there is no node"))?;
        Ok((Link { nodes, slots, scripts }, notices))
    }

    /// Whether topics are spread over the nodes of a cluster, which say where something is new.
    pub fn is_cluster(&self) -> bool {
        self.slots.is_some()
    }

    /// The number of the node that has a key.
    pub fn index(&self, key: &str) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.node(key))
    }

    /// The node that has a key.
    pub fn node(&self, key: &str) -> &Node {
        &self.nodes[self.index(key)]
    }

    /// Run a command where this key is.
    pub async fn ask<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> RedisResult<T> {
        command.query_async(&mut self.node(key).commands.clone()).await
    }
}

/// A call of a script with these keys; its arguments follow.
pub fn call(script: &str, keys: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(*key);
    }
    command
}

pub fn problem(what: &'static str) -> RedisError {
    (redis::ErrorKind::Client, what).into()
}

/// A field of what INFO says.
fn field(info: &str, name: &str) -> RedisResult<String> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned()).ok_or_else(|| problem("INFO says too little"))
}

/// Whether an error is of the command alone, and the connection can go on.
pub fn is_of_the_command(error: &RedisError) -> bool {
    let fatal = ["NOSCRIPT", "READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "MOVED", "CLUSTERDOWN"];
    error.code().is_some_and(|code| !fatal.contains(&code))
}

//! Connections to Redis, and the scripts that run there.
//!
//! Slots of a cluster move from node to node while it works. A node that has one no more says where it is
//! (MOVED), and while a slot is on its way, where a key is that has gone ahead (ASK); a command is then
//! sent on. Only a node that there was no connection to takes new connections to all.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, PushInfo, RedisError,
    RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    place::{Place, Primaries},
    slots::Slots,
};

/// Time for a connection, and for the answer to a command.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How often nodes are asked whether they are there.
pub const CHECK: Duration = Duration::from_secs(1);
/// How soon a command is tried again whose keys are on their way from one node to another.
const ON_THE_WAY: Duration = Duration::from_millis(20);

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
    /// For what is pushed. Redis ends it where too much waits, which answers to commands must not add to.
    pub pushes: MultiplexedConnection,
    /// The run of Redis that both are connected to: a restart ends them.
    pub run: String,
    /// What it is called by other nodes.
    address: (String, u16),
}

/// Connections that live and die together.
pub struct Link {
    /// One, or all that a cluster has.
    pub nodes: Vec<Node>,
    slots: Option<RefCell<Slots>>,
    pub scripts: Scripts,
}

/// What nodes push.
pub type Pushes = mpsc::UnboundedReceiver<PushInfo>;

/// A connection, for one that asks.
pub async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    client.get_multiplexed_async_connection_with_config(&configuration()).await
}

fn configuration() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE))
}

impl Node {
    /// Connect, and make sure that it is a Redis that takes writes.
    async fn open(client: &Client, sender: &mpsc::UnboundedSender<PushInfo>) -> RedisResult<Node> {
        let mut commands = connect(client).await?;
        let config = configuration().set_push_sender(sender.clone());
        let pushes = client.get_multiplexed_async_connection_with_config(&config).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut commands).await?;
        let run = field(&info, "run_id")?;
        let address = address(client.get_connection_info().addr());
        let node = Node { commands, pushes, run, address };
        node.is_primary().await?;
        Ok(node)
    }

    /// Make sure that it takes writes.
    ///
    /// # Errors
    /// Where it does not answer, or is a replica.
    pub async fn is_primary(&self) -> RedisResult<()> {
        let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut self.commands.clone()).await?;
        let role = role.into_iter().next().ok_or_else(|| problem("ROLE says too little"))?;
        if redis::from_redis_value::<String>(role)? != "master" {
            return Err(problem("it is a replica"));
        }
        Ok(())
    }

    /// Run a command here; `asking` for a key that has come before its slot.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd, asking: bool) -> RedisResult<T> {
        let mut commands = self.commands.clone();
        if !asking {
            return command.query_async(&mut commands).await;
        }
        let mut both = redis::pipe();
        both.cmd("ASKING").ignore().add_command(command.clone());
        let (answer,) = both.query_async(&mut commands).await?;
        Ok(answer)
    }

    /// How many replicas have what was written last, once that is as many as wanted or a second is over.
    pub async fn replicated(&self, wanted: usize) -> RedisResult<usize> {
        let mut command = redis::cmd("WAIT");
        command.arg(wanted).arg(1000).query_async(&mut self.commands.clone()).await
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
    pub async fn open(place: &Place) -> RedisResult<(Link, Pushes)> {
        let Primaries { nodes: clients, slots } = place.primaries().await?;
        let (sender, pushes) = mpsc::unbounded_channel();
        let (mut nodes, mut scripts) = (Vec::new(), None);
        for client in &clients {
            let node = Node::open(client, &sender).await?;
            scripts = Some(node.load().await?);
            nodes.push(node);
        }
        let scripts = scripts.ok_or_else(|| problem("there is no node"))?;
        Ok((Link { nodes, slots: slots.map(RefCell::new), scripts }, pushes))
    }

    /// The number of the node that has a key.
    pub fn index(&self, key: &str) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.borrow().node(key))
    }

    /// The node that has a key.
    pub fn node(&self, key: &str) -> &Node {
        &self.nodes[self.index(key)]
    }

    /// Run a command where this key is.
    pub async fn ask<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> RedisResult<T> {
        self.route(key, async |node, asking| node.ask(command, asking).await).await
    }

    /// Do something at the node where this key is, also while its slot moves; `send` gets the node, and
    /// whether the key has come there before its slot.
    pub async fn route<T>(
        &self,
        key: &str,
        send: impl AsyncFn(&Node, bool) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let begun = Instant::now();
        let (mut node, mut asking) = (self.node(key), false);
        loop {
            let error = match send(node, asking).await {
                Err(error) if begun.elapsed() < PATIENCE => error,
                done => return done,
            };
            (node, asking) = match (error.code(), self.named(node, &error)) {
                (Some("MOVED"), Some((slot, index))) => {
                    if let Some(slots) = &self.slots {
                        slots.borrow_mut().set(slot..=slot, index);
                    }
                    (&self.nodes[index], false)
                }
                (Some("ASK"), Some((_, index))) => (&self.nodes[index], true),
                // Some keys of the command are here, and some there; or there is no connection to there.
                (Some("TRYAGAIN" | "ASK"), _) => {
                    sleep(ON_THE_WAY).await;
                    (self.node(key), false)
                }
                _ => return Err(error),
            };
        }
    }

    /// The slot, and the number of the node, that a node sends a command on to.
    fn named(&self, by: &Node, error: &RedisError) -> Option<(u16, usize)> {
        let (address, slot) = error.redirect_node()?;
        let (host, port) = address.rsplit_once(':')?;
        let port = port.parse::<u16>().ok()?;
        // Unknown to itself: the address by which it was asked.
        let host = if host.is_empty() || host == "?" { &*by.address.0 } else { host };
        let is_it = |node: &Node| node.address.0 == host && node.address.1 == port;
        Some((slot, self.nodes.iter().position(is_it)?))
    }
}

fn address(addr: &ConnectionAddr) -> (String, u16) {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            (host.clone(), *port)
        }
        _ => Default::default(),
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

/// Whether a node says that a slot has moved, or does.
pub fn is_redirection(error: &RedisError) -> bool {
    error.code().is_some_and(|code| ["MOVED", "ASK", "TRYAGAIN"].contains(&code))
}

/// Whether an error is of the command alone, and the connection can go on.
pub fn is_of_the_command(error: &RedisError) -> bool {
    let fatal = ["NOSCRIPT", "READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "MOVED", "CLUSTERDOWN"];
    // Of commands sent together, each one's: the error itself has a code only if the client knows it.
    match error.clone().into_server_errors() {
        Some(errors) => !errors.iter().any(|(_, error)| fatal.contains(&error.code())),
        None => error.code().is_some_and(|code| !fatal.contains(&code)),
    }
}

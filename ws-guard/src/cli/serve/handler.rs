//! Flags for the handling of messages.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum, error::ErrorKind};
use ws_guard_server::{
    HandlerKind, regular,
    topics::{
        TopicLimits,
        exchange::HistoryBounds,
        mailbox::{self, Bounds},
        redis::Settings,
        resume::ResumeKey,
        rules::InForce,
    },
};

use super::flags::time;
use crate::config::server::ServerSection;

/// Handling of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HandlerName {
    /// Messages are echoed to their sender
    #[default]
    Echo,
    /// Publish and subscribe, in JSON
    Topic,
}

/// Response to a full queue of publications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// The oldest go, and the client is told how many it missed
    #[default]
    DropOldest,
    /// The connection is closed as one that reads too slowly
    Close,
}

impl From<WhenFull> for mailbox::WhenFull {
    fn from(when: WhenFull) -> mailbox::WhenFull {
        match when {
            WhenFull::DropOldest => mailbox::WhenFull::DropOldest,
            WhenFull::Close => mailbox::WhenFull::Close,
        }
    }
}

/// Least length of a secret in bytes.
const SHORTEST: usize = 32;

#[derive(Args)]
#[command(next_help_heading = "Messages")]
pub struct HandlerFlags {
    /// Handling of messages
    #[arg(long, value_enum, value_name = "NAME", env = "WS_GUARD_HANDLER", default_value_t)]
    handler: HandlerName,
    /// Serve a page to try messaging on, at / of the same address; for anyone who can reach it
    #[arg(long, env = "WS_GUARD_DEMO_PAGE")]
    demo_page: bool,
    /// Topics that a connection may subscribe to
    #[arg(long, value_name = "N", env = "WS_GUARD_MAX_TOPICS", default_value_t = 64)]
    max_topics: usize,
    /// Publications that may wait for a connection
    #[arg(long, value_name = "N", env = "WS_GUARD_QUEUE_MESSAGES", default_value_t = 1024)]
    queue_messages: usize,
    /// Bytes of them
    #[arg(long, value_name = "BYTES", env = "WS_GUARD_QUEUE_BYTES", default_value_t = 1 << 20)]
    queue_bytes: usize,
    /// What to do when more would wait
    #[arg(long, value_enum, value_name = "WHAT", env = "WS_GUARD_WHEN_FULL", default_value_t)]
    when_full: WhenFull,
    /// Topic that each connection is subscribed to, such as 'user:{user_id}' with its user's name.
    /// Several with commas, or by giving it again
    #[arg(long, value_name = "TOPIC", env = "WS_GUARD_AUTO_SUBSCRIBE", value_delimiter = ',')]
    auto_subscribe: Vec<String>,
    /// Memory of the histories of all topics, in bytes
    #[arg(long, value_name = "BYTES", env = "WS_GUARD_HISTORY_BYTES", default_value_t = 64 << 20)]
    history_bytes: usize,
    /// Secret of at least 32 bytes that signs resume tokens, the same on all servers of a cluster;
    /// without it, a token is valid until the process ends
    #[arg(long, value_name = "FILE", env = "WS_GUARD_RESUME_SECRET")]
    resume_secret: Option<PathBuf>,
    /// Validity of a resume token
    #[arg(long, value_name = "TIME", env = "WS_GUARD_RESUME_LIFETIME", default_value = "5m",
        value_parser = time)]
    resume_lifetime: Duration,
    /// Redis over which servers share topics: redis://HOST:PORT, redis+sentinel://HOST:PORT,…/NAME or
    /// redis+cluster://HOST:PORT,…; with TLS, rediss
    #[arg(long, value_name = "URL", env = "WS_GUARD_BUS", hide_env_values = true)]
    bus: Option<String>,
    /// Name of the cluster: servers with the same one share topics
    #[arg(
        long,
        value_name = "NAME",
        env = "WS_GUARD_BUS_CLUSTER",
        default_value = "default",
        requires = "bus"
    )]
    bus_cluster: String,
    /// Name of this server, which no other of the cluster has and which it keeps [default: the host's,
    /// and the port]
    #[arg(long, value_name = "NAME", env = "WS_GUARD_BUS_SERVER", requires = "bus")]
    bus_server: Option<String>,
    /// Replicas of Redis that have a publication before it is acknowledged
    #[arg(
        long,
        value_name = "N",
        env = "WS_GUARD_BUS_WAIT_REPLICAS",
        default_value_t = 0,
        requires = "bus"
    )]
    bus_wait_replicas: usize,
}

/// Create a usage error.
fn wrong(message: &str) -> anyhow::Error {
    clap::Error::raw(ErrorKind::InvalidValue, format!("{message}\n")).into()
}

impl HandlerFlags {
    /// Check whether the page to try messaging on is served.
    pub fn demo_page(&self) -> anyhow::Result<bool> {
        if self.demo_page && self.handler == HandlerName::Echo {
            return Err(wrong("--demo-page is for topics: add --handler topic"));
        }
        Ok(self.demo_page)
    }

    /// Return the configured handler; `port` is the server's.
    pub fn handler(&self, section: &ServerSection, port: u16) -> anyhow::Result<HandlerKind> {
        if self.handler == HandlerName::Echo {
            if self.bus.is_some() {
                return Err(wrong("--bus is for topics: add --handler topic"));
            }
            return Ok(HandlerKind::Echo);
        }
        let mut rules = section.topics.0.iter();
        if self.bus.is_none() && rules.any(|rule| rule.queueing().is_some()) {
            return Err(wrong("queue topics are in Redis: add --bus redis://HOST:PORT"));
        }
        Ok(HandlerKind::Topic(Box::new(TopicLimits {
            topics: self.max_topics,
            mailbox: Bounds {
                messages: self.queue_messages,
                bytes: self.queue_bytes,
                when_full: self.when_full.into(),
            },
            rules: InForce::new(section.topics.clone()),
            history: HistoryBounds { bytes: self.history_bytes, ..HistoryBounds::DEFAULT },
            auto_subscribe: self.auto_subscribe.clone(),
            resume: Some(self.resume_key()?),
            bus: self.bus(port)?,
        })))
    }

    fn bus(&self, port: u16) -> anyhow::Result<Option<Settings>> {
        let Some(url) = &self.bus else { return Ok(None) };
        let name = match &self.bus_server {
            Some(name) => name.clone(),
            None => {
                let host = nix::unistd::gethostname().context("cannot find the host's name")?;
                format!("{}-{port}", host.to_string_lossy())
            }
        };
        let settings = Settings::new(url, &self.bus_cluster, &name, self.bus_wait_replicas);
        settings.map(Some).map_err(|error| wrong(&error.to_string()))
    }

    fn resume_key(&self) -> anyhow::Result<ResumeKey> {
        let Some(path) = &self.resume_secret else {
            return ResumeKey::random(self.resume_lifetime)
                .context("cannot make a key for resume tokens");
        };
        let what = || format!("cannot use {} as the secret of resume tokens", path.display());
        let secret = regular::read(path).with_context(what)?;
        let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
        if secret.len() < SHORTEST {
            anyhow::bail!("{}: it has fewer than {SHORTEST} bytes: use more", what());
        }
        Ok(ResumeKey::new(secret, self.resume_lifetime))
    }
}

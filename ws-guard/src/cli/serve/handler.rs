//! Flags for the handling of messages.

use clap::{Args, ValueEnum};
use ws_guard_server::{
    HandlerKind,
    topics::{
        TopicLimits,
        mailbox::{self, Bounds},
    },
};

/// Handling of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HandlerName {
    /// Messages are echoed to their sender
    #[default]
    Echo,
    /// Publish and subscribe, in JSON
    Topic,
}

/// What happens when a queue of publications is full.
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

#[derive(Args)]
#[command(next_help_heading = "Messages")]
pub struct HandlerFlags {
    /// Handling of messages
    #[arg(long, value_enum, value_name = "NAME", env = "WS_GUARD_HANDLER", default_value_t)]
    handler: HandlerName,
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
}

impl HandlerFlags {
    pub fn handler(&self) -> HandlerKind {
        match self.handler {
            HandlerName::Echo => HandlerKind::Echo,
            HandlerName::Topic => HandlerKind::Topic(TopicLimits {
                topics: self.max_topics,
                mailbox: Bounds {
                    messages: self.queue_messages,
                    bytes: self.queue_bytes,
                    when_full: self.when_full.into(),
                },
            }),
        }
    }
}

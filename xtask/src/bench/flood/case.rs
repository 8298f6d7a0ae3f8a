//! Cases of the measurement: servers, floods, and responses to them.
use std::str::FromStr;

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};
use ws_guard_testkit::{flooders::Kind, servers::Library};

/// `--pace off`: the connection is not slowed down.
const UNPACED: &str = "--pace off";
/// Limit of a source in 10 s for the flooding class, as for pings.
const RATE: u32 = 30;

/// Server under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Foreign(Library),
    /// The companion server.
    Companion,
    /// The companion server with TLS.
    CompanionTls,
    /// Python `websockets` with TLS.
    PythonTls,
}

/// Frames of the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    Frames(Kind),
    /// Pings of a TCP that sends past the end of the server's window.
    BeyondWindow,
}

/// Response to the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Neither a flood nor a guard.
    NoFlood,
    Unguarded,
    Observe,
    DefuseUnpaced,
    Defuse,
    Drop,
}

impl Target {
    pub const ALL: [Target; 7] = [
        Target::Foreign(Library::TokioTungstenite),
        Target::Foreign(Library::Python),
        Target::Foreign(Library::Ws),
        Target::Foreign(Library::Gorilla),
        Target::Companion,
        Target::CompanionTls,
        Target::PythonTls,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Target::Foreign(library) => library.name(),
            Target::Companion => "companion",
            Target::CompanionTls => "companion-tls",
            Target::PythonTls => "python-tls",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Target::CompanionTls | Target::PythonTls)
    }

    /// Check whether a server takes this flood.
    /// Only pings are sent inside TLS: the guard sees records there, whatever they hold.
    pub fn takes(self, flood: Flood) -> bool {
        !self.is_tls() || flood == Flood::Frames(Kind::Pings)
    }
}

impl Flood {
    pub const ALL: [Flood; 5] = [
        Flood::Frames(Kind::Pings),
        Flood::Frames(Kind::Pongs),
        Flood::Frames(Kind::Fragments),
        Flood::Frames(Kind::Messages),
        Flood::BeyondWindow,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Flood::Frames(Kind::Pings) => "pings",
            Flood::Frames(Kind::Pongs) => "pongs",
            Flood::Frames(Kind::Fragments) => "fragments",
            Flood::Frames(Kind::Messages) => "messages",
            Flood::BeyondWindow => "pings-beyond-window",
        }
    }

    /// Return the limit that it exceeds: of pings, or of records, by default.
    fn limit(self) -> String {
        let class = match self {
            Flood::Frames(Kind::Pings) | Flood::BeyondWindow => return String::new(),
            Flood::Frames(Kind::Pongs) => "pong",
            Flood::Frames(Kind::Fragments) => "empty-fragment",
            Flood::Frames(Kind::Messages) => "tiny-frame",
        };
        format!("--max-{class}-rate {RATE}")
    }
}

impl Mode {
    pub const ALL: [Mode; 6] = [
        Mode::NoFlood,
        Mode::Unguarded,
        Mode::Observe,
        Mode::DefuseUnpaced,
        Mode::Defuse,
        Mode::Drop,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Mode::NoFlood => "no-flood",
            Mode::Unguarded => "unguarded",
            Mode::Observe => "observe",
            Mode::DefuseUnpaced => "defuse-unpaced",
            Mode::Defuse => "defuse",
            Mode::Drop => "drop",
        }
    }

    /// Return the guard's arguments, where there is one.
    pub fn words(self, flood: Flood) -> Option<String> {
        let action = match self {
            Mode::NoFlood | Mode::Unguarded => return None,
            Mode::Observe => "observe",
            Mode::DefuseUnpaced | Mode::Defuse => "defuse",
            Mode::Drop => "drop",
        };
        let pace = if self == Mode::DefuseUnpaced { UNPACED } else { "" };
        Some(format!("--action {action} {pace} {}", flood.limit()))
    }
}

fn named<T: Copy>(what: &str, name: &str, all: &[T], of: fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|one| of(*one) == name).with_context(|| {
        let names: Vec<_> = all.iter().map(|one| of(*one)).collect();
        format!("no {what} is called {name:?}: choose of {}", names.join(", "))
    })
}

macro_rules! by_name {
    ($kind:ty, $what:literal) => {
        impl FromStr for $kind {
            type Err = anyhow::Error;

            fn from_str(name: &str) -> Result<$kind> {
                named($what, name, &<$kind>::ALL, <$kind>::name)
            }
        }

        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

by_name!(Target, "server");
by_name!(Flood, "flood");
by_name!(Mode, "mode");

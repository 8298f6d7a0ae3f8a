//! Which connections and findings are wanted.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::finding::{Ends, Finding, Kind};

/// An end of a connection: an address, or an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Address(IpAddr),
    Point(SocketAddr),
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<End, String> {
        let point = text.parse().map(End::Point);
        let end = point.or_else(|_| text.parse().map(End::Address));
        end.map_err(|_| {
            format!("{text:?} is no address and no end point (10.0.0.1:80, [fd77::1]:80)")
        })
    }
}

impl End {
    fn is_one_of(self, ends: &Ends) -> bool {
        match self {
            End::Address(address) => ends.client.ip() == address || ends.server.ip() == address,
            End::Point(point) => ends.client == point || ends.server == point,
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        let names = || Kind::ALL.map(Kind::name).join(", ");
        kind.ok_or_else(|| format!("there is no kind {text:?}: {}", names()))
    }
}

/// What is wanted; everything where nothing is named.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub ends: Vec<End>,
    pub kinds: Vec<Kind>,
}

impl Selection {
    /// A connection with all the named ends.
    pub fn has_flow(&self, ends: &Ends) -> bool {
        self.ends.iter().all(|end| end.is_one_of(ends))
    }

    /// A finding of a named kind; without one all but frames and units.
    pub fn has(&self, ends: &Ends, finding: &Finding) -> bool {
        let kind = finding.what.kind();
        let is_kind = match self.kinds.is_empty() {
            true => !matches!(kind, Kind::Frame | Kind::Unit),
            false => self.kinds.contains(&kind),
        };
        is_kind && self.has_flow(ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_kinds_are_read_and_compared() {
        let ends = Ends {
            client: "[fd77::1]:4711".parse().unwrap(),
            server: "[fd77::2]:80".parse().unwrap(),
        };
        for (end, is_one) in [
            ("fd77::1", true),
            ("[fd77::2]:80", true),
            ("[fd77::1]:80", false),
            ("10.0.0.1", false),
            ("10.0.0.1:80", false),
        ] {
            assert_eq!(end.parse::<End>().unwrap().is_one_of(&ends), is_one, "{end}");
        }
        assert!("eth0".parse::<End>().is_err());
        assert!(Kind::ALL.iter().all(|kind| kind.name().parse() == Ok(*kind)));
        assert!("frames".parse::<Kind>().unwrap_err().contains("split_point"));
    }
}

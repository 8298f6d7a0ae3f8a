//! Selection of connections and findings.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use crate::finding::{Ends, Finding, Kind, Side};

/// End of a connection: an address, or an address and a port.
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

/// Time: absolute, or relative to the first TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nanoseconds since 1970.
    At(u64),
    /// Nanoseconds after the first TCP segment.
    After(u64),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).ok();
        let after = text.strip_prefix('+').and_then(|text| humantime::parse_duration(text).ok());
        let at = || humantime::parse_rfc3339_weak(text).ok()?.duration_since(UNIX_EPOCH).ok();
        let moment = match after {
            Some(after) => ns(after).map(Moment::After),
            None => at().and_then(ns).map(Moment::At),
        };
        moment.ok_or_else(|| {
            format!(
                "{text:?} is no time (2026-11-28T21:07:51.5Z, or +90s behind the first TCP segment)"
            )
        })
    }
}

impl Moment {
    /// Return nanoseconds since 1970. `first`: the time of the first segment.
    pub const fn ns(self, first: u64) -> u64 {
        match self {
            Moment::At(ns) => ns,
            Moment::After(ns) => first.saturating_add(ns),
        }
    }
}

/// Frame of a side, numbered from 1 as in findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameName {
    pub side: Side,
    pub number: u64,
}

impl FromStr for FrameName {
    type Err = String;

    fn from_str(text: &str) -> Result<FrameName, String> {
        let (side, number) = text.split_once(':').unwrap_or((text, ""));
        let side = [Side::Client, Side::Server].into_iter().find(|known| known.name() == side);
        let number = number.parse().ok().filter(|number| *number > 0);
        let name = side.zip(number).map(|(side, number)| FrameName { side, number });
        name.ok_or_else(|| format!("{text:?} is no frame (client:42 is the client's 42nd)"))
    }
}

/// Selection; everything where nothing is named.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub ends: Vec<End>,
    pub kinds: Vec<Kind>,
    pub since: Option<Moment>,
    pub until: Option<Moment>,
    /// Time of the capture's first TCP segment.
    pub first_ns: u64,
}

impl Selection {
    /// Check whether a connection has all named ends.
    pub fn has_flow(&self, ends: &Ends) -> bool {
        self.ends.iter().all(|end| end.is_one_of(ends))
    }

    /// Check whether a period overlaps the time range.
    /// Packets outside it are read all the same, to keep track of frames.
    pub fn has_time(&self, from: u64, to: u64) -> bool {
        let is_late = self.since.is_some_and(|since| to < since.ns(self.first_ns));
        let is_early = self.until.is_some_and(|until| from > until.ns(self.first_ns));
        !is_late && !is_early
    }

    /// Check whether a finding is selected.
    /// Where no kind is named, all are but frames and units.
    pub fn has(&self, ends: &Ends, finding: &Finding) -> bool {
        let kind = finding.what.kind();
        let is_kind = match self.kinds.is_empty() {
            true => !matches!(kind, Kind::Frame | Kind::Unit),
            false => self.kinds.contains(&kind),
        };
        let time = finding.at.time_ns;
        is_kind && self.has_flow(ends) && self.has_time(time, time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_range_is_closed_and_counts_from_the_first_packet() {
        let second = 1_000_000_000;
        let selection = Selection {
            since: Some("+1s".parse().unwrap()),
            until: Some("1970-01-01T00:00:15Z".parse().unwrap()),
            first_ns: 10 * second,
            ..Selection::default()
        };
        let has = |from, to| selection.has_time(from * second, to * second);
        assert!(has(11, 11) && has(15, 15) && has(0, 11) && has(15, 99) && has(0, 99));
        assert!(!has(10, 10) && !has(0, 10) && !has(16, 99));
        for wrong in ["", "+", "soon", "+-1s", "25:00", "1969-12-31T23:59:59Z"] {
            assert!(wrong.parse::<Moment>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_are_named_by_side_and_number() {
        let name = FrameName { side: Side::Server, number: 7 };
        assert_eq!("server:7".parse(), Ok(name));
        for wrong in ["7", "server", "server:0", "server:x", "both:1"] {
            assert!(wrong.parse::<FrameName>().is_err(), "{wrong}");
        }
    }

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

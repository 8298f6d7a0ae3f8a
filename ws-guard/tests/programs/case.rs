//! One row of the table: packets, and their verdicts.
use std::time::Duration;

use ws_guard_common::{
    flow::Flow,
    frame::Violation,
    maps::{Address, Counter, Policy, Rule, Server, action},
    window::Rate,
};
use ws_guard_testkit::{
    frame::{Frame, encode},
    packets::{Connection, Packet, REQUEST, SWITCHING},
    tunnel::Tunnel,
};

pub const PROTECTED: u16 = 80;

/// Number of connections that a row may use:
/// the second shares the first one's address, the others have one each.
pub const CONNECTIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Return connection number `index`.
/// Sequence numbers wrap soon after the handshake.
pub fn connection(family: Family, index: usize) -> Connection {
    let host = if index < 2 { 1 } else { index };
    let (client, server) = match family {
        Family::V4 => (format!("10.77.0.{host}"), "10.77.9.9"),
        Family::V6 => (format!("fd77:0:0:{host}::1"), "fd77:9::9"),
    };
    let address =
        |text: &str, port| std::net::SocketAddr::new(text.parse().expect("an address"), port);
    Connection {
        client: address(&client, 4711 + index as u16),
        server: address(server, PROTECTED),
        client_seq: u32::MAX - 300,
        server_seq: u32::MAX - 200,
    }
}

/// Edit of a packet before it is built.
pub type Edit = Box<dyn Fn(&mut Packet)>;
/// Edit of its bytes afterwards.
pub type EditBytes = Box<dyn Fn(&mut Vec<u8>)>;

/// One of a server's figures.
pub type Figure = fn(&Server) -> u64;

/// Edit of a flow.
pub type EditFlow = Box<dyn Fn(&mut Flow)>;

/// Outcome of a packet behind the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes unchanged.
    Passes,
    /// It passes with PONGs for the PINGs at these payload offsets.
    /// Its checksum is as if built so.
    Defused(Vec<usize>),
    /// It passes with other TCP options, and a checksum as if built so.
    Options(Vec<u8>),
    /// The same with another receive window.
    Window(u16),
    /// The same with an acknowledgement that can begin no connection.
    Disarmed,
    Dropped,
}

/// A packet of a row.
pub struct Sent {
    pub connection: usize,
    pub from_client: bool,
    /// Offset in bytes behind the request or the answer; negative before them.
    pub at: i64,
    pub acked: i64,
    pub payload: Vec<u8>,
    pub edits: Vec<Edit>,
    pub edit_bytes: Option<EditBytes>,
    pub fate: Fate,
}

pub enum Step {
    Packet(Sent),
    /// An operator throttles the source of the first connection.
    Throttle,
    /// The operator bans it.
    Ban,
    /// The operator releases it.
    Release,
    /// A terminator reports this number of pings of it.
    Report(u32),
    Wait(Duration),
    /// Another CPU or other programs change the first connection's flow.
    Flow(EditFlow),
    /// Another CPU is at its trail, or has left it.
    TrailBusy(bool),
    /// Number of unanswered requests of other connections from the first one's address.
    Requests(u16),
}

/// A row.
pub struct Case {
    pub name: &'static str,
    pub policy: Policy,
    /// A rule, for this address or that of the first two connections.
    pub rule: Option<(Option<&'static str>, Rule)>,
    pub steps: Vec<Step>,
    /// Increments of the counters.
    pub counts: Vec<(Counter, u64)>,
    /// Figures of the server at the end: name, accessor, and value.
    pub figures: Vec<(&'static str, Figure, u64)>,
    /// Violations of the client's frames, one each.
    pub violations: Vec<Violation>,
    /// State of the first connection's flow at the end; `None` when it must have none.
    pub state: Option<Option<u8>>,
    /// Client of the first connection at the end, and how it was identified.
    pub client: Option<(String, u8)>,
    /// Reason why it cannot be played at TC.
    pub xdp_only: Option<&'static str>,
    /// Tunnel around each packet, and whether that is over IPv6.
    pub tunnel: Option<(Tunnel, bool)>,
    /// The only address family to play it in.
    pub family: Option<Family>,
    at: [i64; CONNECTIONS],
    answered: [i64; CONNECTIONS],
    current: usize,
}

/// Return a rate of at most `limit` pings in any `window_ms`.
pub fn rate(limit: u32, window_ms: u32) -> Rate {
    Rate::new(limit, window_ms, 0).expect("a limit and a window in range")
}

/// Start a row: the default policy, 30 pings in any 10 s, a share of 2, defuse.
pub fn case(name: &'static str) -> Case {
    Case {
        name,
        policy: Policy {
            rate: rate(30, 10_000),
            connection_rate: rate(0, 10_000),
            share: 2,
            action: action::DEFUSE,
            mask_v4: Address::mask(128),
            mask_v6: Address::mask(64),
            generation: 1,
            ..Policy::default()
        },
        rule: None,
        steps: Vec::new(),
        counts: Vec::new(),
        figures: Vec::new(),
        violations: Vec::new(),
        state: None,
        client: None,
        xdp_only: None,
        tunnel: None,
        family: None,
        at: [0; CONNECTIONS],
        answered: [0; CONNECTIONS],
        current: 0,
    }
}

/// Number of requests, many times the size of their table.
/// An entry that was looked up once stays longer, and on a busy machine, where each CPU has its own
/// list, longer still.
pub const FLOOD: u16 = 2_000;

pub fn pings(count: usize) -> Vec<u8> {
    encode(&vec![Frame::ping([]); count])
}

pub fn text(text: &str) -> Vec<u8> {
    encode(&[Frame::text(text)])
}

impl Case {
    pub fn policy(mut self, change: impl Fn(&mut Policy)) -> Case {
        change(&mut self.policy);
        self
    }

    /// Continue with this connection.
    pub fn on(mut self, connection: usize) -> Case {
        self.current = connection;
        self
    }

    fn packet(mut self, from_client: bool, at: i64, acked: i64, payload: Vec<u8>) -> Case {
        self.steps.push(Step::Packet(Sent {
            connection: self.current,
            from_client,
            at,
            acked,
            payload,
            edits: Vec::new(),
            edit_bytes: None,
            fate: Fate::Passes,
        }));
        self
    }

    /// Send a segment of the client at this offset of its stream.
    pub fn client_at(self, at: i64, payload: impl Into<Vec<u8>>) -> Case {
        self.packet(true, at, 0, payload.into())
    }

    /// Send the client's next segment.
    pub fn client(mut self, payload: impl Into<Vec<u8>>) -> Case {
        let (payload, at) = (payload.into(), self.at[self.current]);
        self.at[self.current] += payload.len() as i64;
        self.client_at(at, payload)
    }

    /// Send the server's next segment, with the client's bytes up to `acked` taken.
    pub fn server(mut self, acked: i64, payload: impl Into<Vec<u8>>) -> Case {
        let (payload, at) = (payload.into(), self.answered[self.current]);
        self.answered[self.current] += payload.len() as i64;
        self.packet(false, at, acked, payload)
    }

    pub fn request(self) -> Case {
        self.client_at(-(REQUEST.len() as i64), REQUEST)
    }

    /// Send the server's answer to the request.
    pub fn answer(self, head: impl Into<Vec<u8>>) -> Case {
        self.packet(false, -(SWITCHING.len() as i64), 0, head.into())
    }

    /// Send request and answer.
    pub fn open(self) -> Case {
        self.request().answer(SWITCHING)
    }

    pub fn throttle(mut self) -> Case {
        self.steps.push(Step::Throttle);
        self
    }

    pub fn ban(mut self) -> Case {
        self.steps.push(Step::Ban);
        self
    }

    pub fn release(mut self) -> Case {
        self.steps.push(Step::Release);
        self
    }

    /// Make the first two connections a trusted proxy's.
    pub fn proxied(mut self) -> Case {
        self.policy.proxies = 1;
        self
    }

    /// Expect this client for the first connection.
    pub fn client_is(mut self, address: &str, identity: u8) -> Case {
        self.client = Some((address.into(), identity));
        self
    }

    pub fn report(mut self, pings: u32) -> Case {
        self.steps.push(Step::Report(pings));
        self
    }

    pub fn wait(mut self, time: Duration) -> Case {
        self.steps.push(Step::Wait(time));
        self
    }

    pub fn flow(mut self, edit: impl Fn(&mut Flow) + 'static) -> Case {
        self.steps.push(Step::Flow(Box::new(edit)));
        self
    }

    pub fn trail_busy(mut self, busy: bool) -> Case {
        self.steps.push(Step::TrailBusy(busy));
        self
    }

    pub fn requests(mut self, count: u16) -> Case {
        self.steps.push(Step::Requests(count));
        self
    }

    fn last(&mut self) -> &mut Sent {
        let last = self.steps.iter_mut().rev().find_map(|step| match step {
            Step::Packet(sent) => Some(sent),
            _ => None,
        });
        last.expect("a packet before it is described")
    }

    /// Edit the latest packet.
    pub fn with(mut self, edit: impl Fn(&mut Packet) + 'static) -> Case {
        self.last().edits.push(Box::new(edit));
        self
    }

    /// Edit the latest packet's bytes.
    pub fn bytes(mut self, edit: impl Fn(&mut Vec<u8>) + 'static) -> Case {
        self.last().edit_bytes = Some(Box::new(edit));
        self
    }

    /// Expect this outcome of the latest packet; it passes unchanged unless set.
    pub fn fate(mut self, fate: Fate) -> Case {
        self.last().fate = fate;
        self
    }

    pub fn dropped(self) -> Case {
        self.fate(Fate::Dropped)
    }

    pub fn defused(self, at: &[usize]) -> Case {
        self.fate(Fate::Defused(at.to_vec()))
    }

    /// Set a rule for the first source.
    pub fn rule(mut self, rule: Rule) -> Case {
        self.policy.rules = 1;
        self.rule = Some((None, rule));
        self
    }

    /// Set a rule for an address.
    pub fn rule_of(mut self, address: &'static str, rule: Rule) -> Case {
        self.policy.rules = 1;
        self.rule = Some((Some(address), rule));
        self
    }

    pub fn counts(mut self, counts: &[(Counter, u64)]) -> Case {
        self.counts.extend(counts);
        self
    }

    pub fn figure(mut self, name: &'static str, figure: Figure, value: u64) -> Case {
        self.figures.push((name, figure, value));
        self
    }

    pub fn violates(mut self, kinds: &[Violation]) -> Case {
        self.violations.extend(kinds);
        self
    }

    pub fn xdp_only(mut self, reason: &'static str) -> Case {
        self.xdp_only = Some(reason);
        self
    }

    /// Put every packet in a tunnel, over IPv6 if `v6`.
    pub fn inside(mut self, tunnel: Tunnel, v6: bool) -> Case {
        self.tunnel = Some((tunnel, v6));
        self
    }

    pub fn only(mut self, family: Family) -> Case {
        self.family = Some(family);
        self
    }

    pub fn leaves(mut self, state: u8) -> Case {
        self.state = Some(Some(state));
        self
    }

    pub fn leaves_no_flow(mut self) -> Case {
        self.state = Some(None);
        self
    }
}

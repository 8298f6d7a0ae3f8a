//! A row: an attack, its permitted outcome, and its outcome.
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{client::Client, netns::Family, raw_tcp::RawTcp, servers::Library};

use crate::{
    attacker::Attacker,
    stage::{Flow, LIMIT, Stage},
};

/// Environment variable with the name of the only row to play.
pub const ONE_ROW: &str = "WS_GUARD_ROW";
/// Silence of the server after which it has handled everything.
const QUIET: Duration = Duration::from_millis(120);
/// The lowest port of an attacker.
pub const PORT: u16 = 40_000;
/// Environment variable set by `cargo xtask test --nightly`.
const NIGHTLY: &str = "WS_GUARD_CASES";
const CLOSED: Duration = Duration::from_secs(30);

/// Pings that reached the server, as such or defused: proof of the attack.
#[derive(Clone, Copy, Debug)]
pub enum Reached {
    /// All of them, and exactly this number as pings.
    Exactly(u64),
    /// All of them.
    All(u64),
    /// Any number: some are kept away, which is fine too.
    AtMost(u64),
}

/// The attacker's end of a connection.
pub trait Peer {
    fn address(&self) -> SocketAddr;
    /// Take what arrives until nothing more does.
    fn settle(&mut self) -> Result<()>;
    /// Return the number of pongs received.
    fn pongs(&self) -> u64;
    /// End the connection in order.
    fn end(&mut self) -> Result<()>;
}

/// All connections of a row.
pub type Peers = Vec<Box<dyn Peer>>;

/// Wrap the one connection of a row.
pub fn one(tcp: RawTcp) -> Result<Peers> {
    Ok(vec![Box::new(tcp)])
}

impl Peer for RawTcp {
    fn address(&self) -> SocketAddr {
        self.client
    }

    fn settle(&mut self) -> Result<()> {
        RawTcp::settle(self, QUIET)
    }

    fn pongs(&self) -> u64 {
        self.pongs
    }

    fn end(&mut self) -> Result<()> {
        if self.reset { Ok(()) } else { self.finish() }
    }
}

impl Peer for Option<Client> {
    fn address(&self) -> SocketAddr {
        self.as_ref().map_or(SocketAddr::from(([0; 4], 0)), Client::local)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn pongs(&self) -> u64 {
        self.as_ref().map_or(0, |client| client.received().pongs)
    }

    fn end(&mut self) -> Result<()> {
        self.take().map_or(Ok(()), |client| client.close().map(drop))
    }
}

/// The failure of a row that is known to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// More pings pass than may.
    Leaks,
    /// Something honest does not get through.
    Breaks,
}

/// A named case.
#[derive(Clone)]
pub struct Row {
    pub name: &'static str,
    pub library: Library,
    pub families: &'static [Family],
    pub attack: fn(&Attacker) -> Result<Peers>,
    /// Pings that may reach the server as pings.
    pub allowed: u64,
    pub reached: Reached,
    /// Kind of failure today, and its reason.
    pub known: Option<(Failure, &'static str)>,
}

impl Row {
    /// Make a row with `reached` pings on the Python server, over IPv4 and IPv6.
    pub const fn new(
        name: &'static str,
        reached: Reached,
        attack: fn(&Attacker) -> Result<Peers>,
    ) -> Row {
        Row {
            name,
            library: Library::Python,
            families: &Family::BOTH,
            attack,
            allowed: LIMIT,
            reached,
            known: None,
        }
    }

    pub const fn on(mut self, library: Library) -> Row {
        self.library = library;
        self
    }

    pub const fn only(mut self, families: &'static [Family]) -> Row {
        self.families = families;
        self
    }

    pub const fn allowed(mut self, pings: u64) -> Row {
        self.allowed = pings;
        self
    }

    pub const fn known(mut self, why: &'static str) -> Row {
        self.known = Some((Failure::Leaks, why));
        self
    }
}

/// Outcome of a row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Pings that the server's library received.
    pings: u64,
    defused: u64,
    /// Pongs that it sent.
    pongs: u64,
    /// Reasons why the server ended its connections.
    why: Vec<String>,
    /// The guard's view of the last connection.
    guard: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Outcome { pings, defused, pongs, why, guard } = self;
        write!(f, "server: {pings} pings, {defused} defused, {pongs} pongs sent; guard: {guard}")?;
        if !why.is_empty() {
            write!(f, "; ended: {}", why.join(", "))?;
        }
        Ok(())
    }
}

impl Row {
    /// Attack from address number `n`, ports from `port` on, next to an honest client.
    pub fn play(&self, stage: &Stage, family: Family, n: u8, port: u16) -> Result<Outcome> {
        let attacker = Attacker { stage, library: self.library, family, n, port };
        stage.with_honest_clients(self.library, family, n, || {
            let mut peers = (self.attack)(&attacker)?;
            let mut outcome = Outcome { guard: "no flow".into(), ..Outcome::default() };
            // An address and port may have had several connections, one after the other.
            let mut ends = BTreeMap::<SocketAddr, usize>::new();
            for peer in &mut peers {
                peer.settle()?;
                *ends.entry(peer.address()).or_default() += 1;
            }
            if let Some(last) = peers.last()
                && let Some(flow) = stage.flow(last.address())?
            {
                let Flow { state, frames_in, pings_in, defused, .. } = flow;
                outcome.guard =
                    format!("{state}, {frames_in} frames, {pings_in} pings, {defused} defused");
            }
            for peer in &mut peers {
                outcome.pongs += peer.pongs();
                peer.end()?;
            }
            for (address, connections) in ends {
                let closed = stage.server(self.library)?.closed(address, connections, CLOSED)?;
                for closed in closed {
                    outcome.pings += closed.pings;
                    outcome.defused += closed.pongs;
                    outcome.why.extend(closed.why);
                }
            }
            outcome.why.dedup();
            Ok(outcome)
        })
    }

    /// Play the row and print a line; return the line of an unexpected result.
    fn run(&self, stage: &Stage, family: Family, n: u8) -> Option<String> {
        let start = Instant::now();
        let (verdict, told) = match self.play(stage, family, n, PORT) {
            Ok(outcome) => (self.judge(&outcome), outcome.to_string()),
            Err(error) => (Err((Failure::Breaks, format!("{error:#}"))), String::new()),
        };
        let state = match (&verdict, self.known) {
            (Ok(()), None) => "ok",
            (Ok(()), Some(_)) => "PASSES",
            (Err((how, _)), Some((known, _))) if *how == known => "known",
            _ => "FAILED",
        };
        let why = verdict.err().map(|(_, why)| format!("{why}; ")).unwrap_or_default();
        let known = self.known.map(|(_, why)| format!(" ({why})")).unwrap_or_default();
        let name = self.name;
        let line = format!("{state:<6} {name}{known} {family:?}: {why}{told}");
        println!("  {line} [{:.1} s]", start.elapsed().as_secs_f32());
        (state == "FAILED" || state == "PASSES").then_some(line)
    }

    /// Return what is wrong with an outcome.
    pub fn judge(&self, outcome: &Outcome) -> Result<(), (Failure, String)> {
        let answered = outcome.pings.max(outcome.pongs);
        if answered > self.allowed {
            let why = format!("{answered} pings passed, {} may", self.allowed);
            return Err((Failure::Leaks, why));
        }
        let reached = outcome.pings + outcome.defused;
        match self.reached {
            Reached::Exactly(sent)
                if reached == sent && outcome.pings == sent.min(self.allowed) =>
            {
                Ok(())
            }
            Reached::All(sent) if reached == sent => Ok(()),
            Reached::AtMost(sent) if reached <= sent => Ok(()),
            Reached::Exactly(sent) | Reached::All(sent) | Reached::AtMost(sent) => {
                let why = format!("{reached} of {sent} reached it, {} as pings", outcome.pings);
                Err((Failure::Breaks, why))
            }
        }
    }
}

/// Play the rows in sequence, print each outcome, and fail on an unexpected one.
///
/// Differences between IPv4 and IPv6 have rows of their own; the other rows alternate, unless the
/// run is one that has time.
pub fn play(stage: Stage, rows: &[Row]) -> Result<()> {
    let wanted = std::env::var(ONE_ROW).unwrap_or_default();
    let both = std::env::var_os(NIGHTLY).is_some();
    let mut wrong = Vec::new();
    let mut n = 0;
    for (turn, row) in rows.iter().enumerate().filter(|(_, row)| row.name.contains(&wanted)) {
        let families = match row.families {
            families if both || !wanted.is_empty() => families,
            families => &families[turn % families.len()..][..1],
        };
        for family in families {
            if let Some(line) = row.run(&stage, *family, n) {
                wrong.push(line);
            }
            n += 1;
        }
    }
    ensure!(n > 0 || rows.is_empty(), "no row is called {wanted:?}");
    stage.finish().context("clean-up")?;
    ensure!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

//! Forged identities:
//! headers by which clients try to be charged as another, through proxies and without.
//!
//! A flooder sends each kind of header, line and preface, which name an honest client or an address
//! that is exempt. It has to be charged all the same, and no other source: shown by its pongs, by
//! those of the honest client, and by the list of `throttled`.
use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    edge::Reach,
    frame::Frame,
    netns::Family,
    proxies::Front,
    servers::Library,
};

use crate::{
    row::{LIMIT, guard_words, source_name},
    stage::{Role, Serving, Stage},
};

/// Pings of the flooder.
const FLOOD: usize = 100;
/// Pings of the honest client, before the attempts and after each:
/// more than a share, and in total fewer than a limit.
const BEFORE: u64 = 8;
const AFTER: u64 = 2;
const WAIT: Duration = Duration::from_secs(10);
/// An exempt network.
const EXEMPT: &str = "203.0.113.7";

/// Identity that the guard gives the flooder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Its own address.
    Itself,
    /// Its connection alone.
    Connection,
    /// The same, unless the proxy refuses the request.
    Refused,
}

/// One attempt: request lines, in which `VICTIM` and `EXEMPT` are addresses.
type Attempt = (&'static str, Taken);

/// Attempts through a proxy that appends to `X-Forwarded-For`.
const APPENDED: [Attempt; 12] = [
    ("X-Forwarded-For: VICTIM\r\n", Taken::Itself),
    ("X-Forwarded-For: EXEMPT\r\nX-Forwarded-For: VICTIM\r\n", Taken::Itself),
    ("X-Forwarded-For: VICTIM, 10.77.0.1\r\n", Taken::Itself),
    ("X-Forwarded-For: \"\r\n", Taken::Itself),
    ("X-A: PROXY TCP4 VICTIM 10.77.0.1 1 2\r\n", Taken::Itself),
    ("X-A: b\rX-Forwarded-For: VICTIM\r\n", Taken::Refused),
    ("X-A: b,\r\n X-Forwarded-For: VICTIM\r\n", Taken::Refused),
    ("Forwarded: for=VICTIM\r\n", Taken::Connection),
    ("Forwarded: for=VICTIM;for=\"\r\nForwarded: \", for=EXEMPT\r\n", Taken::Connection),
    ("Expect: 100-continue\r\n", Taken::Refused),
    ("X-Forwarded-For: LONG\r\n", Taken::Itself),
    ("MANY", Taken::Itself),
];

/// Attempts directly to the server, from an address that is no trusted proxy.
const STRAIGHT: [Attempt; 4] = [
    ("X-Forwarded-For: VICTIM\r\n", Taken::Itself),
    ("X-Forwarded-For: EXEMPT\r\n", Taken::Itself),
    ("Forwarded: for=EXEMPT\r\nX-Forwarded-For: EXEMPT\r\n", Taken::Itself),
    ("X-A: PROXY TCP4 VICTIM 10.77.0.1 1 2\r\n", Taken::Itself),
];

/// Path of the flooder's requests.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Through a trusted proxy.
    Proxy(Front),
    /// Directly to the server, from an address that is no trusted proxy.
    Straight,
}

impl Way {
    fn victim(self, family: Family) -> IpAddr {
        match self {
            Way::Proxy(_) => Reach::Public.client(family, 0),
            Way::Straight => family.client(0),
        }
    }

    /// Return the flooder's address for attempt number `n`, from 1.
    fn flooder(self, family: Family, n: u16) -> IpAddr {
        match self {
            Way::Proxy(_) => Reach::Public.client(family, n),
            Way::Straight => family.client(1),
        }
    }
}

/// The guard, a server behind it, and an honest client.
struct Scene {
    stage: Stage,
    family: Family,
    way: Way,
    honest: Option<Client>,
}

impl Scene {
    fn new(way: Way, family: Family) -> Result<Scene> {
        let (python, role) = (Serving::Library(Library::Python), Role::Uplink);
        let words = guard_words("defuse", 600, &format!("--allow {EXEMPT}/32"));
        let stage = match way {
            Way::Proxy(front) => {
                // The proxy is exempt, its clients are not.
                let trusted = "--trusted-proxy 10.77.0.0/16 --trusted-proxy fd77::/32 \
                    --allow 10.77.0.0/16 --allow fd77::/32";
                Stage::new(front, python, family, role, &format!("{words} {trusted}"))?
            }
            Way::Straight => {
                let words = format!("{words} --trusted-proxy none");
                Stage::without_proxy(python, family, role, &words)?
            }
        };
        let mut scene = Scene { stage, family, way, honest: None };
        scene.honest = Some(scene.connect(way.victim(family), "")?);
        scene.ping_honestly(BEFORE)?;
        Ok(scene)
    }

    fn connect(&self, source: IpAddr, lines: &str) -> Result<Client> {
        let (from, to) = match self.way {
            Way::Proxy(_) => (&self.stage.edge.clients, self.stage.front()),
            Way::Straight => (self.stage.edge.proxy(), self.stage.server()),
        };
        let options = ConnectOptions { source: Some(source), ..ConnectOptions::default() };
        Client::connect_with(from, to, options, lines, &Cut::Whole)
    }

    /// Ping as the honest client, and check that all pings are answered.
    fn ping_honestly(&mut self, pings: u64) -> Result<()> {
        let honest = self.honest.as_mut().context("the honest client")?;
        let wanted = honest.sent().pings + pings;
        honest.send(&vec![Frame::ping(""); pings as usize], &Cut::Every(6))?;
        let answered = honest.wait(WAIT, |received| received.pongs == wanted);
        ensure!(answered, "{wanted} honest pings, {:?}", honest.received());
        Ok(())
    }

    /// Play attempt number `n`, from 1.
    fn attempt(&mut self, n: u16, (lines, taken): Attempt) -> Result<()> {
        let victim = self.way.victim(self.family).to_string();
        let lines = lines.replace("VICTIM", &victim).replace("EXEMPT", EXEMPT);
        // Lines that take long to read.
        let lines = lines.replace("LONG", &"x".repeat(600)).replace("MANY", &"A: b\r\n".repeat(90));
        let address = self.way.flooder(self.family, n);
        let mut flooder = match self.connect(address, &lines) {
            Err(_) if taken == Taken::Refused => return Ok(()),
            connected => connected?,
        };
        flooder.send(&vec![Frame::ping(""); FLOOD], &Cut::Every(6))?;
        flooder.send_one(Frame::text("behind them"))?;
        ensure!(flooder.wait(WAIT, |received| received.messages == 1), "no echo");
        let pongs = flooder.received().pongs;
        ensure!(pongs == LIMIT as u64, "{pongs} pongs");
        let throttled = self.stage.throttled()?;
        let [source] = &throttled[..] else { bail!("throttled are {throttled:?}") };
        let own = source_name(address);
        let right = match taken {
            Taken::Itself | Taken::Refused => *source == own,
            // A source of the proxy, and of one port of it.
            Taken::Connection => *source != own && source.contains("77"),
        };
        ensure!(right, "{source} is throttled");
        self.ping_honestly(AFTER)?;
        flooder.close()?;
        self.stage.guard.run(&format!("release {source}")).map(drop)
    }
}

/// Play the attempts one after the other.
fn play(way: Way, family: Family, attempts: &[Attempt]) -> Result<()> {
    let mut scene = Scene::new(way, family)?;
    let mut wrong = Vec::new();
    for (n, attempt) in (1..).zip(attempts) {
        if let Err(error) = scene.attempt(n, *attempt) {
            wrong.push(format!("{:?}: {error:#}", attempt.0));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), attempts.len(), wrong.join("\n"));
    scene.honest.map_or(Ok(()), |honest| honest.close().map(drop))?;
    scene.stage.finish()
}

#[test]
fn through_nginx() -> Result<()> {
    needs_root!();
    play(Way::Proxy(Front::Nginx), Family::V4, &APPENDED)
}

#[test]
fn through_haproxy() -> Result<()> {
    needs_root!();
    play(Way::Proxy(Front::Haproxy), Family::V6, &APPENDED)
}

#[test]
fn straight_to_the_server() -> Result<()> {
    needs_root!();
    play(Way::Straight, Family::V4, &STRAIGHT)?;
    play(Way::Straight, Family::V6, &STRAIGHT)
}

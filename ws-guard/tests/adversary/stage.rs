//! Servers, their guard, and the counts of all of them.
use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Pair, PairOptions},
    servers::{Library, Server},
};

use crate::process::Guard;

/// Pings that a source may send in any window...
pub const LIMIT: u64 = 30;
/// ...which lasts longer than all rows together: no throttle ends between them.
const WINDOW_SECONDS: u32 = 1200;
/// Pings that a connection may still send while its source is throttled.
pub const SHARE: u64 = 5;
/// Prefix of an honest client's errors.
pub const HONEST: &str = "the honest client";
/// Pings of an honest client during a row.
const HONEST_PINGS: u64 = 4;
/// First protected port. There are more ports than servers: others may be added.
pub const PORT: u16 = 9001;
pub const LAST_PORT: u16 = 9010;
const WAIT: Duration = Duration::from_secs(10);

/// A row of `flows -o json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flow {
    pub client: String,
    pub state: String,
    pub frames_in: u64,
    pub pings_in: u64,
    pub defused: u64,
}

/// One server of each library, with no guard yet.
pub struct Open {
    servers: Vec<(Library, Server)>,
    pub pair: Pair,
}

impl Open {
    /// Start servers on ports from [`PORT`], in the order of [`Library::ALL`].
    pub fn new(options: PairOptions) -> Result<Open> {
        let pair = Pair::new(options)?;
        // Accept data in a SYN, from anyone and at all ports (tcp(7), ip-sysctl).
        pair.server.sysctl("net/ipv4/tcp_fastopen", "1539")?;
        let servers = Library::ALL.into_iter().zip(PORT..);
        let servers = servers.map(|(library, port)| {
            Ok((library, Server::start(&pair.server, library, port, None)?))
        });
        let servers = servers.collect::<Result<_>>()?;
        Ok(Open { servers, pair })
    }

    /// Return the address of a library's server.
    pub fn at(&self, library: Library, family: Family) -> Result<SocketAddr> {
        let found = self.servers.iter().find(|(of, _)| *of == library);
        let (_, server) = found.with_context(|| format!("no server on {}", library.name()))?;
        Ok(server.at(family.server()))
    }

    /// Put a guard in front of them. `attach` is a mode of `--attach`.
    pub fn guard(self, attach: &str) -> Result<Stage> {
        self.guard_with(attach, &format!("--window-seconds {WINDOW_SECONDS}"))
    }

    /// The same, with a given window and further arguments.
    pub fn guard_with(self, attach: &str, words: &str) -> Result<Stage> {
        let Open { servers, pair } = self;
        let ports = ports(PORT..=LAST_PORT);
        let words = format!("--attach {attach} --port {ports} --max-ping-rate {LIMIT} {words}");
        let guard = Guard::start(&pair.server, &words)?;
        Ok(Stage { guard, servers, pair })
    }
}

/// Format a list for `--port`.
pub fn ports(range: RangeInclusive<u16>) -> String {
    range.map(|port| port.to_string()).collect::<Vec<_>>().join(",")
}

/// Servers, all behind one guard.
pub struct Stage {
    // Dropped in this order: the guard is unloaded in a namespace that still exists.
    pub guard: Guard,
    servers: Vec<(Library, Server)>,
    pub pair: Pair,
}

impl Stage {
    pub fn new(attach: &str, options: PairOptions) -> Result<Stage> {
        Open::new(options)?.guard(attach)
    }

    pub fn server(&self, library: Library) -> Result<&Server> {
        let found = self.servers.iter().find(|(of, _)| *of == library);
        found.map(|(_, server)| server).with_context(|| format!("no server on {}", library.name()))
    }

    /// Return the guard's row for the connection of `client`.
    pub fn flow(&self, client: SocketAddr) -> Result<Option<Flow>> {
        let flows: Vec<Flow> = self.guard.ask("flows")?;
        Ok(flows.into_iter().find(|flow| flow.client == client.to_string()))
    }

    /// Stop the servers, unload the guard, and check that nothing is left.
    pub fn finish(self) -> Result<()> {
        let Stage { pair, guard, servers } = self;
        servers.into_iter().try_for_each(|(_, server)| server.stop().map(drop))?;
        guard.finish()?;
        drop(pair);
        Ok(())
    }

    /// Run `attack` while an honest client talks to the same server.
    /// Its counts must be exact.
    pub fn with_honest_clients<T>(
        &self,
        library: Library,
        family: Family,
        n: u8,
        attack: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let options = ConnectOptions { source: Some(family.client(n)), ..Default::default() };
        let at = self.server(library)?.at(family.server());
        let mut client = Client::connect(&self.pair.client, at, options)?;
        let over = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let talking = scope.spawn(|| talk(&mut client, &over));
            let result = attack();
            over.store(true, Relaxed);
            let talked = talking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            talked.context(HONEST)?;
            Ok::<_, anyhow::Error>(result)
        })?;
        self.exact(&client).context(HONEST)?;
        client.close()?;
        result
    }

    /// Check that everything the client sent was answered and counted.
    pub fn exact(&self, client: &Client) -> Result<()> {
        let sent = client.sent();
        let answered = client.wait(WAIT, |r| r.messages == sent.messages && r.pongs == sent.pings);
        ensure!(answered, "{sent:?} was sent, {:?}", client.received());
        let flow = self.flow(client.local())?.context("it has no flow")?;
        let counts = (flow.frames_in, flow.pings_in, flow.defused);
        ensure!(counts == (sent.frames, sent.pings, 0), "{sent:?} was sent: {flow:?}");
        ensure!(flow.state == "open", "{flow:?}");
        Ok(())
    }
}

/// Send a message each 20 ms until it is over, and a ping with each of the first.
fn talk(client: &mut Client, over: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    let mut n = 0;
    while n < HONEST_PINGS || !over.load(Relaxed) {
        client.send(&[Frame::text(&format!("message {n}"))], &Cut::Whole)?;
        if n < HONEST_PINGS {
            client.send(&[Frame::ping(n.to_be_bytes())], &Cut::Whole)?;
        }
        n += 1;
        ensure!(start.elapsed() < Duration::from_secs(60), "the row does not end");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

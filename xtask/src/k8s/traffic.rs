//! Honest clients and a flooder, from outside the cluster.
use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    flood::{self, Bounds},
    honest::{self, Served},
    netns::Namespace,
};

use crate::interrupt;

/// Interval of each client's messages: clients are many, and the machine is busy.
const MESSAGE_EVERY: Duration = Duration::from_millis(500);
/// Pause between two writes of the flooder:
/// some ten thousand pings a second, if the server takes them.
const PAUSE: Duration = Duration::from_millis(40);

/// Results of all honest clients together.
#[derive(Debug, Default)]
pub struct Honest {
    pub clients: usize,
    pub pings: u64,
    pub unanswered: u64,
    pub messages: u64,
    pub lost: u64,
}

impl Honest {
    fn add(&mut self, served: &Served) {
        self.pings += served.pings;
        self.unanswered += served.pings - served.pongs.min(served.pings);
        self.messages += served.messages;
        self.lost += served.lost;
    }

    pub fn all_served(&self) -> bool {
        self.pings > 0 && self.unanswered == 0 && self.lost == 0
    }
}

impl std::fmt::Display for Honest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Honest { clients, pings, unanswered, messages, lost } = self;
        write!(
            f,
            "{clients} honest clients: {unanswered} of {pings} pings unanswered, {lost} of {messages} messages lost"
        )
    }
}

/// Results of a flooder that counts its answers, the only evidence of them outside.
#[derive(Debug)]
pub struct Flood {
    pub pings: u64,
    pub answered: u64,
}

pub fn connect(outside: &Namespace, to: SocketAddr, from: IpAddr) -> Result<Client> {
    let options = ConnectOptions { source: Some(from), ..ConnectOptions::default() };
    Client::connect(outside, to, options).with_context(|| format!("from {from} to {to}"))
}

/// Run honest clients and a flood for `time`.
pub fn mixed(clients: Clients, time: Duration) -> Result<(Honest, Flood)> {
    let end = Instant::now() + time;
    let (_, honest, flooded) = flood_during(clients, || {
        while Instant::now() < end {
            interrupt::check()?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })?;
    Ok((honest, flooded))
}

/// Connected clients: honest ones, and the one that will flood.
pub struct Clients {
    honest: Vec<Client>,
    flooder: Client,
}

/// Connect honest clients on these addresses, and a flooder.
pub fn flood_clients(
    outside: &Namespace,
    to: SocketAddr,
    honest: &[IpAddr],
    flooder: IpAddr,
) -> Result<Clients> {
    let honest = honest.iter().map(|from| connect(outside, to, *from)).collect::<Result<_>>()?;
    Ok(Clients { honest, flooder: connect(outside, to, flooder)? })
}

/// Connect honest clients in one pod and a flooder in another, by their addresses.
pub fn pod_clients(
    (honest, clients): (&Namespace, usize),
    flooder: &Namespace,
    [to, flooded]: [SocketAddr; 2],
) -> Result<Clients> {
    let from = |pod: &Namespace, to: SocketAddr| {
        let client = Client::connect(pod, to, ConnectOptions::default());
        client.with_context(|| format!("from a pod to {to}"))
    };
    let honest = (0..clients).map(|_| from(honest, to)).collect::<Result<_>>()?;
    Ok(Clients { honest, flooder: from(flooder, flooded)? })
}

/// Flood for as long as `during` takes, next to honest clients.
pub fn flood_during<T>(
    clients: Clients,
    during: impl FnOnce() -> Result<T>,
) -> Result<(T, Honest, Flood)> {
    let stop = AtomicBool::new(false);
    let go_on = || !stop.load(Relaxed) && !interrupt::stopped();
    let hours = Duration::from_secs(3600);
    let Clients { honest, mut flooder } = clients;
    thread::scope(|scope| {
        let served: Vec<_> = honest
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || honest::run_every(&mut client, MESSAGE_EVERY, hours, go_on))
            })
            .collect();
        let bounds = Bounds { pings: u64::MAX, time: hours, pause: PAUSE };
        let attack = scope.spawn(move || -> Result<Flood> {
            let flooded = flood::flood(&mut flooder, bounds, go_on)?;
            let answered = flooder.received().pongs;
            Ok(Flood { pings: flooded.pings, answered })
        });
        let done = during();
        stop.store(true, Relaxed);
        let flooded = attack.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let mut honest = Honest { clients: served.len(), ..Honest::default() };
        for thread in served {
            honest.add(&thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok((done?, honest, flooded))
    })
}

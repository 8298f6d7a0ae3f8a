//! The companion server, rolled while its clients talk to it.
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ws_guard_testkit::{client::Client, frame::Frame};

use super::{cluster::Cluster, stage::Stage, traffic::connect};
use crate::interrupt;

const PORT: u16 = 30083;
const CLIENTS: u8 = 20;
/// Pause between an echo and the next message.
const PAUSE: Duration = Duration::from_millis(20);
/// Time limit for an echo, or an end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Close code of a server about to restart (RFC 6455, 7.4.1, and its registry).
const SERVICE_RESTART: u16 = 1012;
/// Number of echoes for each client before the roll, and again after it.
const WARM: usize = 20;

/// Restart the Deployment under its clients:
/// each is closed with 1012, comes back, and repeats the one unacknowledged message; the echo is
/// the acknowledgement.
pub fn roll(stage: &mut Stage) -> Result<()> {
    expose(stage)?;
    let to = stage.cluster.port(PORT);
    let (stop, progress) = (AtomicBool::new(false), (0..CLIENTS).map(|_| AtomicUsize::new(0)));
    let progress: Vec<AtomicUsize> = progress.collect();
    let talks = thread::scope(|scope| {
        let cluster = &stage.cluster;
        let talks: Vec<_> = (0..CLIENTS)
            .zip(&progress)
            .map(|(n, echoes)| {
                let stop = &stop;
                scope.spawn(move || {
                    let talk = Talk { cluster, to, n, count: Count::default() };
                    talk.until(stop, echoes)
                })
            })
            .collect();
        let rolled = roll_between(stage, &progress);
        stop.store(true, Relaxed);
        let join = |talk: thread::ScopedJoinHandle<'_, Result<Count>>| {
            talk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let talks = talks.into_iter().map(join).collect::<Result<Vec<_>>>();
        // A client's error is more telling than the failed wait for the others.
        talks.and_then(|talks| rolled.map(|()| talks))
    })?;
    let sum = |of: fn(&Count) -> usize| talks.iter().map(of).sum::<usize>();
    let codes: Vec<u16> = talks.iter().flat_map(|talk| talk.codes.iter().copied()).collect();
    stage.say(&format!(
        "{CLIENTS} clients talking, {} attempts more; rolled: {} closed with {SERVICE_RESTART}, all came back, {} attempts more; {} messages, all acknowledged, {} of them when repeated",
        sum(|talk| talk.refused[0]),
        codes.len(),
        sum(|talk| talk.refused[1]),
        sum(|talk| talk.acknowledged),
        sum(|talk| talk.repeated),
    ));
    ensure!(codes.iter().all(|code| *code == SERVICE_RESTART), "they were closed with {codes:?}");
    let met = talks.iter().filter(|talk| !talk.codes.is_empty()).count();
    ensure!(met == usize::from(CLIENTS), "{met} of {CLIENTS} clients met the roll");
    Ok(())
}

/// Make a path from outside, which the chart does not have.
fn expose(stage: &Stage) -> Result<()> {
    let service = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "companion-outside", "namespace": "ws-guard"},
        "spec": {
            "type": "NodePort",
            "selector": {"app.kubernetes.io/component": "server"},
            "ports": [{"port": 8080, "nodePort": PORT}],
        },
    });
    stage.apply(&service.to_string())
}

fn roll_between(stage: &Stage, progress: &[AtomicUsize]) -> Result<()> {
    let talked = |more: usize, what: &str| {
        let until: Vec<usize> = progress.iter().map(|echoes| echoes.load(Relaxed) + more).collect();
        super::wait(what, PATIENCE * 2, || {
            Ok(progress.iter().zip(&until).all(|(echoes, until)| echoes.load(Relaxed) >= *until))
        })
    };
    talked(WARM, "all clients talk")?;
    stage.kubectl(&["-n", "ws-guard", "rollout", "restart", "deployment/ws-guard-server"])?;
    stage.rolled_out("ws-guard", "deployment/ws-guard-server")?;
    // The old pod goes on for its delay after the new one is ready.
    super::wait("the old pods are gone", PATIENCE * 2, || {
        let path = "jsonpath={.items[*].metadata.deletionTimestamp}";
        let label = "app.kubernetes.io/component=server";
        let leaving = stage.kubectl(&["-n", "ws-guard", "get", "pods", "-l", label, "-o", path])?;
        Ok(leaving.trim().is_empty())
    })?;
    talked(WARM, "all clients talk again").map(drop)
}

/// One client's conversation: each message waits for the echo of the last.
struct Talk<'a> {
    cluster: &'a Cluster,
    to: SocketAddr,
    n: u8,
    count: Count,
}

/// Events of a conversation.
#[derive(Default)]
struct Count {
    /// Close codes of its connections.
    codes: Vec<u16>,
    acknowledged: usize,
    /// Repeated messages, after a connection that ended before the echo.
    repeated: usize,
    /// Failed attempts to connect: before the nodes know the port, and after the roll.
    refused: [usize; 2],
}

impl Talk<'_> {
    fn until(mut self, stop: &AtomicBool, echoes: &AtomicUsize) -> Result<Count> {
        let mut client = self.served()?;
        let mut here = 0;
        let mut again = false;
        while !stop.load(Relaxed) {
            here += 1;
            match self.say(&mut client, here)? {
                None => {
                    self.count.acknowledged += 1;
                    self.count.repeated += usize::from(again);
                    again = false;
                    echoes.store(self.count.acknowledged, Relaxed);
                    thread::sleep(PAUSE);
                }
                Some(code) => {
                    self.count.codes.push(code);
                    client = self.served()?;
                    (here, again) = (0, true);
                }
            }
        }
        Ok(self.count)
    }

    /// Send the next message, number `here` on this connection;
    /// return the code if the server closed in its place.
    fn say(&self, client: &mut Client, here: u64) -> Result<Option<u16>> {
        let text = format!("message {} of client {}", self.count.acknowledged, self.n);
        // A server that has closed already takes nothing, and then its code is there.
        let _ = client.send_one(Frame::text(&text));
        client.wait(PATIENCE, |got| got.messages >= here || got.close.is_some() || got.ended);
        let received = client.received();
        if received.messages >= here {
            let echo = received.kept.back().map(|(_, echo)| echo.as_slice());
            ensure!(echo == Some(text.as_bytes()), "{text:?} came back as {echo:?}");
            return Ok(None);
        }
        match received.close {
            Some(code) => Ok(Some(code)),
            None if received.ended => bail!("client {}: ended without a close frame", self.n),
            None => bail!("client {}: no echo of {text:?}", self.n),
        }
    }

    /// Connect; retry if the pod is leaving, or refuses newcomers as its node is busy.
    fn served(&mut self) -> Result<Client> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            match connect(self.cluster.outside(), self.to, self.cluster.client(self.n)) {
                Ok(client) => return Ok(client),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error).context("not served again");
                }
                Err(error) => {
                    eprintln!("  client {}, again: {error:#}", self.n);
                    let rolled = !self.count.codes.is_empty();
                    self.count.refused[usize::from(rolled)] += 1;
                }
            }
            thread::sleep(Duration::from_millis(250));
        }
    }
}

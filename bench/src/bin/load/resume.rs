//! Clients of one server that all come back at once to others, with their tokens.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    task::LocalSet,
    time::{sleep, timeout},
};

use super::talk::{Protocol, Talk, percentile};

/// Clients of one address, as of a household: by their numbers, of which an address has 5,000.
const APART: usize = 80;
/// A client gives up an attempt after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon it tries again where it was not let in and not told when to come.
const AGAIN: Duration = Duration::from_millis(150);

#[derive(clap::Args)]
pub struct Args {
    /// The server that will end
    from: u16,
    /// Those that are left
    to: Vec<u16>,
    #[arg(long)]
    clients: usize,
    #[arg(long)]
    topics: usize,
}

#[derive(Default)]
struct Seen {
    /// When the first of them lost its connection.
    lost: OnceCell<Instant>,
    back: RefCell<Vec<f64>>,
    timed_out: Cell<u64>,
    refused: Cell<u64>,
    not_recovered: Cell<u64>,
    all: Notify,
}

pub async fn run(args: Args) -> Result<()> {
    LocalSet::new().run_until(measure(Rc::new(args))).await
}

async fn measure(args: Rc<Args>) -> Result<()> {
    let seen = Rc::new(Seen::default());
    for number in 0..args.clients {
        let mut talk = Talk::open(Protocol::WsGuard, args.from, number * APART, "").await?;
        let topic = format!("chat{}", number % args.topics);
        talk.subscribe(&topic).await?;
        talk.speaker.say(r#"{"type":"heartbeat","resume":true}"#).await?;
        let beat: Value = serde_json::from_slice(talk.hear().await?)?;
        let token = beat["resume"].as_str().context("no token")?.to_owned();
        let (args, seen) = (args.clone(), seen.clone());
        tokio::task::spawn_local(async move {
            while talk.hear().await.is_ok() {}
            drop(talk);
            let lost = *seen.lost.get_or_init(Instant::now);
            come_back(&args, number, &token, &seen).await;
            seen.back.borrow_mut().push(lost.elapsed().as_secs_f64() * 1000.0);
            if seen.back.borrow().len() == args.clients {
                seen.all.notify_one();
            }
            // It stays.
            std::future::pending::<()>().await;
        });
    }
    println!("ready");
    seen.all.notified().await;
    let mut back = seen.back.take();
    back.sort_unstable_by(f64::total_cmp);
    let [p50, p99, last] = [0.5, 0.99, 1.0].map(|part| percentile(&back, part));
    println!(
        "{}",
        json!({"clients": back.len(), "p50_ms": p50, "p99_ms": p99, "last_ms": last,
               "timed_out": seen.timed_out.get(), "refused": seen.refused.get(),
               "not_recovered": seen.not_recovered.get()})
    );
    // Until it is ended: what it has used is read from outside.
    std::future::pending().await
}

async fn come_back(args: &Args, number: usize, token: &str, seen: &Seen) {
    loop {
        let port = args.to[number % args.to.len()];
        match timeout(PATIENCE, resume(port, number, token)).await {
            Ok(Ok((talk, recovered))) => {
                let missed = seen.not_recovered.get() + u64::from(!recovered);
                seen.not_recovered.set(missed);
                // Held, as a client would.
                std::mem::forget(talk);
                return;
            }
            Ok(Err(_)) => seen.refused.set(seen.refused.get() + 1),
            Err(_) => seen.timed_out.set(seen.timed_out.get() + 1),
        }
        sleep(AGAIN).await;
    }
}

async fn resume(port: u16, number: usize, token: &str) -> Result<(Talk, bool)> {
    let query = format!("?resume={token}");
    let mut talk = Talk::open(Protocol::WsGuard, port, number * APART, &query).await?;
    let resumed: Value = serde_json::from_slice(talk.hear().await?)?;
    ensure!(resumed["type"] == "resumed", "{resumed}");
    let subscribed: Value = serde_json::from_slice(talk.hear().await?)?;
    Ok((talk, subscribed["recovered"] == true))
}

//! Fan-out: publications on many topics, and how long they take to each subscriber.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::json;
use tokio::{
    sync::Semaphore,
    task::LocalSet,
    time::{MissedTickBehavior, interval_at, sleep},
};

use super::talk::{Heard, Protocol, Talk, percentile};

/// Connections that publish.
const PUBLISHERS: usize = 30;
/// What follows the time in a publication.
const PADDING: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const WARM_UP: Duration = Duration::from_secs(1);
/// For what is on its way at the end.
const REST: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Args {
    protocol: Protocol,
    /// Of the servers, over which clients and publishers are spread
    ports: Vec<u16>,
    #[arg(long)]
    clients: usize,
    #[arg(long)]
    topics: usize,
    /// Publications a second; 0: as many as are answered, with `--window` under way
    #[arg(long)]
    rate: f64,
    /// Unanswered publications of each publisher
    #[arg(long, default_value_t = 4)]
    window: usize,
    #[arg(long)]
    seconds: f64,
}

#[derive(Default)]
struct Seen {
    counts: Cell<bool>,
    published: Cell<u64>,
    delivered: Cell<u64>,
    milliseconds: RefCell<Vec<f64>>,
}

pub async fn run(args: Args) -> Result<()> {
    LocalSet::new().run_until(measure(Rc::new(args))).await
}

fn spawn(task: impl Future<Output = Result<()>> + 'static) {
    tokio::task::spawn_local(async move {
        if let Err(error) = task.await {
            eprintln!("{error:#}");
            std::process::exit(1);
        }
    });
}

async fn measure(args: Rc<Args>) -> Result<()> {
    let (begun, seen) = (Instant::now(), Rc::new(Seen::default()));
    for number in 0..args.clients {
        // Each topic has its subscribers on all servers.
        let port = args.ports[number / args.topics % args.ports.len()];
        let mut talk = Talk::open(args.protocol, port, number, "").await?;
        let topic = format!("chat{}", number % args.topics);
        talk.subscribe(&topic).await?;
        spawn(follow(args.protocol, talk, begun, seen.clone()));
    }
    let mut publishers = Vec::new();
    for number in 0..PUBLISHERS {
        let port = args.ports[number % args.ports.len()];
        let mut talk = Talk::open(args.protocol, port, number, "").await?;
        if args.protocol == Protocol::Sockudo {
            // What a client publishes on, it has to be subscribed to; it does not get its own.
            for topic in (number..args.topics).step_by(PUBLISHERS) {
                talk.subscribe(&format!("chat{topic}")).await?;
            }
        }
        publishers.push(talk);
    }
    // Together, however long each took to connect: publications are evenly apart then.
    let start = Instant::now();
    for (number, talk) in publishers.into_iter().enumerate() {
        publish(&args, talk, number, [begun, start], &seen);
    }
    sleep(WARM_UP).await;
    seen.counts.set(true);
    println!("started");
    let start = Instant::now();
    sleep(Duration::from_secs_f64(args.seconds)).await;
    let seconds = start.elapsed().as_secs_f64();
    println!("ended");
    seen.counts.set(false);
    let (published, delivered) = (seen.published.get(), seen.delivered.get());
    sleep(REST).await;
    let mut times = seen.milliseconds.take();
    times.sort_unstable_by(f64::total_cmp);
    let [p50, p99] = [0.5, 0.99].map(|part| percentile(&times, part));
    println!(
        "{}",
        json!({"published": published, "delivered": delivered, "seconds": seconds,
               "p50_ms": p50, "p99_ms": p99})
    );
    Ok(())
}

async fn follow(protocol: Protocol, mut talk: Talk, begun: Instant, seen: Rc<Seen>) -> Result<()> {
    loop {
        let text = talk.hear().await?;
        if protocol.is_message(text) && seen.counts.get() {
            let now = begun.elapsed().as_micros() as u64;
            let sent = sent_at(text);
            seen.delivered.set(seen.delivered.get() + 1);
            seen.milliseconds.borrow_mut().push(now.saturating_sub(sent) as f64 / 1000.0);
        }
    }
}

/// The time in a publication, in microseconds.
fn sent_at(text: &[u8]) -> u64 {
    let at = text.windows(4).rposition(|window| window == b"\"t\":").unwrap_or(0) + 4;
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Publish on all topics in turn.
fn publish(
    args: &Rc<Args>,
    talk: Talk,
    number: usize,
    [begun, start]: [Instant; 2],
    seen: &Rc<Seen>,
) {
    let protocol = args.protocol;
    let Talk { mut speaker, mut hearer, .. } = talk;
    let window = if args.rate > 0.0 { Semaphore::MAX_PERMITS } else { args.window };
    let free = Rc::new(Semaphore::new(window));
    let (freed, seen, sent) = (free.clone(), seen.clone(), seen.clone());
    spawn(async move {
        loop {
            // A publisher is pinged less often than it is measured for.
            if let Heard::Text(text) = hearer.hear().await?
                && protocol.is_done(text)
            {
                seen.published.set(seen.published.get() + u64::from(seen.counts.get()));
                freed.add_permits(usize::from(window < Semaphore::MAX_PERMITS));
            }
        }
    });
    let args = args.clone();
    // Under the same load, what nothing answers counts once it is sent.
    let unanswered = protocol.question().is_some() && args.rate > 0.0;
    spawn(async move {
        let each = if args.rate > 0.0 { PUBLISHERS as f64 / args.rate } else { 1.0 };
        let first = start + Duration::from_secs_f64(each * number as f64 / PUBLISHERS as f64);
        let mut ticks = interval_at(first.into(), Duration::from_secs_f64(each));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for turn in 0.. {
            if args.rate > 0.0 {
                ticks.tick().await;
            } else {
                free.acquire().await?.forget();
            }
            let topic = format!("chat{}", (turn * PUBLISHERS + number) % args.topics);
            let now = begun.elapsed().as_micros();
            let data = format!(r#"{{"pad":"{PADDING}","t":{now}}}"#);
            speaker.say(&protocol.publish(&topic, &data, turn as u64)).await?;
            if unanswered {
                sent.published.set(sent.published.get() + u64::from(sent.counts.get()));
            } else if let Some(question) = protocol.question() {
                speaker.say(question).await?;
            }
        }
        Ok(())
    });
}

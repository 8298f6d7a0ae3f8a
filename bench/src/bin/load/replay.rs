//! Replays: clients that all missed the same history, one after another.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::talk::{Protocol, Talk, percentile};

#[derive(clap::Args)]
pub struct Args {
    port: u16,
    #[arg(long)]
    clients: usize,
    /// In the history
    #[arg(long)]
    messages: usize,
}

pub async fn run(args: Args) -> Result<()> {
    let mut writer = Talk::open(Protocol::WsGuard, args.port, 0, "").await?;
    let begun = writer.subscribe("chat").await?;
    let begun: Value = serde_json::from_slice(begun)?;
    let epoch = begun["epoch"].as_str().context("no history")?.to_owned();
    for number in 0..args.messages {
        let data = format!(r#"{{"number":{number},"text":"{}"}}"#, "x".repeat(64));
        let publish = Protocol::WsGuard.publish("chat", &data, 1);
        writer.ask(&publish).await?;
    }
    let since = json!({"type": "subscribe", "topic": "chat",
                       "since": {"epoch": epoch, "offset": begun["offset"]}, "id": 1});
    let (mut times, start) = (Vec::new(), Instant::now());
    for number in 0..args.clients {
        let mut talk = Talk::open(Protocol::WsGuard, args.port, number, "").await?;
        let asked = Instant::now();
        let answer = talk.ask(&since.to_string()).await?;
        let answer: Value = serde_json::from_slice(answer)?;
        ensure!(answer["recovered"] == true, "{answer}");
        for _ in 0..args.messages {
            ensure!(Protocol::WsGuard.is_message(talk.hear().await?), "something else came");
        }
        times.push(asked.elapsed().as_secs_f64() * 1000.0);
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable_by(f64::total_cmp);
    let [p50, p99] = [0.5, 0.99].map(|part| percentile(&times, part));
    let messages = args.clients * args.messages;
    println!("{}", json!({"messages": messages, "seconds": seconds, "p50_ms": p50, "p99_ms": p99}));
    Ok(())
}

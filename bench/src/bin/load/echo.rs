//! Echo: so many messages on their way at a time, on each of some connections.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::LocalSet,
    time::timeout,
};

use super::connect::{frame, header, tcp, upgrade};

const BINARY: u8 = 2;
/// Nothing counts before servers and allocators have their buffers.
const WARM_UP: Duration = Duration::from_millis(300);

#[derive(clap::Args)]
pub struct Args {
    port: u16,
    /// Bytes of a message
    #[arg(long)]
    payload: usize,
    /// Messages on their way on each connection
    #[arg(long)]
    window: usize,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long)]
    seconds: f64,
}

pub async fn run(args: Args) -> Result<()> {
    let counted = Rc::new(Cell::new(0u64));
    let tasks = LocalSet::new();
    for number in 0..args.connections {
        let connection = echo(args.port, number, args.payload, args.window, counted.clone());
        tasks.spawn_local(async move {
            if let Err(error) = connection.await {
                eprintln!("{error:#}");
                std::process::exit(1);
            }
        });
    }
    let measured = tasks.run_until(async {
        tokio::time::sleep(WARM_UP).await;
        let (before, start) = (counted.get(), Instant::now());
        println!("started");
        tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
        (counted.get() - before, start.elapsed())
    });
    let (messages, time) = measured.await;
    ensure!(messages > 0, "no message came back");
    println!("{}", json!({"messages": messages, "seconds": time.as_secs_f64()}));
    Ok(())
}

async fn echo(
    port: u16,
    number: usize,
    payload: usize,
    window: usize,
    counted: Rc<Cell<u64>>,
) -> Result<()> {
    let mut stream = tcp(port, number).await?;
    upgrade(&mut stream, "").await?;
    let payload: Vec<u8> = (0..payload).map(|i| i as u8).collect();
    let message = frame(BINARY, &payload);
    let burst = message.repeat(window);
    // The first answer is compared, the others are counted.
    let mut answer = header(BINARY, payload.len(), 0);
    answer.extend(&payload);
    stream.write_all(&message).await?;
    let mut first = vec![0; answer.len()];
    timeout(Duration::from_secs(5), stream.read_exact(&mut first)).await.context("no answer")??;
    ensure!(first == answer, "that is no echo");

    stream.write_all(&burst).await?;
    let mut buffer = vec![0; (answer.len() * window).clamp(4096, 1 << 20)];
    let mut rest = 0;
    loop {
        let n = stream.read(&mut buffer).await?;
        ensure!(n > 0, "the server closed the connection");
        let whole = (rest + n) / answer.len();
        rest = (rest + n) % answer.len();
        counted.set(counted.get() + whole as u64);
        let again = burst.get(..whole * message.len()).context("more answers than messages")?;
        stream.write_all(again).await?;
    }
}

//! `run --listen`: the companion server inside the daemon, behind the daemon's own guard.
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Pair, PairOptions},
};

use crate::{
    process::Guard,
    stage::{Flow, PORT, WAIT},
    talk::{pings, round_trip},
};

/// Connect, also to a server that was just late and lets nobody in for a second.
fn connect(pair: &Pair, server: SocketAddr) -> Result<Client> {
    let start = Instant::now();
    loop {
        match Client::connect(&pair.client, server, ConnectOptions::default()) {
            Err(_) if start.elapsed() < WAIT => std::thread::sleep(Duration::from_millis(200)),
            connected => return connected,
        }
    }
}

#[test]
fn it_serves_and_follows_the_policy() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let words = format!("--port {PORT} --listen [::]:{PORT} --access-log /dev/null");
    let guard = Guard::start(&pair.server, &format!("{words} --action observe"))?;
    for family in Family::BOTH {
        let server = (family.server(), PORT).into();
        let mut client = connect(&pair, server)?;
        client.send(&pings(0, 20), &Cut::Whole)?;
        round_trip(&mut client, "echo")?;
        ensure!(client.received().pongs == 20, "{} pongs", client.received().pongs);
        let flows: Vec<Flow> = guard.ask("flows")?;
        let flow = flows.iter().find(|flow| flow.client == client.local().to_string());
        ensure!(flow.is_some_and(|f| (f.pings_in, f.pongs_out) == (20, 20)), "{flows:?}");
        client.close()?;
    }
    // The guard only observes: what is not answered is what the server itself does not answer.
    guard.run("policy set --max-ping-rate 25 --window-seconds 600")?;
    std::thread::sleep(Duration::from_millis(1500));
    let server = (Family::V4.server(), PORT).into();
    let mut client = connect(&pair, server)?;
    client.send(&pings(0, 20), &Cut::Whole)?;
    round_trip(&mut client, "echo")?;
    ensure!(client.received().pongs == 5, "{} pongs", client.received().pongs);
    client.send_one(Frame::text("still open"))?;
    client.close()?;
    guard.finish()
}

//! `run --listen`: the companion server inside the daemon, behind the daemon's own guard.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    netns::{Family, Pair, PairOptions},
};

use crate::{
    process::Guard,
    stage::{Flow, PORT},
    talk::{pings, round_trip},
};

#[test]
fn it_serves_and_follows_the_policy() -> Result<()> {
    needs_root!();
    let pair = Pair::new(PairOptions::default())?;
    let words = format!("--port {PORT} --listen [::]:{PORT} --access-log /dev/null");
    let guard = Guard::start(&pair.server, &format!("{words} --action observe"))?;
    for family in Family::BOTH {
        let server = (family.server(), PORT).into();
        let connect = || Client::connect(&pair.client, server, ConnectOptions::default());
        let mut client = connect()?;
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
    let mut client = Client::connect(&pair.client, server, ConnectOptions::default())?;
    client.send(&pings(0, 20), &Cut::Whole)?;
    round_trip(&mut client, "echo")?;
    ensure!(client.received().pongs == 5, "{} pongs", client.received().pongs);
    client.send_one(Frame::text("still open"))?;
    client.close()?;
    guard.finish()
}

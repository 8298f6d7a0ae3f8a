//! One direction of an interface lost while connections are open:
//! the server's bytes meanwhile are unseen, and its clients acknowledge them.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    frame::Frame,
    netns::{Family, PairOptions},
    node::Node,
    servers::{Library, Server},
};

use crate::{
    guard::{Guard, PORT, eventually},
    inspection::remove,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Send a message, and wait until the server has echoed `all` of them.
fn says(client: &mut Client, all: u64) -> Result<()> {
    client.send_one(Frame::text("some text"))?;
    ensure!(client.wait(PATIENCE, |got| got.messages == all), "message {all} has no echo");
    Ok(())
}

fn survives(attach: &str, direction: &str, again: bool) -> Result<()> {
    let node = Node::new(1, PairOptions::default())?;
    let server = Server::start(&node.pods[0].namespace, Library::TokioTungstenite, PORT, None)?;
    let words = format!("--interface veth0 --attach {attach} --reattach={again}");
    let guard = Guard::start(node.namespace(), &words)?;
    let at = SocketAddr::new(node.pods[0].address(Family::V4), PORT);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(Client::connect(&node.pair.client, at, ConnectOptions::default())?);
    }
    let [client, silent] = &mut open[..] else { unreachable!() };
    says(client, 1)?;
    says(silent, 1)?;

    ensure!(remove(&guard, "links", direction)? == 1, "more than one link of {direction}");
    says(client, 2).context("unseen in one direction")?;
    says(client, 3).context("its acknowledgement")?;
    // This client acknowledges it only after the interface is guarded again.
    says(silent, 2)?;
    let end = if again { "is reattached" } else { "it is not reattached" };
    eventually(end, || Ok(guard.log().contains(end)))?;
    for n in 1..=20 {
        says(client, 3 + n)?;
        says(silent, 2 + n)?;
    }
    says(&mut Client::connect(&node.pair.client, at, ConnectOptions::default())?, 1)
        .context("a new connection")?;
    if again {
        let flows = guard.ask("flows")?;
        let open = flows
            .as_array()
            .map_or(0, |rows| rows.iter().filter(|row| row["state"] == "open").count());
        ensure!(open == 2, "{open} connections are followed again: {flows}");
    } else {
        ensure!(guard.attached()? == 0, "a direction is still attached");
    }
    drop(open);
    server.stop()?;
    guard.finish()
}

#[test]
fn open_connections_survive_the_loss_of_egress() -> Result<()> {
    needs_root!();
    for attach in ["tcx", "xdp-generic"] {
        for again in [true, false] {
            survives(attach, "-out-", again).with_context(|| format!("{attach}, {again}"))?;
        }
    }
    Ok(())
}

#[test]
fn open_connections_survive_the_loss_of_ingress() -> Result<()> {
    needs_root!();
    for again in [true, false] {
        survives("tcx", "-in-", again).with_context(|| format!("again: {again}"))?;
    }
    Ok(())
}

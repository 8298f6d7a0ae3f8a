//! Fragments without a segment for a protected port pass.
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    stage::{PORT, Stage},
    talk::pattern,
};

/// Length of a datagram in bytes: six fragments.
const DATAGRAM: usize = 8000;
const DATAGRAMS: u64 = 20;

/// Send datagrams from the client, each returned by the server.
fn there_and_back(stage: &Stage, family: Family) -> Result<()> {
    let bind = |address: SocketAddr| {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok::<UdpSocket, std::io::Error>(socket)
    };
    // The protected port's number, but UDP's.
    let at = SocketAddr::new(family.server(), PORT);
    let server = stage.pair.server.run(|| bind(at))??;
    let client = stage.pair.client.run(|| bind(SocketAddr::new(family.client(0), 0)))??;
    let mut buffer = vec![0; DATAGRAM];
    for n in 0..DATAGRAMS {
        let datagram = pattern(DATAGRAM, n);
        client.send_to(&datagram, at)?;
        let (length, from) = server.recv_from(&mut buffer).context("at the server")?;
        server.send_to(&buffer[..length], from)?;
        let (length, _) = client.recv_from(&mut buffer).context("at the client")?;
        ensure!(buffer[..length] == datagram, "datagram {n} has changed");
    }
    Ok(())
}

#[test]
fn fragments_of_datagrams_pass() -> Result<()> {
    needs_root!();
    for mode in ["xdp-native", "xdp-generic", "tcx"] {
        let options = PairOptions { offloads: false, ..PairOptions::default() };
        let stage = Stage::new(Library::Gorilla, options, &format!("--attach {mode}"))?;
        for family in Family::BOTH {
            there_and_back(&stage, family).with_context(|| format!("{mode} {family:?}"))?;
        }
        let status: serde_json::Value = stage.guard.ask("status")?;
        ensure!(status["packets"]["dropped"] == 0, "{mode}: {status}");
        // Each datagram arrived as six packets.
        let seen = status["packets"]["seen"].as_u64().context("no count")?;
        ensure!(seen >= 2 * DATAGRAMS * 6, "{mode}: {seen} packets seen");
        stage.finish_one()?;
    }
    Ok(())
}

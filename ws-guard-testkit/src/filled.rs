//! Pinned tables with any number of entries for tests and benchmarks.
use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use ws_guard_common::{
    flow::{Flow, state},
    maps::{Account, Address, Client, FlowKey, SourceKey, name},
    source::Source,
};

use crate::programs::Raw;

/// Address of the first client.
const FIRST: u32 = u32::from_be_bytes([100, 64, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 255, 1);

/// Return a client's address by its number.
pub fn client(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + n)
}

fn address(address: Ipv4Addr) -> Address {
    std::net::IpAddr::from(address).into()
}

fn table<K: Pod, V: Pod>(pin_dir: &Path, name: &str) -> Result<HashMap<MapData, K, V>> {
    let path = pin_dir.join(name);
    let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    HashMap::try_from(aya::maps::Map::HashMap(map)).context("not a hash table")
}

/// Write sources that sent some pings, for these clients.
pub fn sources(pin_dir: &Path, clients: std::ops::Range<u32>) -> Result<()> {
    let mut table = table::<Raw<SourceKey>, Raw<Source>>(pin_dir, name::SOURCES)?;
    for n in clients {
        let key = SourceKey { address: address(client(n)), scope: 0 };
        let pings_total = u64::from(n % 1000 + 1);
        let source = Source { pings_total, last_ping: 1_000_000_000, ..Source::default() };
        table.insert(Raw(key), Raw(source), 0).context("adding a source")?;
    }
    Ok(())
}

/// Write open connections of these clients, one each, silent and without an end.
pub fn flows(pin_dir: &Path, port: u16, clients: std::ops::Range<u32>) -> Result<()> {
    let mut table = table::<Raw<FlowKey>, Raw<Flow>>(pin_dir, name::FLOWS)?;
    for n in clients {
        let key = FlowKey {
            client: address(client(n)),
            server: address(SERVER),
            client_port: 40_000u16.to_be(),
            server_port: port.to_be(),
        };
        let source = SourceKey { address: key.client, scope: 0 };
        let account = Account { client: Client::of_peer(&key.client), source };
        let heartbeat_rtt_us = 500 + n % 1000;
        let flow = Flow { state: state::OPEN, account, heartbeat_rtt_us, ..Flow::default() };
        table.insert(Raw(key), Raw(flow), 0).context("adding a flow")?;
    }
    Ok(())
}

//! Figures by server, each summed over all CPUs.
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use ws_guard_common::maps::{Server, ServerKey, name};

use super::{error::GuardError, plain::Raw};

type Table = PerCpuHashMap<MapData, Raw<ServerKey>, Raw<Server>>;

/// Tables [`name::SERVERS`] and [`name::OTHERS`].
pub struct ServerMaps {
    /// Locked, as aya requires `&mut` for a removal.
    servers: Mutex<Table>,
    others: PerCpuArray<MapData, Raw<Server>>,
}

impl ServerMaps {
    pub fn open(dir: &Path) -> Result<Self, GuardError> {
        let pinned = |name: &str| MapData::from_pin(dir.join(name));
        let incompatible = |name: &'static str| {
            move |error: MapError| GuardError::Incompatible(dir.into(), format!("{name}: {error}"))
        };
        let servers = pinned(name::SERVERS)
            .and_then(|map| Table::try_from(Map::PerCpuHashMap(map)))
            .map_err(incompatible(name::SERVERS))?;
        let others = pinned(name::OTHERS)
            .and_then(|map| PerCpuArray::try_from(Map::PerCpuArray(map)))
            .map_err(incompatible(name::OTHERS))?;
        Ok(ServerMaps { servers: Mutex::new(servers), others })
    }

    /// Return figures of servers, in order of their addresses.
    pub fn servers(&self) -> Result<Vec<(ServerKey, Server)>, GuardError> {
        let table = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut servers = Vec::new();
        for key in table.keys() {
            let key = key.map_err(error(name::SERVERS, "iteration"))?;
            match table.get(&key, 0) {
                Ok(values) => servers.push((key.0, sum(&values))),
                Err(MapError::KeyNotFound) => {}
                Err(failed) => return Err(error(name::SERVERS, "look-up")(failed)),
            }
        }
        servers.sort_by_key(|(key, _)| *key);
        // An iteration restarts if an entry is removed meanwhile.
        servers.dedup_by_key(|(key, _)| *key);
        Ok(servers)
    }

    /// Return figures of all other servers together.
    pub fn others(&self) -> Result<Server, GuardError> {
        let values = self.others.get(&0, 0).map_err(error(name::OTHERS, "look-up"))?;
        Ok(sum(&values))
    }

    /// Forget a server's figures.
    pub fn remove(&self, key: &ServerKey) -> Result<(), GuardError> {
        let mut table = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        match table.remove(&Raw(*key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(failed))
                if failed.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(failed) => Err(error(name::SERVERS, "removal")(failed)),
        }
    }
}

fn sum(values: &PerCpuValues<Raw<Server>>) -> Server {
    values.iter().fold(Server::default(), |mut sum, Raw(one)| {
        sum.add(one);
        sum
    })
}

fn error(map: &'static str, operation: &'static str) -> impl FnOnce(MapError) -> GuardError {
    move |error| GuardError::Map { map, operation, source: std::io::Error::other(error) }
}

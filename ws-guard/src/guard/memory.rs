//! Kernel memory of the pinned maps, as reported by the kernel.
use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd},
};

use aya::maps::MapData;

use super::{
    error::GuardError,
    layout::{Found, LAYOUTS, Layout, NO_PREALLOC},
    pins::Pins,
};

/// Overhead of the kernel's hash tables per entry, and per bucket.
const ENTRY: u64 = 48;
const BUCKET: u64 = 16;

/// Memory of all pinned maps in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Current memory. Before Linux 6.4 the kernel reports an estimate of full tables.
    pub now: u64,
    /// Memory when the growing tables are full.
    pub full: u64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB now, {:.1} MiB when full", mib(self.now), mib(self.full))
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Memory>>(all: I) -> Memory {
        let add =
            |sum: Memory, one: Memory| Memory { now: sum.now + one.now, full: sum.full + one.full };
        all.fold(Memory::default(), add)
    }
}

/// Memory of one pinned map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapMemory {
    pub map: &'static str,
    pub memory: Memory,
}

impl fmt::Display for MapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { now, full } = self.memory;
        write!(f, "{} {:.1}", self.map, mib(now))?;
        if full > now { write!(f, " of {:.1}", mib(full)) } else { Ok(()) }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Read each map's memory from the kernel.
pub fn of_pins(pins: &Pins) -> Result<Vec<MapMemory>, GuardError> {
    let mut maps = Vec::new();
    for layout in &LAYOUTS {
        let Some(found) = pins.found(layout)? else { continue };
        let path = pins.map(layout.name);
        let failed = |source| GuardError::Map {
            map: layout.name,
            operation: "asking for its memory",
            source,
        };
        let map = MapData::from_pin(&path).map_err(|error| failed(io::Error::other(error)))?;
        let now = charged(&map).map_err(failed)?;
        let full = if found.flags & NO_PREALLOC == 0 { now } else { now.max(full(layout, &found)) };
        maps.push(MapMemory { map: layout.name, memory: Memory { now, full } });
    }
    Ok(maps)
}

/// Return the size of a growing table when it is full.
fn full(layout: &Layout, found: &Found) -> u64 {
    let entry = layout.key.next_multiple_of(8) + layout.value.next_multiple_of(8);
    let (entries, buckets) =
        (u64::from(found.entries), u64::from(found.entries.next_power_of_two()));
    entries * (entry as u64 + ENTRY) + buckets * BUCKET
}

/// Read `memlock` of `/proc/self/fdinfo`.
fn charged(map: &MapData) -> io::Result<u64> {
    let fd = map.fd().as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes = line.and_then(|bytes| bytes.trim().parse().ok());
    bytes.ok_or_else(|| io::Error::other("the kernel does not tell"))
}

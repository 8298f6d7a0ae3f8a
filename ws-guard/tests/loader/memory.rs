//! Memory of the tables: little at the start, and more with their use.
use anyhow::{Context, Result, ensure};
use aya::{
    maps::{HashMap, MapData, MapInfo},
    util::KernelVersion,
};
use ws_guard::guard::{Guard, LoadOptions, Memory, TableSizes};
use ws_guard_common::{
    maps::{Address, FlowKey, SourceKey, name},
    source::Source,
};
use ws_guard_testkit::programs::Raw;

use crate::PinDir;

/// Default of `--max-flows` and `--max-sources`.
const DEFAULT: u32 = 32_768;
const MOST: u64 = 34 << 20;
const ENTRIES: u32 = 1000;

#[test]
fn tables_start_small_and_grow() -> Result<()> {
    needs_root!();
    if KernelVersion::current()? < KernelVersion::new(6, 4, 0) {
        println!("skipped: before Linux 6.4 the kernel does not tell what a table uses");
        return Ok(());
    }
    let pins = PinDir::new();
    let sizes = TableSizes::new(DEFAULT, DEFAULT);
    let guard = Guard::load(&LoadOptions { sizes, ..pins.options() })?;
    let maps = guard.maps();
    let start = maps.memory()?;
    println!("{start}");
    documented(&pins)?;
    ensure!(start.now <= MOST, "the tables begin with {start}");

    let map = MapData::from_pin(pins.0.join(name::SOURCES))?;
    let mut sources: HashMap<_, Raw<SourceKey>, Raw<Source>> =
        HashMap::try_from(aya::maps::Map::HashMap(map))?;
    let key = |n: u32| Raw(SourceKey { address: Address([n; 4]), scope: 0 });
    for n in 0..ENTRIES {
        sources.insert(key(n), Raw(Source::default()), 0)?;
    }
    let Memory { now, full } = maps.memory()?;
    let each = (now - start.now) / u64::from(ENTRIES);
    ensure!((384..512).contains(&each), "{each} bytes a source");
    let grew = maps.memory_by_map()?.into_iter().find(|map| map.map == name::SOURCES);
    let grew = grew.context("no figure for SOURCES")?.memory;
    let expected = u64::from(DEFAULT) * 472;
    ensure!(grew.full == expected, "SOURCES: {grew:?}, not {expected} bytes when full");
    ensure!(grew.now > u64::from(ENTRIES) * each, "SOURCES: {grew:?}, of {now} bytes in all");
    ensure!(full == start.full, "{full} bytes when full, and {} before", start.full);
    for n in 0..ENTRIES {
        sources.remove(&key(n))?;
    }
    ensure!(maps.memory()? == start, "removed entries cost nothing: {}", maps.memory()?);
    Ok(())
}

/// Check keys and values against the documentation's table.
/// A row may describe several maps.
fn documented(pins: &PinDir) -> Result<()> {
    let page = include_str!("../../../docs/architecture.md");
    let numbers = |cell: &str| -> Vec<u32> {
        let parts = cell.split(", ").map(|part| part.trim().replace(',', ""));
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    let mut found = 0;
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').collect();
        let names = cells[1].split(", ").map(|name| name.trim().trim_matches('`'));
        for (at, name) in names.enumerate().filter(|(_, name)| pins.0.join(name).exists()) {
            let info = MapData::from_pin(pins.0.join(name))?.info()?;
            for (cell, size) in [(3, info.key_size()), (4, info.value_size())] {
                let told = numbers(cells.get(cell).context("a row is too short")?);
                let told = told.get(at).or(told.last()).copied().unwrap_or(0);
                ensure!(told == size, "{name} has {size} bytes, and the table says {told}: {row}");
            }
            found += 1;
        }
    }
    ensure!(found >= 20, "the table has {found} of the maps");
    Ok(())
}

/// Sizes that depend on the operator's.
#[test]
fn tables_of_openings_follow_the_flows() -> Result<()> {
    needs_root!();
    let pins = PinDir::new();
    let sizes = TableSizes::new(65_536, 1024);
    drop(Guard::load(&LoadOptions { sizes, ..pins.options() })?);
    for map in [name::PROVEN, name::BEGINNINGS, name::MIDSTREAM, name::HEARTBEATS] {
        let info = MapInfo::from_pin(pins.0.join(map)).with_context(|| map.to_owned())?;
        assert_eq!(info.max_entries(), 12_288, "{map}");
    }
    let flows = MapInfo::from_pin(pins.0.join(name::FLOWS))?;
    assert_eq!((flows.max_entries(), flows.key_size()), (65_536, size_of::<FlowKey>() as u32));
    Ok(())
}

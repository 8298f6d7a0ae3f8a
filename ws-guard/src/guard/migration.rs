//! Takeover of pins of an earlier schema.
//!
//! Maps whose layout did not change are shared, as in any takeover: their entries stay, and old and
//! new programs use them together until the last link has the new program. Each of the others gets
//! a successor, pinned as `NAME-next`; [`CHANGES`] defines whether the old entries are read into
//! it. Once all successors are complete, they are renamed over their predecessors: between the two
//! schema notes [`finish`] can repeat that, so that a daemon may die at any moment.
//!
//! A change of a layout raises [`SCHEMA_VERSION`], and sets `since` in [`CHANGES`]. A new
//! [`OLDEST`] makes rows and readers obsolete.
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use ws_guard_common::{
    maps::{Counters, FlowKey, SCHEMA_VERSION, name},
    out_of_order::{Held, Look, RANGES, Range, SLOTS},
    pages::{self, Page, Pages, is_lent, place},
};

use super::{
    error::GuardError,
    layout::LAYOUTS,
    pins::{self, NEXT, Pins},
    plain::{Plain, Raw},
};

/// Oldest schema whose pins are taken over.
const OLDEST: u32 = 9;

/// Map whose layout, or its meaning, has changed since [`OLDEST`].
struct Change {
    map: &'static str,
    /// First schema whose entries have the present layout and meaning.
    since: u32,
    entries: Entries,
}

/// Treatment of the old map's entries.
#[derive(Clone, Copy)]
enum Entries {
    /// Entries that last for a handshake or a heartbeat are dropped.
    /// The successor starts empty: requests in progress count as unseen, and pings that wait for their
    /// pongs are not measured.
    Dropped,
    Read(Reader),
}

/// Conversion of the old map's entries into its successor's, in the present layout.
type Reader = fn(pins: &Pins, old: &Map, new: &mut Map) -> Result<(), MapError>;

/// Maps changed since [`OLDEST`].
/// Schema 12 has further maps, which start empty, and shares all earlier ones. In [`name::FLOWS`] a
/// ping's time has been replaced by [`ws_guard_common::flow::Flow::ended`], which no such time
/// equals, and by `server_ms`, which the server's next segment sets; in [`name::COUNTERS`] the
/// heartbeats of all servers together remain unread. [`name::MIDSTREAM`] is new, and replaces
/// `STRANGERS`. Schema 15 has traces in [`name::FLOWS`] where checkpoints were:
/// [`ws_guard_common::flow::Flow::adopt`].
const CHANGES: [Change; 8] = [
    Change { map: name::PENDING, since: 11, entries: Entries::Dropped },
    Change { map: name::PROVEN, since: 11, entries: Entries::Dropped },
    Change { map: name::BEGINNINGS, since: 13, entries: Entries::Dropped },
    Change { map: name::SYNS, since: 13, entries: Entries::Dropped },
    Change { map: name::COUNTERS, since: 10, entries: Entries::Read(counters_of_9) },
    Change { map: name::HEARTBEATS, since: 14, entries: Entries::Dropped },
    // With one row for each of its earlier layouts.
    Change { map: name::HELD, since: 13, entries: Entries::Read(held_of_12) },
    Change { map: name::HELD, since: 15, entries: Entries::Read(held_of_14) },
];

/// Maps of earlier schemas without a successor.
pub const REMOVED: [&str; 1] = ["STRANGERS"];

/// Takeover of an earlier schema's pins.
pub struct Migration {
    from: u32,
    replaced: Vec<Replaced>,
}

struct Replaced {
    name: &'static str,
    entries: Entries,
    /// Old map, kept open because the successor takes its pin.
    old: Map,
}

impl Migration {
    /// Plan the takeover that the pins need; `None` without pins, or of this schema.
    ///
    /// # Errors
    /// [`GuardError::Incompatible`] for schemas and maps that cannot be taken over.
    pub fn plan(pins: &Pins) -> Result<Option<Migration>, GuardError> {
        let Some(from) = earlier_schema(pins)? else {
            pins.check()?;
            return Ok(None);
        };
        let mut replaced = Vec::new();
        for layout in &LAYOUTS {
            let Some(found) = pins.found(layout)? else { continue };
            let fits = layout.check(&found);
            let mut changes = CHANGES.iter().filter(|change| change.map == layout.name);
            let change = changes.clone().find(|change| from < change.since);
            match change.or_else(|| changes.next_back().filter(|_| fits.is_err())) {
                Some(change) => {
                    let old = open(pins, &pins.map(layout.name))?;
                    replaced.push(Replaced { name: layout.name, entries: change.entries, old });
                }
                None => fits.map_err(|why| GuardError::Incompatible(pins.dir().into(), why))?,
            }
        }
        discard(pins)?;
        Ok(Some(Migration { from, replaced }))
    }

    /// Check whether a map is replaced by a successor.
    pub fn replaces(&self, map: &str) -> bool {
        self.replaced.iter().any(|replaced| replaced.name == map)
    }

    /// Read the old entries into the successors, repeatedly to pick up changes.
    /// Only while no program uses the successors yet: what they write would be overwritten.
    pub fn read(&self, pins: &Pins) -> Result<(), GuardError> {
        for replaced in &self.replaced {
            let Entries::Read(reader) = replaced.entries else { continue };
            let (next, path) = (next(pins, replaced.name), pins.map(replaced.name));
            let mut new = open(pins, if next.exists() { &next } else { &path })?;
            reader(pins, &replaced.old, &mut new).map_err(|error| GuardError::Map {
                map: replaced.name,
                operation: "reading an earlier schema's entries",
                source: std::io::Error::other(error),
            })?;
        }
        Ok(())
    }

    /// Replace the old maps, still used by the attached programs, with the successors.
    pub fn commit(&self, pins: &Pins) -> Result<(), GuardError> {
        self.read(pins)?;
        pins.write_schema()?;
        finish(pins)?;
        let names = |read: bool| {
            let these = self.replaced.iter();
            let these = these.filter(|map| matches!(map.entries, Entries::Read(_)) == read);
            these.map(|map| map.name).collect::<Vec<_>>().join(", ")
        };
        tracing::info!(
            from = self.from,
            to = SCHEMA_VERSION,
            copied = names(true),
            emptied = names(false),
            "took over the maps of an earlier schema; all others are shared"
        );
        Ok(())
    }
}

/// Complete a [`Migration::commit`] during which a daemon died.
pub fn finish(pins: &Pins) -> Result<(), GuardError> {
    let (Some(earlier), true) = (earlier_schema(pins)?, pins.has_schema(SCHEMA_VERSION)?) else {
        return Ok(());
    };
    for layout in &LAYOUTS {
        let (next, path) = (next(pins, layout.name), pins.map(layout.name));
        if next.exists() {
            std::fs::rename(&next, &path).map_err(GuardError::pin("replacing", &path))?;
        }
    }
    for map in REMOVED {
        pins::remove(&pins.map(map))?;
    }
    pins.remove_schema(earlier)
}

/// Remove the successors of a takeover that was not committed.
pub fn discard(pins: &Pins) -> Result<(), GuardError> {
    if pins.has_schema(SCHEMA_VERSION)? {
        return Ok(());
    }
    LAYOUTS.iter().try_for_each(|layout| pins::remove(&next(pins, layout.name)).map(drop))
}

/// Return the pin of a map's successor.
pub fn next(pins: &Pins, map: &str) -> PathBuf {
    pins.map(&format!("{map}{NEXT}"))
}

/// Return the schema of the pins, if it is an earlier one that can be taken over.
pub fn earlier_schema(pins: &Pins) -> Result<Option<u32>, GuardError> {
    for schema in OLDEST..SCHEMA_VERSION {
        if pins.has_schema(schema)? {
            return Ok(Some(schema));
        }
    }
    Ok(None)
}

fn open(pins: &Pins, path: &Path) -> Result<Map, GuardError> {
    MapData::from_pin(path).and_then(Map::from_map_data).map_err(|error| {
        GuardError::Incompatible(pins.dir().into(), format!("{}: {error}", path.display()))
    })
}

/// [`Counters`] of schema 9, without spare room for more.
#[derive(Clone, Copy)]
#[repr(C)]
struct Counters9 {
    events: [u64; 57],
    violations_in: [u64; 11],
    violations_out: [u64; 11],
    heartbeat: [u64; 20],
    heartbeat_sum_ns: u64,
    event_second: u64,
    event_budget: [u64; 11],
}

// SAFETY: `repr(C)`, made of integers.
unsafe impl Plain for Counters9 {}

impl From<Counters9> for Counters {
    fn from(old: Counters9) -> Counters {
        let mut new = Counters {
            violations_in: old.violations_in,
            violations_out: old.violations_out,
            event_second: old.event_second,
            ..Counters::ZERO
        };
        new.events[..old.events.len()].copy_from_slice(&old.events);
        new.event_budget[..old.event_budget.len()].copy_from_slice(&old.event_budget);
        new
    }
}

fn counters_of_9(_pins: &Pins, old: &Map, new: &mut Map) -> Result<(), MapError> {
    let old = PerCpuArray::<_, Raw<Counters9>>::try_from(old)?;
    let mut new = PerCpuArray::<_, Raw<Counters>>::try_from(new)?;
    let values = old.get(&0, 0)?;
    let values: Vec<_> = values.iter().map(|Raw(old)| Raw(Counters::from(*old))).collect();
    new.set(0, PerCpuValues::try_from(values)?, 0)
}

/// Bytes of a copy before schema 15, and spare ones.
const BYTES14: usize = 65_536;
const SPARE14: usize = 512;
/// Maximum of segments whose ends were kept.
const CUTS14: usize = 64;

/// [`Held`] of schema 12: one range, with its bytes counted from its first one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Held12 {
    busy: u32,
    _pad: u32,
    owner: u64,
    key: FlowKey,
    _pad1: u32,
    begin: u32,
    len: u32,
    cuts: u32,
    ragged: u32,
    ends: [u32; CUTS14],
    look: Look,
    bytes: [u8; BYTES14 + SPARE14],
}

/// [`Held`] of schema 14: its bytes in a ring.
#[derive(Clone, Copy)]
#[repr(C)]
struct Held14 {
    busy: u32,
    _pad: u32,
    owner: u64,
    key: FlowKey,
    _pad1: u32,
    ranges: [Range; RANGES],
    len: u32,
    cuts: u32,
    ragged: u32,
    _pad2: u32,
    ends: [u32; CUTS14],
    look: Look,
    bytes: [u8; BYTES14 + SPARE14],
}

// SAFETY: `repr(C)`, made of integers.
unsafe impl Plain for Held12 {}
// SAFETY: the same.
unsafe impl Plain for Held14 {}

/// Copy of an earlier schema.
trait Earlier: Plain {
    fn owner(&self) -> (u64, FlowKey);
    fn ranges(&self) -> [Range; RANGES];
    /// Its byte with that sequence number.
    fn byte(&self, seq: u32) -> u8;
}

impl Earlier for Held12 {
    fn owner(&self) -> (u64, FlowKey) {
        (self.owner, self.key)
    }

    fn ranges(&self) -> [Range; RANGES] {
        let mut ranges = [Range::default(); RANGES];
        ranges[0] = Range { begin: self.begin, len: self.len.min(BYTES14 as u32) };
        ranges
    }

    fn byte(&self, seq: u32) -> u8 {
        self.bytes[seq.wrapping_sub(self.begin) as usize % BYTES14]
    }
}

impl Earlier for Held14 {
    fn owner(&self) -> (u64, FlowKey) {
        (self.owner, self.key)
    }

    fn ranges(&self) -> [Range; RANGES] {
        self.ranges.map(|range| Range { len: range.len.min(BYTES14 as u32), ..range })
    }

    fn byte(&self, seq: u32) -> u8 {
        self.bytes[seq as usize % BYTES14]
    }
}

/// The pages of all copies, while those of an earlier schema are read.
struct Filling {
    pages: Vec<Page>,
    /// Pages of the pool that were given away.
    lent: u32,
}

impl Filling {
    fn new() -> Filling {
        Filling { pages: vec![Page::default(); pages::ALL as usize], lent: 0 }
    }

    /// Get a page for that place of a copy: of the slot's own, or from the pool.
    fn get(&mut self, slot: u32, copy: &mut Pages, place: u32) -> Option<u32> {
        let number = match copy.own(slot) {
            0 if self.lent == pages::POOL => return None,
            0 => {
                self.lent += 1;
                SLOTS * pages::OWN + self.lent
            }
            own => own,
        };
        self.pages[number as usize - 1].borrower = is_lent(number) * (slot + 1);
        copy.put(place, number);
        Some(number)
    }

    /// Convert a copy. Without an owner, and so lost, if there are not enough pages for it.
    fn take(&mut self, slot: u32, old: &impl Earlier) -> Held {
        let mut new = Held::default();
        let (owner, key) = old.owner();
        if owner == 0 {
            return new;
        }
        for range in old.ranges() {
            for seq in (0..range.len).map(|at| range.begin.wrapping_add(at)) {
                let number = match new.pages.at(place(seq)) {
                    0 => self.get(slot, &mut new.pages, place(seq)),
                    number => Some(number),
                };
                let Some(number) = number else {
                    return Held { pages: new.pages, ..Held::default() };
                };
                self.pages[number as usize - 1].bytes[(seq % pages::PAGE) as usize] = old.byte(seq);
            }
            if range.len != 0 {
                new.region.extend(range.begin, range.len);
            }
        }
        Held { owner, key, ..new }
    }
}

/// Read the copies of an earlier schema. Without them, the connections that have a gap just now could
/// never go on.
fn copies<T: Earlier>(pins: &Pins, old: &Map, new: &mut Map) -> Result<(), MapError> {
    let old = Array::<_, Raw<T>>::try_from(old)?;
    let mut new = Array::<_, Raw<Held>>::try_from(new)?;
    let mut pages = Map::from_map_data(MapData::from_pin(pins.map(name::PAGES))?)?;
    let mut pages = Array::<_, Raw<Page>>::try_from(&mut pages)?;
    let mut filling = Filling::new();
    for slot in 0..SLOTS {
        let Raw(held) = old.get(&slot, 0)?;
        new.set(slot, Raw(filling.take(slot, &held)), 0)?;
    }
    for (number, page) in (0..).zip(&filling.pages) {
        pages.set(number, Raw(*page), 0)?;
    }
    Ok(())
}

fn held_of_12(pins: &Pins, old: &Map, new: &mut Map) -> Result<(), MapError> {
    copies::<Held12>(pins, old, new)
}

fn held_of_14(pins: &Pins, old: &Map, new: &mut Map) -> Result<(), MapError> {
    copies::<Held14>(pins, old, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_those_of_takeovers() {
        for change in &CHANGES {
            assert!(LAYOUTS.iter().any(|layout| layout.name == change.map));
            assert!((OLDEST..=SCHEMA_VERSION).contains(&change.since), "{}", change.map);
        }
    }

    #[test]
    fn counters_keep_their_numbers() {
        let mut old = Counters9 {
            events: std::array::from_fn(|number| number as u64 + 1),
            violations_in: [0; 11],
            violations_out: [0; 11],
            heartbeat: [0; 20],
            heartbeat_sum_ns: 0,
            event_second: 0,
            event_budget: [0; 11],
        };
        (old.violations_out[10], old.event_budget[10]) = (8, 9);
        let new = Counters::from(old);
        assert!(new.events[..57].iter().zip(1..).all(|(counted, number)| *counted == number));
        assert!(new.events[57..].iter().all(|counted| *counted == 0));
        assert_eq!((new.violations_out[10], new.event_budget[10]), (8, 9));
    }

    /// Bytes of a copy from `seq` on.
    fn bytes(filling: &Filling, held: &Held, seq: u32, len: u32) -> Vec<u8> {
        let seqs = (0..len).map(|at| seq.wrapping_add(at));
        seqs.map(|seq| {
            let page = &filling.pages[held.pages.at(place(seq)) as usize - 1];
            page.bytes[(seq % pages::PAGE) as usize]
        })
        .collect()
    }

    #[test]
    fn a_range_keeps_its_bytes() {
        let mut old = Held12 {
            busy: 1,
            _pad: 0,
            owner: 7,
            key: FlowKey { client_port: 1, ..FlowKey::default() },
            _pad1: 0,
            begin: 0xFFFF_FFFE,
            len: 5,
            cuts: 2,
            ragged: 1,
            ends: [0; CUTS14],
            look: Look::default(),
            bytes: [0; BYTES14 + SPARE14],
        };
        old.bytes[..5].copy_from_slice(b"abcde");
        let mut filling = Filling::new();
        let new = filling.take(3, &old);
        assert_eq!((new.busy, new.owner, new.key), (0, 7, old.key));
        let range = new.region.next(0xFFFF_FFF0);
        assert_eq!((range, new.region.len), (Range { begin: 0xFFFF_FFFE, len: 5 }, 5));
        assert_eq!(bytes(&filling, &new, range.begin, 5), b"abcde");
    }

    #[test]
    fn a_long_copy_keeps_its_ranges_with_pages_of_the_pool() {
        let mut old = Held14 {
            busy: 0,
            _pad: 0,
            owner: 7,
            key: FlowKey::default(),
            _pad1: 0,
            ranges: [Range::default(); RANGES],
            len: 62_000,
            cuts: 0,
            ragged: 0,
            _pad2: 0,
            ends: [0; CUTS14],
            look: Look::default(),
            bytes: std::array::from_fn(|at| (at % 251) as u8),
        };
        let (from, last) = (16_000, 16_000 + 65_536 - 2_000);
        old.ranges[2] = Range { begin: from, len: 60_000 };
        old.ranges[5] = Range { begin: last, len: 2_000 };
        let mut filling = Filling::new();
        for slot in 0..pages::POOL {
            let new = filling.take(slot, &old);
            assert_eq!((new.owner, new.region.len), (7, 62_000));
            let lent = new.pages.0.map(is_lent);
            assert_eq!((lent.iter().sum::<u32>(), new.pages.have()), (1, 0b1_1111));
            assert_eq!(new.pages.have(), new.region.pages());
            for (begin, len) in [(from, 60_000), (last, 2_000)] {
                let old: Vec<u8> = (begin..begin + len).map(|seq| old.byte(seq)).collect();
                assert_eq!(bytes(&filling, &new, begin, len), old);
            }
        }
        assert_eq!(filling.lent, pages::POOL);
        let none = filling.take(pages::POOL, &old);
        assert_eq!((none.owner, none.region.len), (0, 0));
    }
}

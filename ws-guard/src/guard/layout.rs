//! Layouts that the pinned maps must have to be reused.
//!
//! Opening a pinned map checks nothing: a 64-byte value read as eight bytes silently corrupts
//! memory. So type, sizes and flags are compared with those of this build.
use aya::maps::{MapInfo, MapType};
use ws_guard_common::{
    flow::Flow,
    forwarded::names::HeaderNames,
    heartbeat::Heartbeats,
    maps::{
        Address, COARSE, Counters, FlowKey, Midstream, Pending, Policy, Ports, Rule, SCOPES,
        SERVERS, SUSPECTS, SYNS, Server, ServerKey, Shared, SourceKey, Suspect, Unopened, name,
    },
    out_of_order::{self, Held},
    pages::{self, Page},
    source::Source,
    trail::{TRAILS, Trail},
};

use super::plain::PrefixKey;

/// BPF_F_NO_PREALLOC, which the kernel requires for LPM tries.
/// With it, an empty table costs nothing.
pub const NO_PREALLOC: u32 = 1;

/// Number of entries of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Exact number, which is part of the layout.
    Fixed(u32),
    /// Number chosen by the operator when the map was created.
    Chosen,
}

/// Definition of one map.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub name: &'static str,
    pub kind: MapType,
    pub key: usize,
    pub value: usize,
    pub entries: Entries,
    pub flags: u32,
}

/// Properties of a map in the object or in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
}

impl From<&aya_obj::Map> for Found {
    fn from(map: &aya_obj::Map) -> Self {
        Found {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        }
    }
}

impl TryFrom<&MapInfo> for Found {
    type Error = aya::maps::MapError;

    fn try_from(info: &MapInfo) -> Result<Self, Self::Error> {
        Ok(Found {
            kind: info.map_type()? as u32,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

const fn map<K, V>(name: &'static str, kind: MapType, entries: Entries, flags: u32) -> Layout {
    Layout { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries, flags }
}

/// Layouts of every map that outlives the daemon. Others are private to one load.
pub const LAYOUTS: [Layout; 24] = [
    map::<FlowKey, Flow>(name::FLOWS, MapType::Hash, Entries::Chosen, NO_PREALLOC),
    map::<FlowKey, Pending>(name::PENDING, MapType::LruHash, Entries::Chosen, 0),
    map::<FlowKey, Pending>(name::PROVEN, MapType::LruHash, Entries::Chosen, 0),
    map::<FlowKey, Midstream>(name::MIDSTREAM, MapType::LruHash, Entries::Chosen, 0),
    map::<u32, Trail>(name::TRAILS, MapType::Array, Entries::Fixed(TRAILS), 0),
    map::<u32, Held>(name::HELD, MapType::Array, Entries::Fixed(out_of_order::SLOTS), 0),
    map::<u32, Page>(name::PAGES, MapType::Array, Entries::Fixed(pages::ALL), 0),
    map::<SourceKey, Source>(name::SOURCES, MapType::Hash, Entries::Chosen, NO_PREALLOC),
    map::<PrefixKey, Rule>(name::RULES, MapType::LpmTrie, Entries::Chosen, NO_PREALLOC),
    map::<u32, Policy>(name::POLICY, MapType::Array, Entries::Fixed(2 * SCOPES), 0),
    map::<u32, u32>(name::ACTIVE, MapType::Array, Entries::Fixed(1), 0),
    map::<u32, Ports>(name::PORTS, MapType::Array, Entries::Fixed(2), 0),
    map::<u32, Shared>(name::SHARED, MapType::Array, Entries::Fixed(1), 0),
    map::<u32, Counters>(name::COUNTERS, MapType::PerCpuArray, Entries::Fixed(1), 0),
    map::<(), ()>(name::EVENTS, MapType::RingBuf, Entries::Chosen, 0),
    map::<SourceKey, Source>(name::COARSE, MapType::Hash, Entries::Fixed(COARSE), 0),
    map::<PrefixKey, u32>(name::PROXIES, MapType::LpmTrie, Entries::Chosen, NO_PREALLOC),
    map::<u32, HeaderNames>(name::HEADERS, MapType::Array, Entries::Fixed(2), 0),
    map::<Address, Suspect>(name::SUSPECTS, MapType::LruHash, Entries::Fixed(SUSPECTS), 0),
    map::<ServerKey, Server>(name::SERVERS, MapType::PerCpuHash, Entries::Fixed(SERVERS), 0),
    map::<FlowKey, Heartbeats>(name::HEARTBEATS, MapType::LruHash, Entries::Chosen, 0),
    map::<u32, Server>(name::OTHERS, MapType::PerCpuArray, Entries::Fixed(1), 0),
    map::<FlowKey, Unopened>(name::BEGINNINGS, MapType::LruHash, Entries::Chosen, 0),
    map::<u32, u64>(name::SYNS, MapType::Array, Entries::Fixed(SYNS), 0),
];

impl Layout {
    /// Return the flags that are part of the layout.
    /// For a hash table, the time of allocation is not: earlier versions allocated at the start.
    fn binding(&self, flags: u32) -> u32 {
        if matches!(self.kind, MapType::Hash) { flags & !NO_PREALLOC } else { flags }
    }

    /// # Errors
    /// The first difference, as text.
    pub fn check(&self, found: &Found) -> Result<(), String> {
        let entries = match self.entries {
            Entries::Fixed(entries) => entries,
            Entries::Chosen => found.entries,
        };
        let differences = [
            ("map type", found.kind, self.kind as u32),
            ("key size", found.key, self.key as u32),
            ("value size", found.value, self.value as u32),
            ("number of entries", found.entries, entries),
            ("flags", self.binding(found.flags), self.binding(self.flags)),
        ];
        match differences.into_iter().find(|(_, found, wanted)| found != wanted) {
            Some((what, found, wanted)) => {
                Err(format!("{what} of {} is {found}, not {wanted}", self.name))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named() {
        let flows = &LAYOUTS[0];
        let good =
            Found { kind: 1, key: 36, value: size_of::<Flow>() as u32, entries: 5, flags: 0 };
        assert_eq!(flows.check(&good), Ok(()));
        assert_eq!(flows.check(&Found { flags: NO_PREALLOC, ..good }), Ok(()));
        let rules = LAYOUTS.iter().find(|layout| layout.name == name::RULES).unwrap();
        let value = size_of::<Rule>() as u32;
        let trie = Found { kind: 11, key: 24, value, entries: 5, flags: 0 };
        assert!(rules.check(&trie).unwrap_err().starts_with("flags"));
        for (bad, what) in [
            (Found { kind: 9, ..good }, "map type"),
            (Found { key: 40, ..good }, "key size"),
            (Found { value: 712, ..good }, "value size"),
            (Found { flags: 2, ..good }, "flags"),
        ] {
            assert!(flows.check(&bad).unwrap_err().starts_with(what));
        }
        let policy = LAYOUTS.iter().find(|layout| layout.name == name::POLICY).unwrap();
        let value = size_of::<Policy>() as u32;
        let three = Found { kind: 2, key: 4, value, entries: 3, flags: 0 };
        assert!(policy.check(&three).unwrap_err().contains("number of entries"));
    }

    /// Compare the documented sizes of entries with the maps.
    /// A size is that of key and value, each rounded up to 8, the kernel's overhead, and a bucket.
    #[test]
    fn documented_sizes_are_the_maps() {
        let cost = |layout: &Layout| {
            layout.key.next_multiple_of(8) + layout.value.next_multiple_of(8) + 48 + 16
        };
        let of = |name: &str| cost(LAYOUTS.iter().find(|layout| layout.name == name).unwrap());
        let (flow, source) = (of(name::FLOWS), of(name::SOURCES));
        let help = |name: &str| {
            crate::config::RUN.iter().find(|setting| setting.name == name).unwrap().help
        };
        let (flows, sources) = (help("max-flows"), help("max-sources"));
        assert!(flows.contains(&format!(" {flow} bytes a connection")), "{flow}: {flows}");
        assert!(sources.contains(&format!(" {source} bytes a source")), "{source}: {sources}");
        for (document, wanted) in [
            (
                include_str!("../../../docs/operations.md"),
                format!("| {flow} and {source} bytes an entry"),
            ),
            (
                include_str!("../../../docs/architecture.md"),
                format!("costs {flow} bytes in `FLOWS` and {source} in `SOURCES`"),
            ),
            (
                include_str!("../../../docs/kubernetes.md"),
                format!("{flow} bytes for each of `max-flows`, {source} for each of `max-sources`"),
            ),
            (
                include_str!("../../../docs/runbooks/WsGuardTableNearlyFull.md"),
                format!("{flow} bytes a flow and {source} a source"),
            ),
        ] {
            assert!(document.contains(&wanted), "it does not say: {wanted}");
        }
    }
}

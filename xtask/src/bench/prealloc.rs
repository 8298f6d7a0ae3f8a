//! The kernel programs with preallocated tables, for comparison:
//! the object's maps `FLOWS` and `SOURCES` without their flag.
//!
//! A map's definition is a struct in the object's BTF; each number in it is the length of an array
//! that a member points to. So the flags' member is redirected to that of a map without flags.
use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};
use ws_guard_common::maps::name;

/// Tables that grow with their use.
pub const GROWING: [&str; 2] = [name::FLOWS, name::SOURCES];
/// A hash table without flags.
const PLAIN: &str = name::PENDING;
const FLAGS: &str = "map_flags";

/// Numbers of BTF's kinds of types.
const STRUCT: u32 = 4;
const VAR: u32 = 14;

/// Return the object with these tables preallocated.
pub fn preallocated(object: &[u8]) -> Result<Vec<u8>> {
    let file = ElfFile64::<Endianness>::parse(object).context("not an object file")?;
    let section = file.section_by_name(".BTF").context("the object has no BTF")?;
    let (start, length) = section.file_range().context("the BTF has no place in the file")?;
    let (start, length) = (usize::try_from(start)?, usize::try_from(length)?);
    let btf = Btf::parse(object.get(start..start + length).context("the BTF is cut off")?)?;
    let none = btf.word(btf.flags(PLAIN)?)?;
    let mut changed = object.to_vec();
    for map in GROWING {
        let at = start + btf.flags(map)?;
        changed[at..at + 4].copy_from_slice(&none.to_le_bytes());
    }
    Ok(changed)
}

/// Type information from the file.
struct Btf<'a> {
    bytes: &'a [u8],
    /// Offset of each type, by its number less one.
    types: Vec<usize>,
    strings: usize,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Btf<'a>> {
        let mut btf = Btf { bytes, types: Vec::new(), strings: 0 };
        ensure!(btf.word(0)? & 0xffff == 0xeb9f, "not little-endian BTF");
        let [header, types, length, strings] = [4, 8, 12, 16].map(|at| btf.word(at));
        let (header, length) = (header? as usize, length? as usize);
        btf.strings = header + strings? as usize;
        let mut at = header + types? as usize;
        let end = at + length;
        while at < end {
            btf.types.push(at);
            at += 12 + btf.further(at)?;
        }
        Ok(btf)
    }

    fn word(&self, at: usize) -> Result<u32> {
        let bytes = self.bytes.get(at..at + 4).context("the BTF is cut off")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    }

    fn kind(&self, at: usize) -> Result<u32> {
        Ok(self.word(at + 4)? >> 24 & 0x1f)
    }

    fn members(&self, at: usize) -> Result<usize> {
        Ok((self.word(at + 4)? & 0xffff) as usize)
    }

    /// Return the bytes of a type after the common part.
    fn further(&self, at: usize) -> Result<usize> {
        let members = self.members(at)?;
        Ok(match self.kind(at)? {
            // Integers, variables, declaration tags.
            1 | VAR | 17 => 4,
            // Arrays.
            3 => 12,
            // Structs, unions, sections, enums of 64 bits.
            STRUCT | 5 | 15 | 19 => 12 * members,
            // Enums, prototypes of functions.
            6 | 13 => 8 * members,
            _ => 0,
        })
    }

    fn is_named(&self, at: usize, name: &str) -> Result<bool> {
        let from = self.strings + self.word(at)? as usize;
        let text = self.bytes.get(from..).context("the BTF is cut off")?;
        Ok(text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)))
    }

    fn find(&self, number: u32) -> Result<usize> {
        let index = (number as usize).checked_sub(1).context("a type of nothing")?;
        self.types.get(index).copied().with_context(|| format!("no type {number}"))
    }

    /// Return the offset of the type of a map's flags.
    fn flags(&self, map: &str) -> Result<usize> {
        for &at in &self.types {
            if self.kind(at)? == VAR && self.is_named(at, map)? {
                let found = self.member(self.find(self.word(at + 8)?)?)?;
                return found.with_context(|| format!("{map} has no flags"));
            }
        }
        anyhow::bail!("the object has no map {map}")
    }

    /// Return the same for a struct, or one that it contains.
    fn member(&self, at: usize) -> Result<Option<usize>> {
        if self.kind(at)? != STRUCT {
            return Ok(None);
        }
        for member in (0..self.members(at)?).map(|n| at + 12 + 12 * n) {
            if self.is_named(member, FLAGS)? {
                return Ok(Some(member + 4));
            }
            let inside = self.member(self.find(self.word(member + 4)?)?)?;
            if inside.is_some() {
                return Ok(inside);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_ebpf;

    /// Check that only the flags of these two maps change, as the loader reads them.
    #[test]
    fn only_two_flags_change() {
        let committed = std::fs::read(build_ebpf::committed()).expect("the committed object");
        let changed = preallocated(&committed).expect("an object");
        let maps = |bytes: &[u8]| {
            let object = aya_obj::Object::parse(bytes).expect("an object");
            let all = object.maps.into_iter().map(|(name, map)| {
                let sizes = [map.map_type(), map.key_size(), map.value_size(), map.max_entries()];
                (name, (sizes, map.map_flags()))
            });
            all.collect::<std::collections::BTreeMap<_, _>>()
        };
        let mut wanted = maps(&committed);
        for map in GROWING {
            assert_eq!(wanted[map].1, 1, "{map} grows");
            wanted.get_mut(map).expect("a map").1 = 0;
        }
        assert_eq!(maps(&changed), wanted);
        assert_eq!(changed.len(), committed.len());
    }
}

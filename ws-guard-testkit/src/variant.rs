//! Different but equivalent kernel programs, as an upgrade loads them.
use std::mem::offset_of;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};
use ws_guard_common::maps::{Counter, Event, EventKind, name};

/// Length of an instruction in bytes (RFC 9669, 3).
const INSTRUCTION: usize = 8;
/// Opcodes `MOV | K | ALU64` and `MOV | K | ALU` (RFC 9669, 4.1).
/// They move a constant to 64 bits, or to the lower 32 with the upper ones zero. Both are
/// equivalent where the constant is not negative.
const MOVES: [u8; 2] = [0xb7, 0xb4];
/// Opcodes `LDX | MEM | DW`, `STX | MEM | DW` and `STX | MEM | B` (RFC 9669, 5.1).
const LOAD_64: u8 = 0x79;
const STORE_64: u8 = 0x7b;
const STORE_8: u8 = 0x73;
/// Opcodes `JMP | JA`, `JMP | CALL` and `JMP | EXIT` (RFC 9669, 4.3).
const GOTO: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Return the object with one instruction of each function changed.
/// `number` selects the instruction.
///
/// # Errors
/// If it is not an object, or has nothing that could be changed.
pub fn variant(object: &[u8], number: usize) -> Result<Vec<u8>> {
    let file = object::File::parse(object).context("reading the kernel programs' object")?;
    let mut changed = object.to_vec();
    let mut count = 0;
    for function in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(section) = function.section_index().filter(|_| function.size() > 0) else {
            continue;
        };
        let (at, _) = file.section_by_index(section)?.file_range().context("code in the file")?;
        let from = (at + function.address()) as usize;
        let code = changed.get_mut(from..from + function.size() as usize);
        let code = code.with_context(|| format!("{:?} ends behind the file", function.name()))?;
        let mut moves: Vec<&mut [u8]> = code
            .chunks_exact_mut(INSTRUCTION)
            .filter(|part| MOVES.contains(&part[0]) && part[INSTRUCTION - 1] & 0x80 == 0)
            .collect();
        let chosen = number % moves.len().max(1);
        if let Some(instruction) = moves.get_mut(chosen) {
            instruction[0] = if instruction[0] == MOVES[0] { MOVES[1] } else { MOVES[0] };
            count += 1;
        }
    }
    ensure!(count > 0, "no function has an instruction that could be written another way");
    Ok(changed)
}

/// One counter and one kind of event in addition to those of the object.
/// Both take over what one of the old ones counted and reported.
#[derive(Clone, Copy, Debug)]
pub struct Added {
    pub old_counter: Counter,
    pub counter: usize,
    pub old_kind: EventKind,
    pub kind: u8,
}

/// Return the object of a version with one more counter and one more kind of event.
///
/// # Errors
/// If it is not an object, or does not count or report so.
pub fn with_added(object: &[u8], added: &Added) -> Result<Vec<u8>> {
    let file = object::File::parse(object).context("reading the kernel programs' object")?;
    let mut changed = object.to_vec();
    let (mut counted, mut reported) = (0, 0);
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let (at, size) = section.file_range().context("code in the file")?;
        let code = changed.get_mut(at as usize..(at + size) as usize);
        let code = code.with_context(|| format!("{:?} ends behind the file", section.name()))?;
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let instruction = offset as usize / INSTRUCTION;
            match file.symbol_by_index(symbol)?.name()? {
                name::COUNTERS => counted += count_in(code, instruction, added),
                name::EVENTS => reported += report_in(code, instruction, added),
                _ => {}
            }
        }
    }
    ensure!(counted > 0, "{:?} is not counted", added.old_counter);
    ensure!(reported > 0, "{:?} is not reported", added.old_kind);
    Ok(changed)
}

/// Change accesses to a counter after a look-up, and return their number.
/// The address of the counters is in the first register then.
fn count_in(code: &mut [u8], look_up: usize, added: &Added) -> usize {
    let [old, new] = [added.old_counter as usize, added.counter].map(|number| (8 * number) as u16);
    let mut changed = 0;
    let behind = code.chunks_exact_mut(INSTRUCTION).skip(look_up);
    for instruction in behind.skip_while(|instruction| instruction[0] != CALL).skip(1) {
        let (destination, source) = (instruction[1] & 0xf, instruction[1] >> 4);
        let reads = instruction[0] == LOAD_64 && source == 0;
        let writes = instruction[0] == STORE_64 && destination == 0;
        if (reads || writes) && instruction[2..4] == old.to_le_bytes() {
            instruction[2..4].copy_from_slice(&new.to_le_bytes());
            changed += 1;
        }
        let overwritten = destination == 0 && matches!(instruction[0] & 7, 0 | 1 | 4 | 7);
        if overwritten || [GOTO, CALL, EXIT].contains(&instruction[0]) {
            break;
        }
    }
    changed
}

/// Change the kind where a record is reserved and written; return whether both are.
/// It is checked before a record is reserved, and then written to it.
fn report_in(code: &mut [u8], reserve: usize, added: &Added) -> usize {
    let offset = (offset_of!(Event, kind) as u16).to_le_bytes();
    let mut parts: Vec<&mut [u8]> = code.chunks_exact_mut(INSTRUCTION).collect();
    let constant = |part: &[u8], register: u8| {
        MOVES.contains(&part[0])
            && part[1] & 0xf == register
            && part[4..] == u32::from(added.old_kind as u8).to_le_bytes()
    };
    let asked = (reserve.saturating_sub(10)..reserve).rev().find(|at| constant(parts[*at], 1));
    let stored = (reserve..(reserve + 16).min(parts.len()))
        .find(|at| parts[*at][0] == STORE_8 && parts[*at][2..4] == offset);
    let (Some(asked), Some(stored)) = (asked, stored) else { return 0 };
    let register = parts[stored][1] >> 4;
    let Some(written) = (reserve..stored).rev().find(|at| constant(parts[*at], register)) else {
        return 0;
    };
    for at in [asked, written] {
        parts[at][4] = added.kind;
    }
    1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_variant_is_another_one() -> Result<()> {
        let object = std::fs::read(crate::programs::object())?;
        let mut seen = BTreeSet::from([object.clone()]);
        for number in 0..20 {
            let changed = variant(&object, number)?;
            let differ = object.iter().zip(&changed).filter(|(a, b)| a != b).count();
            assert!(object.len() == changed.len() && differ > 10, "{differ} bytes differ");
            assert!(seen.insert(changed), "variant {number} was there before");
        }
        assert!(variant(b"no object", 0).is_err());
        Ok(())
    }

    #[test]
    fn a_counter_and_a_kind_are_renumbered() -> Result<()> {
        let object = std::fs::read(crate::programs::object())?;
        let added = Added {
            old_counter: Counter::Coalesced,
            counter: Counter::COUNT,
            old_kind: EventKind::FlowOpened,
            kind: EventKind::COUNT as u8,
        };
        let changed = with_added(&object, &added)?;
        let differ = object.iter().zip(&changed).filter(|(a, b)| a != b).count();
        assert!(object.len() == changed.len() && differ >= 8, "{differ} bytes differ");
        assert!(with_added(&changed, &added).is_err(), "all of them are changed");
        Ok(())
    }
}

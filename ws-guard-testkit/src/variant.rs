//! Other kernel programs that do the same: what an upgrade loads.
use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// An instruction's bytes (RFC 9669, 3).
const INSTRUCTION: usize = 8;
/// `MOV | K | ALU64` and `MOV | K | ALU` (RFC 9669, 4.1): a constant to 64 bits, and to the lower 32
/// with the upper ones zero. Both are the same where the constant is not negative.
const MOVES: [u8; 2] = [0xb7, 0xb4];

/// The object with one instruction of each function written another way; which one, `number` says.
///
/// # Errors
/// When it is no object, or has nothing that could be changed.
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
}

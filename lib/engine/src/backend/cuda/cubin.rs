//! What a compiled kernel needs: registers, stack, shared memory and parameters, from its cubin.
//!
//! A cubin is an ELF file. Each kernel has a symbol marked as entry, a section `.text.NAME`, its static shared memory
//! as `.nv.shared.NAME`, and attributes in `.nv.info` (those of all kernels, by symbol) and `.nv.info.NAME`. An
//! attribute is a format byte, its number, and two bytes that are the value or, in format 4, the length of what
//! follows. The figures are those of `cuobjdump --dump-resource-usage`.

use object::read::elf::{ElfFile64, Sym};
use object::{Object, ObjectSection, ObjectSymbol, SymbolIndex};
use std::collections::BTreeMap;

/// The symbol is a kernel (`st_other`).
const ENTRY: u8 = 0x10;
/// Attribute with a length of its own.
const LONG: u8 = 4;
/// `{symbol: u32, bytes: u32}`: stack of a function alone.
const FRAME_SIZE: u8 = 0x11;
/// `{symbol: u32, bytes: u32}`: stack of a kernel with all that it calls.
const MIN_STACK_SIZE: u8 = 0x12;
/// `{symbol: u32, registers: u32}`
const REGCOUNT: u8 = 0x2f;
/// `{index: u32, ordinal: u16, offset: u16, bits: u32}`; the bytes are in the highest 14 bits.
const KPARAM_INFO: u8 = 0x17;

/// What one kernel needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// name of the kernel
    pub name: String,
    /// registers of a thread
    pub registers: u32,
    /// bytes of local memory of a thread: spilled registers, and arrays that are indexed at run time
    pub stack: u32,
    /// bytes of static shared memory of a block, with the 1024 that the system keeps from sm_90 on
    pub shared: u64,
    /// bytes of each parameter, in order
    pub parameters: Vec<u32>,
}

/// The kernels of a cubin, by name.
///
/// # Errors
/// What is wrong with the file.
pub fn needs(cubin: &[u8]) -> Result<Vec<Needs>, String> {
    let elf = ElfFile64::<object::Endianness>::parse(cubin).map_err(|e| format!("not a cubin: {e}"))?;
    let data = |name: &str| -> Result<&[u8], String> {
        let section = elf.section_by_name(name);
        section.map_or(Ok(&[][..]), |s| s.data().map_err(|e| format!("section {name}: {e}")))
    };
    let mut by_symbol: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
    for (attribute, value) in attributes(data(".nv.info")?)? {
        if matches!(attribute, FRAME_SIZE | MIN_STACK_SIZE | REGCOUNT) {
            let (registers, stack) = by_symbol.entry(u32_at(value, 0)? as usize).or_default();
            let n = u32_at(value, 4)?;
            match attribute {
                REGCOUNT => *registers = n,
                _ => *stack = n.max(*stack),
            }
        }
    }
    let mut out = Vec::new();
    for symbol in elf.symbols() {
        if symbol.elf_symbol().st_other().0 & ENTRY == 0 || !symbol.is_definition() {
            continue;
        }
        let SymbolIndex(index) = symbol.index();
        let name = symbol.name().map_err(|e| format!("symbol {index}: {e}"))?.to_owned();
        let (registers, stack) =
            *by_symbol.get(&index).ok_or_else(|| format!("kernel {name} has no register count"))?;
        let shared = elf.section_by_name(&format!(".nv.shared.{name}")).map_or(0, |s| s.size());
        let mut parameters = Vec::new();
        for (attribute, value) in attributes(data(&format!(".nv.info.{name}"))?)? {
            if attribute == KPARAM_INFO {
                let ordinal = u32_at(value, 4)? & 0xffff;
                parameters.push((ordinal, u32_at(value, 8)? >> 18));
            }
        }
        parameters.sort();
        let parameters = parameters.into_iter().map(|(_, bytes)| bytes).collect();
        out.push(Needs { name, registers, stack, shared, parameters });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// Attributes with a length of their own, and their content.
fn attributes(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, String> {
    let mut out = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<4>() {
        let [format, attribute, low, high] = *head;
        bytes = rest;
        if format == LONG {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let (value, rest) = bytes.split_at_checked(length).ok_or("an attribute is cut off")?;
            out.push((attribute, value));
            bytes = rest;
        }
    }
    if bytes.is_empty() { Ok(out) } else { Err("attributes end within one".to_owned()) }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    let four = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or("an attribute is too short")?;
    Ok(u32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_every_format_are_stepped_over() {
        let short = [3, 0x1b, 0xff, 0];
        let long = [4, 0x11, 8, 0, 17, 0, 0, 0, 0, 1, 0, 0];
        let bytes = [&short[..], &long, &short].concat();
        assert_eq!(attributes(&bytes).unwrap(), [(FRAME_SIZE, &long[4..])]);
        assert_eq!(u32_at(&long[4..], 4), Ok(256));
    }

    #[test]
    fn damage_is_an_error() {
        assert!(attributes(&[4, 0x11, 8, 0, 1]).is_err());
        assert!(attributes(&[3, 0x11]).is_err());
        assert!(u32_at(&[1, 2, 3], 0).is_err());
        assert!(needs(b"").unwrap_err().starts_with("not a cubin"));
        assert!(needs(b"\x7fELF and so on").is_err());
    }
}

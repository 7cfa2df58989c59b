//! Inspects a library file without loading it: loading runs its code, and a truncated file would crash the process in
//! the dynamic loader.

use object::read::NameOrOrdinal;
use object::{Architecture, BinaryFormat, Object, ObjectSegment};
use sparta_plugin::abi::ENTRY;

/// Checks that these bytes are a complete library for this machine that exports the entry point.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let file = object::File::parse(bytes).map_err(|e| format!("not a readable shared library: {e}"))?;
    let (format, architecture) = (file.format(), file.architecture());
    if format != native_format() || Some(architecture) != native() {
        return Err(format!(
            "built for another machine: {architecture:?} {format:?}; this is {}",
            super::manifest::target()
        ));
    }
    for segment in file.segments() {
        let (offset, size) = segment.file_range();
        if offset.checked_add(size).is_none_or(|end| end > bytes.len() as u64) {
            return Err(format!("the file is truncated: it has {} bytes and needs more", bytes.len()));
        }
    }
    let mut exports = file.exports().map_err(|e| format!("damaged symbol table: {e}"))?;
    // Mach-O symbols start with an underscore.
    let names = [ENTRY.as_bytes().to_vec(), format!("_{ENTRY}").into_bytes()];
    let is_entry = |name: NameOrOrdinal<&[u8]>| matches!(name, NameOrOrdinal::Name(name) if names.iter().any(|entry| entry == name));
    if !exports.any(|export| export.is_ok_and(|export| is_entry(export.name()))) {
        return Err(format!("not a plugin: it does not export {ENTRY}"));
    }
    Ok(())
}

/// The format of this system's libraries. On Windows that is not the one of object files.
fn native_format() -> BinaryFormat {
    if cfg!(windows) { BinaryFormat::Pe } else { BinaryFormat::native_object() }
}

fn native() -> Option<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Architecture::X86_64),
        "x86" => Some(Architecture::I386),
        "aarch64" => Some(Architecture::Aarch64),
        "arm" => Some(Architecture::Arm),
        "riscv64" => Some(Architecture::Riscv64),
        "loongarch64" => Some(Architecture::LoongArch64),
        _ => None,
    }
}

//! Proves that `include/sparta_plugin.h` describes the structs and constants of `abi.rs`: a C compiler checks every
//! size and offset.

use sparta_plugin::abi::{RawTensor as SpartaTensor, *};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::process::Command;

/// `_Static_assert`s for a struct's size and the offset of each of its fields.
macro_rules! layout {
    ($out:ident, $($name:ident { $($field:ident),* })*) => {$(
        writeln!($out, "_Static_assert(sizeof({0}) == {1}, \"{0}\");", stringify!($name), size_of::<$name>()).unwrap();
        $(writeln!(
            $out,
            "_Static_assert(offsetof({0}, {1}) == {2}, \"{0}.{1}\");",
            stringify!($name), stringify!($field), offset_of!($name, $field)
        ).unwrap();)*
    )*};
}

#[test]
fn the_header_has_the_same_layout() {
    if Command::new("cc").arg("--version").output().is_err() {
        println!("skipped: no C compiler `cc`");
        return;
    }
    let mut c = String::from("#include \"sparta_plugin.h\"\n");
    layout! { c,
        SpartaBytes { data, len }
        SpartaHost { size, abi_major, abi_minor, error, result, last_error, graph_apply, graph_shape, graph_rng,
            step_read, step_write, graph_own }
        SpartaPlugin { size, abi_major, abi_minor, interface_count, interfaces }
        SpartaInterface { size, id, table }
        SpartaMethod { size, describe, select, forward, merge, forward_with_bias, merge_with_bias, penalty, update,
            steps, on_step }
        SpartaTask { size, describe, open, recipe, examples, next, close_examples, close }
        SpartaBackend { size, describe, devices, open, close, alloc, free, write, read, prepare, run, release,
            run_profiled, memory, submit, request, fetch, prepare_own }
        SpartaTensor { data, shape, rank }
        SpartaWork { kind, handle, offset, data }
        SpartaCommunicator { size, describe, launched, join, leave, barrier, broadcast, all_gather, all_reduce, abort }
    }
    for (name, value) in [("SPARTA_ABI_MAJOR", ABI_MAJOR), ("SPARTA_ABI_MINOR", ABI_MINOR)] {
        writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    for (name, value) in [("SPARTA_WORK_WRITE", WORK_WRITE), ("SPARTA_WORK_RUN", WORK_RUN)] {
        writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    for (name, value) in [("SPARTA_OK", OK), ("SPARTA_FAILED", FAILED)] {
        writeln!(c, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    let header = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/include/sparta_plugin.h")).unwrap();
    let ids = [("METHOD", METHOD_ID), ("TASK", TASK_ID), ("BACKEND", BACKEND_ID), ("COMMUNICATOR", COMMUNICATOR_ID)];
    for (name, id) in ids {
        assert!(header.contains(&format!("#define SPARTA_{name}_ID \"{id}\"")), "{name}");
    }
    assert!(header.contains(&format!("*{ENTRY}(")));

    let source = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout.c");
    std::fs::write(&source, c).unwrap();
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
        .arg(concat!("-I", env!("CARGO_MANIFEST_DIR"), "/include"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

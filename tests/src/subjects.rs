//! The backends and methods of this repository, as the suites take them.

use sparta_backend_cpu::Cpu;
use sparta_core::plugin::PluginSet;
use sparta_graph::Backend;
use sparta_suites::Subject;
use sparta_wgpu::{Options, WgpuBackend};

/// What a software driver says about loops that are longer than it can run.
const LONG_LOOP: &str = "this software driver can loop over";

pub fn cpu(threads: Option<usize>) -> Subject<'static> {
    let name = match threads {
        Some(1) => "cpu with 1 thread".to_owned(),
        Some(n) => format!("cpu with {n} threads"),
        None => "cpu".to_owned(),
    };
    Subject::new(name, move || Ok(Box::new(Cpu::new(threads)?)))
}

/// The first wgpu adapter. Where there is none, says so; in CI that is a failure.
pub fn wgpu() -> Option<Subject<'static>> {
    open_wgpu("wgpu", Options::default()).map(|subject| subject.may_refuse(&[LONG_LOOP]))
}

/// As [`wgpu`], with 16 KiB per workgroup, tensors above 80 KiB as several bindings, and arenas above `max_buffer` bytes
/// as several segments; refuses what a kernel needs whole, and larger tensors.
pub fn wgpu_limited(max_buffer: u64) -> Option<Subject<'static>> {
    let name = format!("wgpu with bindings of 80 KiB, buffers of {} KiB and workgroups of 16 KiB", max_buffer >> 10);
    let limits = Options {
        max_binding: Some(80 << 10),
        max_buffer: Some(max_buffer),
        max_workgroup_memory: Some(16 << 10),
        ..Options::default()
    };
    let subject = open_wgpu(&name, limits)?;
    Some(subject.may_refuse(&[
        LONG_LOOP,
        "this device binds at most",
        "more than a binding may have",
        "that this device binds at once",
        "but the largest buffer of",
    ]))
}

fn open_wgpu(name: &str, options: Options) -> Option<Subject<'static>> {
    if sparta_wgpu::devices().is_empty() {
        crate::skipped_unless_in_ci("no wgpu adapter");
        return None;
    }
    let open = move || WgpuBackend::open_with(0, options);
    Some(Subject::new(name, move || open().map(|backend| Box::new(backend) as Box<dyn Backend>)))
}

/// The methods and the tasks `text` and `sft`, linked in.
pub fn methods() -> PluginSet {
    let mut plugins = PluginSet::default();
    let entries = [
        sparta_method_sparta::entry,
        sparta_method_lora::entry,
        sparta_method_full::entry,
        sparta_method_head::entry,
        sparta_task_text::entry,
        sparta_task_sft::entry,
    ];
    for entry in entries {
        // SAFETY: entry points that the SDK wrote, of crates that are part of this executable.
        unsafe { plugins.link(entry) };
    }
    plugins
}

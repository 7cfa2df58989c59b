//! The plugins that are linked into the executable, so that the one file, copied anywhere, does the main job.

use sparta_core::plugin::{Entry, PluginSet};

const ENTRIES: [Entry; 12] = [
    sparta_backend_cpu::entry,
    sparta_backend_cuda::entry,
    sparta_communicator_mpi::entry,
    sparta_method_sparta::entry,
    sparta_method_lora::entry,
    sparta_method_full::entry,
    sparta_method_head::entry,
    sparta_task_classify::entry,
    sparta_task_glue::entry,
    sparta_task_imdb::entry,
    sparta_task_text::entry,
    sparta_task_sft::entry,
];

/// Adds the built-in plugins behind those that were found: a library of the same kind and name wins.
pub fn link(plugins: &mut PluginSet) {
    for entry in ENTRIES {
        // SAFETY: entry points that the SDK wrote, of crates that are part of this executable.
        unsafe { plugins.link(entry) };
    }
}

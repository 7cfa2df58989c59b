//! The plugins that are linked in.

use sparta_core::plugin::{DiscoverOptions, Entry, PluginSet};

const ENTRIES: [Entry; 8] = [
    sparta_method_sparta::entry,
    sparta_method_lora::entry,
    sparta_method_full::entry,
    sparta_method_head::entry,
    sparta_task_classify::entry,
    sparta_task_glue::entry,
    sparta_task_sft::entry,
    sparta_task_text::entry,
];

/// All of them. An adapter may have been made with the same plugins as libraries, whose bytes cannot be compared here:
/// that is reported, and accepted.
pub fn all() -> PluginSet {
    let mut plugins = PluginSet::discover(&DiscoverOptions { allow_other: true, ..DiscoverOptions::default() });
    for entry in ENTRIES {
        // SAFETY: entry points that the SDK wrote, of crates that are part of this program.
        unsafe { plugins.link(entry) };
    }
    plugins
}

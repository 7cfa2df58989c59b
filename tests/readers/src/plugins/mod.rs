//! Plugins: manifests, and the JSON messages that cross the C ABI, read by the host and by the SDK.

mod host;
mod requests;

pub use host::{backend, good_backend, good_method, good_task, method, task};
pub use requests::{good_requests, requests};

use crate::place::{place, put};
use serde_json::json;
use sparta_core::plugin::{Manifest, target};

pub fn manifest(bytes: &[u8]) -> bool {
    let dir = place("plugin_manifest", |_| ());
    put(&dir, "library.plugin.json", bytes);
    Manifest::read(&dir.join("library.so")).is_ok_and(|manifest| {
        drop(manifest.map(|manifest| manifest.check(b"library")));
        true
    })
}

pub fn good_manifest() -> Vec<Vec<u8>> {
    // SHA-256 of `library`.
    let sha256 = "b718f1354f7247312eca086d9a024afe5fa717ddea5adeddd6f12bcf945b2e8c";
    let manifest =
        json!({"name": "lora", "kind": "method", "abi": "sparta.method/1", "target": target(), "sha256": sha256});
    vec![manifest.to_string().into()]
}

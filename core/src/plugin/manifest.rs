use super::PluginKind;
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The file `libfoo.plugin.json` beside a library `libfoo.so`; checked before the library is opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's own name, such as `lora`.
    pub name: String,
    pub kind: PluginKind,
    /// The interface's id: `sparta.method/1`.
    pub abi: String,
    /// `x86_64-linux`: see [`target`].
    pub target: String,
    /// Hash of the library file, in hex.
    pub sha256: String,
}

/// Architecture and operating system of this build, as Rust names them: `x86_64-linux`, `aarch64-macos`.
pub fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

impl Manifest {
    /// The path of a library's manifest.
    pub fn path(library: &Path) -> PathBuf {
        library.with_extension("plugin.json")
    }

    /// The manifest of a library; `None` if it has none.
    pub fn read(library: &Path) -> Result<Option<Manifest>> {
        let path = Self::path(library);
        let bytes = match files::read(&path, files::CONFIGURATION) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path)(e)),
        };
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Plugin(format!("{}: not a plugin manifest: {e}", path.display())))?;
        Ok(Some(manifest))
    }

    /// Checks that the manifest describes this library, whose file is `bytes`, on this machine.
    pub fn check(&self, bytes: &[u8]) -> std::result::Result<(), String> {
        if self.target != target() {
            return Err(format!("the manifest says it is built for {}; this is {}", self.target, target()));
        }
        super::library::check_interface(&self.abi)?;
        if self.abi != self.kind.interface() {
            return Err(format!("the manifest says kind {} but abi {}", self.kind, self.abi));
        }
        let actual = sha256_hex(bytes);
        if !self.sha256.eq_ignore_ascii_case(&actual) {
            return Err(format!(
                "the file is not the one that the manifest describes: SHA-256 {actual}, the manifest says {}",
                self.sha256
            ));
        }
        Ok(())
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

//! No dependency needs a newer compiler than `rust-version` of `Cargo.toml` promises. `cargo deny` (`.ci/run`) checks
//! licences, sources and second versions.

use serde::Deserialize;
use std::path::Path;
use std::process::Command;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    rust_version: Option<String>,
}

impl Package {
    /// Major, minor and patch version of the oldest compiler that the package promises to support.
    fn rust(&self) -> [u32; 3] {
        let mut numbers = self.rust_version.iter().flat_map(|text| text.split('.')).map(|part| part.parse().unwrap());
        [(); 3].map(|()| numbers.next().unwrap_or(0))
    }
}

#[test]
fn no_dependency_needs_a_newer_compiler() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let args = ["metadata", "--format-version=1", "--locked", "--offline"];
    // Other platforms' packages are downloaded only by a build for them.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.args(args).args(["--filter-platform", host]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let packages = serde_json::from_slice::<Metadata>(&output.stdout).unwrap().packages;
    let promised = packages.iter().find(|package| package.name == "sparta-cli").unwrap().rust();
    assert!(promised > [1, 0, 0] && packages.len() > 100, "{promised:?}, {} packages", packages.len());
    for package in &packages {
        let Package { name, version, .. } = package;
        match package.source {
            None => assert_eq!(package.rust(), promised, "{name}: rust-version"),
            Some(_) => assert!(package.rust() <= promised, "{name} {version} needs Rust {:?}", package.rust_version),
        }
    }
}

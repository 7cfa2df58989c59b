//! The part of `cargo deny check licenses bans sources` that needs nothing but the sources: every dependency of this
//! platform has a licence that `deny.toml` allows, comes from the one registry, and has one version, or its others are named
//! there.

use serde::Deserialize;
use spdx::{Expression, ParseMode};
use std::collections::{BTreeMap, BTreeSet};
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
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    name: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn deny() -> Deny {
    toml::from_str(&std::fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap()
}

/// What is compiled for this platform.
fn packages() -> Vec<Package> {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let args = ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host];
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Metadata>(&output.stdout).unwrap().packages
}

#[test]
fn every_licence_is_allowed() {
    let allowed: BTreeSet<String> = deny().licenses.allow.into_iter().collect();
    let packages = packages();
    assert!(packages.len() > 100, "{} packages", packages.len());
    for package in packages {
        let text = package.license.unwrap_or_default();
        let expression = Expression::parse_mode(&text, ParseMode::LAX);
        let expression = expression.unwrap_or_else(|e| panic!("{}: {text:?}: {e}", package.name));
        let fine = expression.evaluate(|requirement| allowed.contains(&requirement.to_string()));
        assert!(fine, "{} {}: {text} is not among the licences of deny.toml", package.name, package.version);
    }
}

#[test]
fn every_dependency_comes_from_one_registry() {
    let mut sources = BTreeSet::new();
    for package in packages() {
        match package.source {
            None => assert!(package.name.starts_with("sparta-"), "{} is a directory", package.name),
            Some(source) => {
                assert!(source.starts_with("registry+"), "{} comes from {source}", package.name);
                sources.insert(source);
            }
        }
    }
    assert_eq!(sources.len(), 1, "{sources:?}");
}

#[test]
fn second_versions_are_known() {
    let known: BTreeSet<String> = deny().bans.skip.into_iter().map(|skip| skip.name).collect();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(package.name).or_default().push(package.version);
    }
    for (name, versions) in versions {
        let unknown: Vec<&String> = versions.iter().filter(|v| !known.contains(&format!("{name}@{v}"))).collect();
        assert!(unknown.len() <= 1, "{name} in versions {unknown:?}: agree on one, or name the others in deny.toml");
    }
}

//! The content of a release: only crates of crates.io, under licences that `deny.toml` allows, and nothing that is for
//! tests only.
//!
//! cargo-deny checks the same, and known vulnerabilities (`make deny`); but its build takes minutes, and its database
//! is on GitHub.
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

/// Returns the output of cargo in this crate's folder.
fn cargo(args: &[&str]) -> Vec<u8> {
    let ran = Command::new(env!("CARGO")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

fn allowed() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let deny: toml::Table = toml::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    deny["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn everything_built_in_is_under_a_licence_that_is_allowed() {
    let version = String::from_utf8(cargo(&["version", "--verbose"])).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // Only what this platform builds: all of that is here already.
    let metadata = cargo(&["metadata", "--locked", "--format-version", "1", "--filter-platform", host]);
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    let allowed = allowed();
    let is_allowed = |licence: &str| {
        let is_listed =
            |req: &LicenseReq| req.license.id().is_some_and(|id| allowed.iter().any(|name| name == id.name));
        Expression::parse_mode(licence, ParseMode::LAX).is_ok_and(|expression| expression.evaluate(is_listed))
    };
    assert!(is_allowed("MIT/Apache-2.0") && !is_allowed("GPL-3.0-only") && !is_allowed("MIT AND GPL-3.0-only"));
    let packages = metadata["packages"].as_array().unwrap();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(is_allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(packages.len() > 100, "{} packages", packages.len());
    assert_eq!(refused, Vec::<String>::new(), "deny.toml does not allow these");
}

#[test]
fn every_crate_is_of_crates_io_and_has_a_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| toml::from_str::<toml::Table>(&std::fs::read_to_string(root.join(file)).unwrap()).unwrap();
    let lock = read("Cargo.lock");
    let sources = lock["package"].as_array().unwrap().iter().filter_map(|package| package.get("source"));
    let sources: BTreeSet<&str> = sources.map(|source| source.as_str().unwrap()).collect();
    assert_eq!(sources, BTreeSet::from(["registry+https://github.com/rust-lang/crates.io-index"]));

    for file in ["Cargo.toml", "model/Cargo.toml", "simulator/Cargo.toml"] {
        let manifest = read(file);
        let sections = ["dependencies", "dev-dependencies", "build-dependencies"];
        let of_targets = manifest.get("target").into_iter().flat_map(|all| all.as_table().unwrap().values());
        let tables = of_targets.map(|target| target.as_table().unwrap()).chain([&manifest]);
        let all = tables.flat_map(|table| sections.iter().filter_map(|section| table.get(*section)));
        let all = all.flat_map(|all| all.as_table().unwrap());
        for (name, wanted) in all {
            let version = wanted.as_str().or_else(|| wanted.get("version").and_then(toml::Value::as_str));
            let is_ours = wanted.get("path").is_some();
            assert!(is_ours || version.is_some_and(|version| !version.contains('*')), "{file}: {name} = {wanted}");
        }
    }
}

/// The tests build `test-util` into the same dependencies, and the simulator builds the library with `simulation`.
#[test]
fn a_release_has_no_part_of_the_simulator() {
    let args = ["tree", "--locked", "--package", "samovar", "--prefix", "none", "--format", "{p} {f}", "--edges"];
    let features = |edges: &str, package: &str| {
        let tree = String::from_utf8(cargo(&[&args[..], &[edges]].concat())).unwrap();
        let line = tree.lines().find(|line| line.starts_with(package)).unwrap_or_else(|| panic!("{package}: {tree}"));
        line.trim_end_matches(" (*)").rsplit_once(' ').unwrap().1.to_owned()
    };
    let has = |edges, package, feature| features(edges, package).split(',').any(|name| name == feature);
    assert!(has("no-dev", "samovar v", "worker") && has("no-dev", "tokio v", "rt-multi-thread"));
    assert!(has("all", "tokio v", "test-util"), "the simulator's dependencies are no longer those of the tests");
    assert!(!has("no-dev", "tokio v", "test-util"));
    assert!(!has("no-dev", "samovar v", "simulation"));
}

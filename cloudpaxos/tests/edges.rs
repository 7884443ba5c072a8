//! What the architecture forbids, checked against cargo's own view of the workspace: dependencies
//! point down only, consensus and storage know no async runtime, and the deterministic crates cannot
//! even reach a source of randomness.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// From the top. A crate may depend on those behind it only.
const LAYERS: [&str; 8] = ["cloudpaxos", "gateway", "node", "shardmaster", "shardkv", "paxos", "wal", "proto"];
/// Tests and tools: they may depend on anything, nothing of the product on them.
const TOOLS: [&str; 4] = ["bench", "checkers", "sim", "e2e"];

const RUNTIMES: [&str; 9] =
    ["tokio", "async-std", "smol", "async-executor", "futures-executor", "mio", "hyper", "h2", "tonic"];
const RANDOMNESS: [&str; 3] = ["rand", "getrandom", "fastrand"];
const ROCKS: [&str; 2] = ["rocksdb", "librocksdb-sys"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).current_dir(root()).args(arguments).output().expect("cargo runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// Every crate of the workspace with the crates of the workspace that it names (not for tests).
fn workspace_edges() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1", "--offline"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages is a list");
    let text = |value: &Value| value.as_str().expect("names are texts").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies is a list");
            let own = dependencies.iter().filter(|dependency| dependency["path"].is_string());
            let own = own.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
            (text(&package["name"]), own.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

/// All crates that end up in `package` when it is built alone, with these extra arguments.
fn reached(package: &str, arguments: &[&str]) -> BTreeSet<String> {
    let mut words =
        vec!["tree", "--offline", "-e", "normal,no-proc-macro", "--prefix", "none", "-f", "{p}", "-p", package];
    words.extend(arguments);
    cargo(&words).lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn assert_unreached(package: &str, arguments: &[&str], forbidden: &[&str]) {
    let reached = reached(package, arguments);
    assert!(reached.contains(package), "cargo tree says nothing of {package}: {reached:?}");
    let found: Vec<_> = forbidden.iter().filter(|name| reached.contains(**name)).collect();
    assert!(
        found.is_empty(),
        "{package} {arguments:?} must not reach {found:?}: see `cargo tree -p {package} -i <crate>`"
    );
}

#[test]
fn every_crate_has_its_place() {
    let known: BTreeSet<_> = LAYERS.iter().chain(&TOOLS).map(|name| (*name).to_owned()).collect();
    let present: BTreeSet<_> = workspace_edges().into_keys().collect();
    assert_eq!(present, known, "a crate came or went: give it a place in LAYERS or TOOLS");
}

#[test]
fn dependencies_point_down() {
    let edges = workspace_edges();
    for (above, name) in LAYERS.iter().enumerate() {
        for dependency in &edges[*name] {
            let below = LAYERS.iter().position(|layer| layer == dependency);
            assert!(below.is_some_and(|below| below > above), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn the_lowest_crates_depend_on_none_of_ours() {
    let edges = workspace_edges();
    for name in ["paxos", "wal", "proto"] {
        assert!(edges[name].is_empty(), "{name} must not depend on {:?}", edges[name]);
    }
}

#[test]
fn consensus_and_storage_reach_no_async_runtime() {
    assert_unreached("wal", &["--all-features"], &RUNTIMES);
    assert_unreached("paxos", &["--all-features"], &RUNTIMES);
    assert_unreached("shardmaster", &["--all-features"], &RUNTIMES);
    assert_unreached("shardkv", &["--all-features"], &RUNTIMES);
}

#[test]
fn deterministic_crates_reach_no_randomness() {
    for package in ["paxos", "shardmaster", "shardkv"] {
        assert_unreached(package, &[], &RANDOMNESS);
    }
    for package in ["gateway", "node"] {
        assert_unreached(package, &["--no-default-features"], &RANDOMNESS);
    }
}

#[test]
fn the_machines_and_the_simulator_build_without_runtime_and_rocksdb() {
    let forbidden: Vec<&str> = RUNTIMES.iter().chain(&ROCKS).copied().collect();
    for package in ["gateway", "node"] {
        assert_unreached(package, &["--no-default-features"], &forbidden);
    }
    for package in ["shardkv", "shardmaster", "sim", "checkers"] {
        assert_unreached(package, &[], &forbidden);
    }
}

/// The tests above prove nothing if the view is empty.
#[test]
fn the_check_sees_what_is_there() {
    assert!(reached("node", &[]).is_superset(&["tokio", "rocksdb", "paxos"].map(str::to_owned).into()));
    assert!(reached("cloudpaxos", &[]).contains("rand"));
}

//! What an operator does by the command line, for tests in which nodes and groups come and go.

use crate::cluster::Cluster;
use crate::process::Process;
use crate::system::System;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs the binary to its end; what it says.
///
/// # Panics
/// If it is not there.
pub fn run(words: &[&str]) -> Result<String, String> {
    let binary = System::Cloudpaxos.binary().expect("the binary is built");
    let output = Command::new(binary).args(words).output().expect("it runs");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The command line of a node that joins, by its ports for clients and for nodes.
fn joining(cluster: &Cluster, name: &str, data: &Path, (client, peer): (u16, u16)) -> Vec<OsString> {
    let first = cluster.member(0);
    let token = format!("e2e-{}", first.data.parent().expect("below the cluster's").display());
    let members: Vec<String> = cluster
        .numbers()
        .into_iter()
        .map(|number| format!("{}=127.0.0.1:{}", cluster.member(number).name, cluster.member(number).peer_port))
        .collect();
    let words = [
        ("--name", name.to_owned()),
        ("--data-dir", data.display().to_string()),
        ("--initial-cluster", members.join(",")),
        ("--cluster-token", token),
        ("--listen-client", format!("127.0.0.1:{client}")),
        ("--listen-peer", format!("127.0.0.1:{peer}")),
        ("--advertise-peer", format!("127.0.0.1:{peer}")),
    ];
    let words = words.into_iter().flat_map(|(option, value)| [option.into(), value.into()]);
    ["start".into(), "--join".into()].into_iter().chain(words).collect()
}

/// Starts a node that joins.
///
/// # Panics
/// If it does not start.
pub fn start(cluster: &Cluster, name: &str, data: &Path, ports: (u16, u16)) -> Process {
    start_with(cluster, name, data, ports, &[])
}

/// The same, with further options.
///
/// # Panics
/// If it does not start.
pub fn start_with(cluster: &Cluster, name: &str, data: &Path, ports: (u16, u16), options: &[&str]) -> Process {
    let binary = System::Cloudpaxos.binary().expect("the binary is built");
    let mut words = joining(cluster, name, data, ports);
    words.extend(options.iter().map(OsString::from));
    Process::start(name, &binary, &words, &data.with_extension("log")).expect("it starts")
}

/// Asks again until the answer, which is JSON, is right.
///
/// # Panics
/// If it takes too long.
pub async fn await_answer(words: &[&str], what: &str, right: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let said = tokio::task::block_in_place(|| run(words));
        let told = said.as_deref().map(|said| serde_json::from_str(said).unwrap_or_default());
        if told.as_ref().is_ok_and(&right) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {said:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The members of each group, by their numbers, from what `groups list` answers.
pub fn members(listed: &serde_json::Value) -> Vec<Vec<u64>> {
    let groups = listed["groups"].as_array().cloned().unwrap_or_default();
    let numbers = |group: &serde_json::Value| group["members"].as_array().cloned().unwrap_or_default();
    groups.iter().map(|group| numbers(group).iter().filter_map(serde_json::Value::as_u64).collect()).collect()
}

/// Waits until a node has joined.
///
/// # Panics
/// If it takes too long.
pub async fn await_node(endpoint: &str, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let listed = run(&["nodes", "list", "--endpoints", endpoint]).unwrap_or_default();
        if listed.lines().any(|line| line.contains(&format!(" {name} ")) && line.contains("alive")) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} has not joined:\n{listed}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until a value is read by way of one node.
///
/// # Panics
/// If it takes too long.
pub async fn await_value(address: &str, key: &str, value: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let said = run(&["kv", "get", key, "--endpoints", address]);
        if said.as_ref().is_ok_and(|said| said.contains(value)) {
            return;
        }
        assert!(Instant::now() < deadline, "{address} does not answer: {said:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

//! Where replicas lie, and how many: zones, and groups of one, three and five.

use e2e::cluster::{Cluster, Start, free_ports};
use e2e::operator::{await_answer, await_node, await_value, members, run, start_with};
use e2e::process::Process;
use e2e::system::{Layout, System};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const N3: usize = 2;
/// Of n1, n2 and n3, which form the cluster, and of n4 and n5, which join it.
const ZONES: [&str; 5] = ["a", "b", "c", "b", "a"];

/// Five nodes in three zones, and n1's address for clients.
struct Zoned {
    cluster: Cluster,
    joined: Vec<Process>,
    ports: Vec<u16>,
    address: String,
}

impl Zoned {
    async fn start(parent: &Path) -> Zoned {
        let zone = |name: &str| ZONES[usize::from(name.as_bytes()[1] - b'1')];
        let how = |member: &e2e::system::Member| Start {
            options: vec![("--zone", zone(&member.name).into())],
            ..Start::default()
        };
        let cluster = Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, parent, how).await.expect("a cluster");
        let ports = free_ports(4).expect("four free ports");
        let address = cluster.endpoint(0).expect("it serves").trim_start_matches("http://").to_owned();
        let mut zoned = Zoned { cluster, joined: Vec::new(), ports, address };
        zoned.join(parent).await;
        zoned
    }

    /// Starts n4 and n5, for the first time or again; one after the other, because numbers are given as nodes come.
    async fn join(&mut self, parent: &Path) {
        for (number, name) in ["n4", "n5"].into_iter().enumerate() {
            let ports = (self.ports[2 * number], self.ports[2 * number + 1]);
            let options = ["--zone", ZONES[3 + number]];
            self.joined.push(start_with(&self.cluster, name, &parent.join(name), ports, &options));
            await_node(&self.address, name).await;
        }
    }

    fn well(&self, words: &[&str]) -> String {
        let said = tokio::task::block_in_place(|| run(&[words, &["--endpoints", &self.address]].concat()));
        said.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// By group, from the shardmaster's on.
    fn members(&self) -> Vec<Vec<u64>> {
        members(&serde_json::from_str(&self.well(&["groups", "list", "-o", "json"])).expect("it is JSON"))
    }

    /// Waits until a group has the shard that begins with a key.
    async fn await_owner(&self, start: &str, group: u64) {
        let words = ["shards", "list", "-o", "json", "--endpoints", &self.address];
        let owns = |listed: &Value| {
            let shards = listed["shards"].as_array().cloned().unwrap_or_default();
            shards.iter().any(|shard| shard["group"] == group && shard["start"] == start)
        };
        await_answer(&words, &format!("group {group} does not get {start}"), owns).await;
    }
}

fn zones(nodes: &[u64]) -> BTreeSet<&'static str> {
    nodes.iter().map(|node| ZONES[*node as usize - 1]).collect()
}

/// n4 would do as well, but for its zone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_a_place_stands_in_the_zone_that_it_leaves_empty() {
    let parent = tempfile::tempdir().expect("a directory");
    let zoned = Zoned::start(parent.path()).await;
    let said = zoned.well(&["nodes", "drain", "n1"]);
    assert!(said.contains("holds no replicas"), "{said}");
    let groups = zoned.members();
    assert!(groups.len() == 3 && groups.iter().all(|nodes| nodes == &[2, 3, 5]), "{groups:?}");

    zoned.well(&["nodes", "drain", "n1", "--undo"]);
    zoned.well(&["groups", "create"]);
    let groups = zoned.members();
    assert!(groups.len() == 4 && groups.iter().all(|nodes| nodes.len() == 3), "{groups:?}");
    assert!(groups.iter().all(|nodes| zones(nodes).len() == 3), "{groups:?}");
}

/// A group of one loses nothing by kill -9; it grows to three and five, of which any two may be lost, and shrinks back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_grows_to_five_and_shrinks_back() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut zoned = Zoned::start(parent.path()).await;
    zoned.well(&["groups", "create", "--node", "n3"]);
    zoned.well(&["balance", "pin", "/one/", "4"]);
    zoned.await_owner("/one/", 4).await;
    zoned.well(&["kv", "put", "/one/key", "alone"]);
    zoned.cluster.kill(N3).expect("kill -9");
    zoned.cluster.launch(N3).expect("it starts");
    await_value(&zoned.address, "/one/key", "alone").await;

    for node in ["n1", "n2", "n4", "n5"] {
        zoned.well(&["groups", "add", "4", node]);
    }
    assert_eq!(zoned.members()[3], [1, 2, 3, 4, 5]);
    zoned.joined.drain(..).try_for_each(Process::kill).expect("kill -9");
    zoned.well(&["kv", "put", "/one/key", "three of five"]);
    await_value(&zoned.address, "/one/key", "three of five").await;

    zoned.join(parent.path()).await;
    for node in ["n3", "n2", "n1", "n4"] {
        zoned.well(&["groups", "remove", "4", node]);
    }
    assert_eq!(zoned.members()[3], [5]);
    zoned.cluster.kill(N3).expect("kill -9");
    await_value(&zoned.address, "/one/key", "three of five").await;
    zoned.well(&["kv", "put", "/one/key", "alone again"]);
    await_value(&zoned.address, "/one/key", "alone again").await;
}

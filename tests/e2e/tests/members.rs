//! Replicas and nodes come and go under load, and clients notice nothing: a node joins, takes the places of
//! others in every group (the shardmaster's among them), one is drained and forgotten, one loses its disk.

use e2e::append::Appenders;
use e2e::cluster::{Cluster, free_ports};
use e2e::operator::{await_node, await_value, run, start, start_with};
use e2e::process::Process;
use e2e::system::{Layout, System};
use std::time::{Duration, Instant};

/// How long writes may be held up at most by one change.
const STALL_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_and_no_request_fails() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, parent.path()).await.expect("a cluster");
    let ports = free_ports(4).expect("four free ports");
    let third = cluster.endpoint(2).expect("it serves clients");
    let address = third.trim_start_matches("http://").to_owned();
    let clients = Appenders::start(std::slice::from_ref(&third), 8);
    let well = |words: &[&str]| {
        let said = run(&[words, &["--endpoints", &address]].concat());
        said.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };

    let n4 = parent.path().join("n4");
    let _n4 = start(&cluster, "n4", &n4, (ports[0], ports[1]));
    await_node(&address, "n4").await;
    for (group, old) in [("2", "n1"), ("3", "n2"), ("1", "n3")] {
        let said = tokio::task::block_in_place(|| well(&["groups", "replace", group, old, "n4"]));
        assert!(said.contains("n4") && !said.contains(old), "{said}");
    }

    // n1 is emptied and forgotten, and ends by itself; it does not come back, with its directory or without.
    let said = tokio::task::block_in_place(|| well(&["nodes", "drain", "n1"]));
    assert!(said.contains("holds no replicas"), "{said}");
    well(&["nodes", "remove", "n1"]);
    for again in ["removed while it runs", "with its old directory", "with an empty one"] {
        let (status, told) = tokio::task::block_in_place(|| cluster.wait_exit(0)).expect(again);
        assert!(!status.success() && told.contains("was removed from this cluster"), "{again}: {told}");
        if again == "with its old directory" {
            std::fs::remove_dir_all(&cluster.member(0).data).expect("it was there");
        }
        if again != "with an empty one" {
            cluster.launch(0).expect("it is started");
        }
    }

    // n2 loses its disk: under its old name it is refused, and another node takes its places.
    cluster.kill(1).expect("kill -9");
    std::fs::remove_dir_all(&cluster.member(1).data).expect("it was there");
    cluster.launch(1).expect("it is started");
    let (status, told) = tokio::task::block_in_place(|| cluster.wait_exit(1)).expect("it ends by itself");
    assert!(!status.success() && told.contains("another data directory"), "{told}");
    let n5 = parent.path().join("n5");
    let _n5 = start(&cluster, "n5", &n5, (ports[2], ports[3]));
    await_node(&address, "n5").await;
    tokio::task::block_in_place(|| well(&["nodes", "drain", "n2"]));
    let before = clients.done();
    let deadline = Instant::now() + Duration::from_secs(30);
    while clients.done() < before + 200 {
        assert!(Instant::now() < deadline, "writes do not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (appends, longest) = clients.finish().await;
    eprintln!("{appends} appends, the longest took {longest:?}");
    assert!(longest < STALL_MAX, "{longest:?}");
    let groups = well(&["groups", "list"]);
    assert!(!groups.contains("n1") && !groups.contains("n2"), "{groups}");
}

/// Waits until a group has shards, or has none and is gone.
async fn await_shards(address: &str, group: u64) {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let listed = run(&["groups", "list", "-o", "json", "--endpoints", address]).unwrap_or_default();
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
        let groups = listed["groups"].as_array().cloned().unwrap_or_default();
        let shards = groups.iter().find(|it| it["group"] == group).and_then(|it| it["shards"].as_u64());
        if shards.is_some_and(|shards| shards > 0) {
            return;
        }
        assert!(Instant::now() < deadline, "group {group} gets no shards: {listed}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Three nodes with two groups grow to five with four, and shrink back, by the commands that an operator would type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_and_no_request_fails() {
    let parent = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, parent.path()).await.expect("a cluster");
    let ports = free_ports(4).expect("four free ports");
    let third = cluster.endpoint(2).expect("it serves clients");
    let address = third.trim_start_matches("http://").to_owned();
    let clients = Appenders::start(std::slice::from_ref(&third), 8);
    let well = |words: &[&str]| {
        let said = run(&[words, &["--endpoints", &address]].concat());
        said.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };

    let began = Instant::now();
    let _n4 = start(&cluster, "n4", &parent.path().join("n4"), (ports[0], ports[1]));
    let _n5 = start(&cluster, "n5", &parent.path().join("n5"), (ports[2], ports[3]));
    await_node(&address, "n4").await;
    await_node(&address, "n5").await;
    for (group, nodes) in [("4", ["n1", "n4", "n5"]), ("5", ["n2", "n4", "n5"])] {
        let [a, b, c] = nodes;
        let create = ["groups", "create", "--node", a, "--node", b, "--node", c];
        let said = tokio::task::block_in_place(|| well(&create));
        // In the order of their numbers: whoever joined first.
        let all = nodes.iter().all(|node| said.contains(node));
        assert!(all && said.contains(&format!("group {group} has the members")), "{said}");
    }
    await_shards(&address, 4).await;
    await_shards(&address, 5).await;
    let grown = began.elapsed();
    for group in ["4", "5"] {
        let said = tokio::task::block_in_place(|| well(&["groups", "empty", group]));
        assert!(said.contains("has no shards"), "{said}");
        let deadline = Instant::now() + Duration::from_secs(30);
        // Its last shard may still be on its way to be dropped.
        while let Err(why) = run(&["groups", "delete", group, "--endpoints", &address]) {
            assert!(Instant::now() < deadline, "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for node in ["n4", "n5"] {
        tokio::task::block_in_place(|| well(&["nodes", "drain", node]));
        well(&["nodes", "remove", node]);
    }
    let (appends, longest) = clients.finish().await;
    eprintln!(
        "grown after {grown:.1?}, back after {:.1?}; {appends} appends, the longest {longest:?}",
        began.elapsed()
    );
    assert!(longest < STALL_MAX, "{longest:?}");
    let groups = well(&["groups", "list"]);
    assert!(!groups.contains("n4") && !groups.contains("n5"), "{groups}");
}

/// All nodes that formed the cluster are replaced: those that came later start again without them, and further ones
/// join by being told of one that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_formed_the_cluster_may_all_go() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, parent.path()).await.expect("a cluster");
    let ports = free_ports(8).expect("eight free ports");
    let data = |name: &str| parent.path().join(name);
    let at = |number: usize| (ports[2 * number], ports[2 * number + 1]);
    let later = |number: usize, cluster: &Cluster| {
        let name = format!("n{}", number + 4);
        start(cluster, &name, &data(&name), at(number))
    };
    let mut joined: Vec<Process> = (0..3).map(|number| later(number, &cluster)).collect();
    let address = format!("127.0.0.1:{}", ports[0]);
    let well = |words: &[&str]| {
        let said = run(&[words, &["--endpoints", &address]].concat());
        said.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };
    for name in ["n4", "n5", "n6"] {
        await_node(&address, name).await;
    }
    well(&["kv", "put", "kept", "all along"]);
    for (number, name) in ["n1", "n2", "n3"].into_iter().enumerate() {
        let said = tokio::task::block_in_place(|| well(&["nodes", "drain", name]));
        assert!(said.contains("holds no replicas"), "{said}");
        well(&["nodes", "remove", name]);
        tokio::task::block_in_place(|| cluster.wait_exit(number)).expect("it ends by itself");
    }
    // Of the shardmaster's group one member is enough here: the two others must find it.
    for name in ["n5", "n6"] {
        tokio::task::block_in_place(|| well(&["groups", "remove", "1", name]));
    }

    joined.drain(..).try_for_each(Process::kill).expect("kill -9");
    let _joined: Vec<Process> = (0..3).map(|number| later(number, &cluster)).collect();
    for (client, _) in (0..3).map(at) {
        await_value(&format!("127.0.0.1:{client}"), "kept", "all along").await;
    }

    let known = ["--known-nodes", &format!("127.0.0.1:{}", ports[1])];
    let _n7 = start_with(&cluster, "n7", &data("n7"), at(3), &known);
    await_node(&address, "n7").await;
    await_value(&format!("127.0.0.1:{}", ports[6]), "kept", "all along").await;
}

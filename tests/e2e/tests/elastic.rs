//! Everything at once: shards move at random, while a group comes, is emptied and loses all its nodes, and a node that
//! loses its disk is replaced by the cluster itself. Eleven clients append to keys of their own and read them back: no
//! request fails, none is lost or done twice, no read is stale.

use e2e::append::Appenders;
use e2e::client::channel;
use e2e::cluster::{Cluster, Start, free_ports};
use e2e::mover::{await_rest, keep_moving};
use e2e::operator::{await_answer, await_node, members, run, start};
use e2e::process::Process;
use e2e::system::{Layout, System};
use proto::admin::admin_client::AdminClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 11;
/// A node that is silent for so long is replaced.
const DEAD_AFTER_SECONDS: &str = "6";
/// How long shards move about between two events.
const MOVING: Duration = Duration::from_secs(3);
/// How long an append and its reading may be held up at most, an election included.
const STALL_MAX: Duration = Duration::from_secs(5);
const N1: usize = 0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_emptied_and_killed_and_a_lost_node_is_replaced_while_shards_move() {
    let parent = tempfile::tempdir().expect("a directory");
    let options = || vec![("--dead-after-seconds", DEAD_AFTER_SECONDS.into())];
    let how = |_: &_| Start { options: options(), ..Start::default() };
    let started = Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, parent.path(), how).await;
    let mut cluster = started.expect("a cluster");
    let third = cluster.endpoint(2).expect("it serves clients");
    let address = third.trim_start_matches("http://").to_owned();
    let well = |words: &[&str]| {
        let said = tokio::task::block_in_place(|| run(&[words, &["--endpoints", &address]].concat()));
        said.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    };
    let list = ["groups", "list", "-o", "json", "--endpoints", &address];
    let ports = free_ports(6).expect("six free ports");
    let names = ["n4", "n5", "n6"];
    let join = |number: usize, cluster: &Cluster| {
        let (name, ports) = (names[number], (ports[2 * number], ports[2 * number + 1]));
        start(cluster, name, &parent.path().join(name), ports)
    };
    let mut later: Vec<Process> = (0..3).map(|number| join(number, &cluster)).collect();
    for name in names {
        await_node(&address, name).await;
    }
    // n1's own clients would miss it.
    let clients = Appenders::start(&cluster.endpoints()[1..], CLIENTS);
    well(&["groups", "create", "--node", "n4", "--node", "n5", "--node", "n6"]);
    let mut admin = AdminClient::new(channel(&third));
    let enough = Arc::new(AtomicBool::new(false));
    let mover = tokio::spawn(keep_moving(admin.clone(), 3, enough.clone()));
    tokio::time::sleep(MOVING).await;

    // Nobody misses a group that has no shards any more.
    let said = well(&["groups", "empty", "4"]);
    assert!(said.contains("has no shards"), "{said}");
    later.drain(..).try_for_each(Process::kill).expect("kill -9");
    tokio::time::sleep(MOVING).await;
    later.extend((0..3).map(|number| join(number, &cluster)));

    // Nobody tells the cluster that n1 is lost.
    cluster.kill(N1).expect("kill -9");
    std::fs::remove_dir_all(&cluster.member(N1).data).expect("it was there");
    await_answer(&list, "n1 is not replaced", |listed| {
        let members = members(listed);
        members.len() == 4 && members.iter().all(|nodes| nodes.len() == 3 && !nodes.contains(&1))
    })
    .await;
    well(&["nodes", "remove", "n1"]);
    tokio::time::sleep(MOVING).await;

    enough.store(true, Ordering::Relaxed);
    let moves = mover.await.expect("the mover ends");
    await_rest(&mut admin).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    // Its last shard may still be on its way to be dropped.
    while let Err(why) = tokio::task::block_in_place(|| run(&["groups", "delete", "4", "--endpoints", &address])) {
        assert!(Instant::now() < deadline, "{why}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (appends, longest) = clients.finish().await;
    eprintln!("{moves} changes, {appends} appends, the longest took {longest:?}");
    assert!(moves > 30 && appends > 1_000, "{moves} changes, {appends} appends");
    assert!(longest < STALL_MAX, "{longest:?}");
}

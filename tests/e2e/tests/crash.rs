//! Bounded slices of `e2e crash`, `failover` and `smoke` against the built binary. Without the binary
//! they fail and say so: a test that skips itself protects nothing.

use e2e::crash::{self, Config};
use e2e::system::{Layout, System};
use e2e::{failover, smoke};
use std::time::Duration;

fn config(layout: Layout, seed: u64, directory: &tempfile::TempDir) -> Config {
    Config {
        system: System::Cloudpaxos,
        layout,
        rounds: 5,
        round: Duration::from_secs(4),
        clients: 8,
        keys: 24,
        watches: 2,
        log: true,
        seed,
        directory: directory.path().to_owned(),
    }
}

/// On success the directory goes away; on failure it stays, with data, logs and history.
async fn passes(config: Config, directory: tempfile::TempDir) {
    if let Err(error) = crash::run(&config).await {
        panic!("{error}\nkept: {}", directory.keep().display());
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[tokio::test]
async fn crashes_of_nodes_that_do_everything() {
    let directory = directory();
    passes(config(Layout::AllRoles, 1, &directory), directory).await;
}

#[tokio::test]
async fn crashes_behind_gateways() {
    let directory = directory();
    passes(config(Layout::Gateways, 2, &directory), directory).await;
}

#[tokio::test]
async fn basics_of_the_api() {
    for layout in [Layout::AllRoles, Layout::Gateways] {
        let directory = directory();
        if let Err(error) = smoke::run(System::Cloudpaxos, layout, directory.path().to_owned()).await {
            panic!("{layout:?}: {error}");
        }
    }
}

/// The bound is loose, for slow machines; `e2e failover` measures.
#[tokio::test]
async fn writes_go_on_after_the_leader_is_killed() {
    let directory = directory();
    let outages = failover::run(System::Cloudpaxos, 3, directory.path().to_owned()).await.expect("three failovers");
    assert!(outages.longest() < Duration::from_secs(10), "{outages:?}");
}

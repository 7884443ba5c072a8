//! A hot range on one of four groups is spread by the cluster itself, and no request fails.

use e2e::balancing;
use std::time::Duration;

/// The bar is 60 s, on a machine with nothing else to do (`e2e balance`); here other tests run beside this one.
const LIMIT: Duration = Duration::from_secs(150);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_range_is_spread() {
    let parent = tempfile::tempdir().expect("a directory");
    let seen = balancing::run(4, LIMIT, parent.path()).await.expect("a cluster");
    for (at, requests, spread) in &seen.looks {
        eprintln!("{at:.1?} {requests:?} differ by {:.0} %", spread * 100.0);
    }
    assert_eq!(seen.failed, 0, "of {} requests, the longest {:?}", seen.answered, seen.longest);
    assert!(seen.after.is_some(), "it is not spread after {LIMIT:?}, over {} shards", seen.shards);
    assert!(seen.shards > 8, "{} shards", seen.shards);
}

//! Hosts are cut off from one another, in both directions, in one, and in such a way that few can lead: clients that
//! append and read their own keys notice a pause, no more.

use e2e::partition;
use std::time::Duration;

/// A cut lasts so long, and its mending as long.
const LENGTH: Duration = Duration::from_secs(3);
/// The bar is 2 s, for a machine that does nothing else (`e2e partition`); here other tests run beside.
const OUTAGE_MAX: Duration = Duration::from_secs(5);

#[tokio::test]
async fn whoever_can_lead_takes_over_and_no_request_fails() {
    let parent = tempfile::tempdir().expect("a directory");
    let Some(seen) = partition::run(&partition::SHAPES, 1, LENGTH, parent.path()).await.expect("a run") else { return };
    eprintln!("{seen:#?}");
    assert!(seen.appends > 500, "{}", seen.appends);
    for seen in &seen.seen {
        assert!(seen.cut < OUTAGE_MAX && seen.mended < OUTAGE_MAX, "{seen:?}");
    }
}

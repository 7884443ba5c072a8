//! Hosts are cut off from one another, in both directions, in one, and in such a way that few can lead: clients that
//! append and read their own keys notice a pause, no more.

use e2e::partition::{self, Cuts, Partitions, Shape};
use std::time::Duration;

/// A cut lasts so long, and its mending as long.
const LENGTH: Duration = Duration::from_secs(3);
/// The bar is 2 s, for a machine that does nothing else (`e2e partition`); here other tests run beside.
const OUTAGE_MAX: Duration = Duration::from_secs(5);

/// What was seen, where hosts can be cut off.
async fn cut(shapes: &[Shape], moving: bool) -> Option<Partitions> {
    let parent = tempfile::tempdir().expect("a directory");
    let cuts = Cuts { shapes: shapes.to_vec(), rounds: 1, length: LENGTH, moving };
    let seen = partition::run(&cuts, parent.path()).await.expect("a run")?;
    eprintln!("{seen:#?}");
    assert!(seen.appends > 500, "{}", seen.appends);
    for seen in &seen.seen {
        assert!(seen.cut < OUTAGE_MAX && seen.mended < OUTAGE_MAX, "{seen:?}");
    }
    Some(seen)
}

#[tokio::test]
async fn whoever_can_lead_takes_over_and_no_request_fails() {
    drop(cut(&partition::SHAPES, false).await);
}

/// Moves go on, or are held up, while the leader of one of their groups is cut off.
#[tokio::test]
async fn shards_move_while_hosts_are_cut_off_and_no_request_fails() {
    if let Some(seen) = cut(&[Shape::Alone, Shape::Mute, Shape::Chain], true).await {
        assert!(seen.changes > 10, "{} changes", seen.changes);
    }
}

//! A watch delivers every change of its range once, in order, and never claims more.
//!
//! After an answer with changes a client holds everything up to the last of them; after a progress
//! mark, everything up to its header. So each delivery has to lie above all that was claimed
//! before, and at the end nothing known below the last claim may be missing. All changes of one
//! revision come in one answer.

use crate::history::{WatchAnswer, WatchLog};
use crate::timeline::Timeline;
use crate::{Change, History, Key, Revision, Value, Violation};
use std::collections::BTreeMap;

/// Checks every watch of the history against the timeline.
pub fn check(history: &History, timeline: &Timeline) -> Vec<Violation> {
    history.watches.iter().enumerate().flat_map(|(watch, log)| check_one(watch, log, timeline)).collect()
}

fn check_one(watch: usize, log: &WatchLog, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut delivered: BTreeMap<(Revision, &Key), &Option<Value>> = BTreeMap::new();
    let mut reached = log.from.prev();
    for WatchAnswer { header, changes } in &log.answers {
        let mut last = reached;
        for (position, Change { revision, key, value }) in changes.iter().enumerate() {
            let rises = if position == 0 { *revision > last } else { *revision >= last };
            let inside = *key >= log.start && *key < log.end;
            let again = delivered.insert((*revision, key), value).is_some();
            if !rises || !inside || again || *revision <= reached || revision > header {
                let (key, revision) = (key.clone(), *revision);
                violations.push(Violation::WatchOutOfOrder { watch, key, revision, reached: last });
            }
            last = last.max(*revision);
        }
        reached = if changes.is_empty() { reached.max(*header) } else { last };
    }
    for (key, versions) in timeline.range(&log.start, &log.end) {
        for (revision, version) in versions.range(log.from..) {
            if *revision > reached {
                break;
            }
            if delivered.get(&(*revision, key)) != Some(&&version.value) {
                let (key, revision) = (key.clone(), *revision);
                violations.push(Violation::WatchMissed { watch, key, revision, up_to: reached });
            }
        }
    }
    violations
}

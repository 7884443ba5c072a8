//! Every acknowledged write is kept at its revision.
//!
//! Reads (the final one over everything included) are judged by [`crate::snapshot`]. This module
//! judges the store's own log of changes, where a history has one: from its first revision on it has to contain every
//! write that was acknowledged or seen by anybody, each once, in the order of revisions. That no change
//! in it is unexplained, and none the second effect of one request, is found by
//! [`crate::timeline`] and, for deletions, by [`crate::snapshot`].

use crate::timeline::Timeline;
use crate::{Change, History, Key, Revision, Value, Violation};
use std::collections::BTreeMap;

/// Compares the log of changes with everything that clients know; nothing without a log.
pub fn check(history: &History, timeline: &Timeline) -> Vec<Violation> {
    let Some(log) = &history.log else { return Vec::new() };
    let mut violations = Vec::new();
    let mut logged: BTreeMap<(Revision, &Key), &Option<Value>> = BTreeMap::new();
    let mut before = Revision(0);
    for Change { revision, key, value } in &log.changes {
        let repeated = logged.insert((*revision, key), value).is_some();
        if repeated || *revision < before {
            violations.push(Violation::LogOutOfOrder { key: key.clone(), revision: *revision, before });
        }
        before = before.max(*revision);
    }
    for (key, versions) in timeline.keys() {
        for (revision, version) in versions.range(log.from..) {
            if logged.get(&(*revision, key)) != Some(&&version.value) {
                let (key, revision, writer) = (key.clone(), *revision, version.writer);
                violations.push(Violation::NotInLog { key, revision, writer });
            }
        }
    }
    violations
}

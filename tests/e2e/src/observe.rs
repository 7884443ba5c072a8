//! What the store itself tells of its changes: watches during a run, and the whole log after it.

use crate::HarnessError;
use crate::client::{channel, revision};
use bytes::Bytes;
use checkers::{Change, Key, Revision, Value, WatchAnswer, WatchLog};
use futures_util::{StreamExt, stream};
use proto::etcdserverpb as pb;
use proto::mvccpb::event::EventType;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status};

/// How long a watch may lag behind the last write once the cluster is whole.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
/// The pause before a broken watch is opened anew.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// The range of the watches: every key of a [`crate::workload::Keyspace`].
const START: [u8; 1] = [1];
const END: [u8; 1] = [0xff];

/// Follows all changes from `from` on, over reconnections, until it holds all up to the revision
/// that `until` will name.
pub async fn follow(
    endpoints: Vec<String>,
    from: Revision,
    mut until: watch::Receiver<Option<Revision>>,
) -> Result<WatchLog, HarnessError> {
    let mut log = WatchLog { start: Key::new(START), end: Key::new(END), from, answers: Vec::new() };
    let mut attempts = 0..;
    let mut named = until.clone();
    let mut last_end = "no answer".to_owned();
    let all = async {
        loop {
            if until.borrow().is_some_and(|last| reached(&log) >= last) {
                return Ok(());
            }
            let endpoint = &endpoints[attempts.next().unwrap_or(0) % endpoints.len()];
            tokio::select! {
                ended = follow_once(endpoint, &mut log, until.clone()) => match ended {
                    Ok(()) => {}
                    Err(status) if status.code() == Code::Unimplemented => {
                        return Err(HarnessError::rpc("a watch (--no-log --watches 0 does without)")(status));
                    }
                    Err(status) => last_end = status.to_string(),
                },
                // Named while the watch is silent: it may hold all of it already.
                _ = until.changed() => {}
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    };
    let too_late = async {
        // An error means that nobody will name it any more; then the limit counts from now, too.
        drop(named.wait_for(Option::is_some).await);
        tokio::time::sleep(CATCH_UP_LIMIT).await;
    };
    tokio::select! {
        ended = all => return ended.map(|()| log),
        () = too_late => {}
    }
    let detail = format!("not complete {CATCH_UP_LIMIT:?} after the last write; it ended last with: {last_end}");
    Err(HarnessError::Wrong { what: "a watch over all changes".to_owned(), detail })
}

/// All changes since the store was empty, up to and including those at `last`.
pub async fn log_of_changes(endpoints: Vec<String>, last: Revision) -> Result<Vec<Change>, HarnessError> {
    let (_named, until) = watch::channel(Some(last));
    let log = follow(endpoints, Revision(1), until).await?;
    Ok(log.answers.into_iter().flat_map(|answer| answer.changes).collect())
}

/// The newest revision that a watch's deliveries claim to be complete to.
fn reached(log: &WatchLog) -> Revision {
    let newest = |answer: &WatchAnswer| answer.changes.last().map_or(answer.header, |change| change.revision);
    log.answers.iter().map(newest).max().unwrap_or(log.from.prev())
}

/// Appends what one watch delivers until it breaks, or holds all that is wanted.
async fn follow_once(
    endpoint: &str,
    log: &mut WatchLog,
    until: watch::Receiver<Option<Revision>>,
) -> Result<(), Status> {
    let start = reached(log).0 + 1;
    let create = pb::WatchCreateRequest {
        key: Bytes::copy_from_slice(&START),
        range_end: Bytes::copy_from_slice(&END),
        start_revision: i64::try_from(start).unwrap_or(i64::MAX),
        ..Default::default()
    };
    let union = pb::watch_request::RequestUnion::CreateRequest(create);
    let requests = stream::iter([pb::WatchRequest { request_union: Some(union) }]).chain(stream::pending());
    let mut client = pb::watch_client::WatchClient::new(channel(endpoint)).max_decoding_message_size(usize::MAX);
    let mut answers = client.watch(requests).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if answer.canceled {
            return Err(Status::cancelled(answer.cancel_reason));
        }
        if !answer.created || !answer.events.is_empty() {
            log.answers.push(translate(answer));
        }
        if until.borrow().is_some_and(|last| reached(log) >= last) {
            return Ok(());
        }
    }
    Err(Status::unavailable("the stream ended"))
}

fn translate(answer: pb::WatchResponse) -> WatchAnswer {
    let deletion = EventType::Delete as i32;
    let change = |event: proto::mvccpb::Event| {
        let kind = event.r#type;
        let kv = event.kv.unwrap_or_default();
        let value = (kind != deletion).then_some(Value(kv.value));
        Change { revision: revision(kv.mod_revision), key: Key(kv.key), value }
    };
    let header = answer.header.map_or(Revision(0), |header| revision(header.revision));
    WatchAnswer { header, changes: answer.events.into_iter().map(change).collect() }
}

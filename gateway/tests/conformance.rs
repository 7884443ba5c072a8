//! The etcd API against etcd itself: scenarios whose answers were recorded from etcd 3.5.1, and
//! which our server must answer alike.
//!
//! To record them anew, or to check the records against another etcd, start one with an empty
//! data directory and name it; with `UPDATE_GOLDENFILES=1` its answers replace the records:
//!
//! ```sh
//! UPDATE_GOLDENFILES=1 CONFORMANCE_ENDPOINT=http://127.0.0.1:2379 cargo test -p gateway --test conformance
//! ```

mod support;

use proto::etcdserverpb::kv_client::KvClient;
use std::path::PathBuf;
use support::transcript::{Transcript, empty};
use support::{scenarios, server};
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};

/// One group with several shards.
const ONE_GROUP: &[(&str, u64)] = &[("", 2), ("b", 2), ("n", 2)];
/// Several groups; operations that write over both are left to `ONE_GROUP`.
const TWO_GROUPS: &[(&str, u64)] = &[("", 2), ("aa", 3), ("b", 2), ("c", 3), ("m", 2)];

/// A server at `CONFORMANCE_ENDPOINT` serves one scenario at a time.
static EXTERNAL: Mutex<()> = Mutex::const_new(());

async fn connect(endpoint: String) -> KvClient<Channel> {
    let channel = Endpoint::from_shared(endpoint).expect("a URL").connect().await.expect("a server");
    let limit = 16 << 20;
    KvClient::new(channel).max_decoding_message_size(limit).max_encoding_message_size(limit)
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"))
}

async fn check(name: &str, shards: &[(&'static str, u64)], scenario: impl AsyncFnOnce(&mut Transcript)) {
    let external = std::env::var("CONFORMANCE_ENDPOINT").ok();
    let _turn = EXTERNAL.lock().await;
    let endpoint = match &external {
        Some(endpoint) => endpoint.clone(),
        None => server(shards).await,
    };
    let mut client = connect(endpoint).await;
    if external.is_some() {
        empty(&mut client).await;
    }
    let mut transcript = Transcript::new(client);
    scenario(&mut transcript).await;
    let text = transcript.into_text();
    if external.is_some() && std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(golden(name), text).expect("a writable record");
        return;
    }
    let expected = std::fs::read_to_string(golden(name)).expect("a record of this scenario");
    let differs = expected.lines().zip(text.lines()).position(|(expected, actual)| expected != actual);
    if let Some(line) = differs {
        let from = line.saturating_sub(4);
        let excerpt = |text: &str| text.lines().skip(from).take(10).collect::<Vec<_>>().join("\n");
        panic!("{name}, line {}:\n--- etcd\n{}\n--- here\n{}", line + 1, excerpt(&expected), excerpt(&text));
    }
    assert_eq!(expected, text, "{name}: one is longer");
}

macro_rules! scenarios {
    ($($scenario:ident)*; over_groups: $($spanning:ident)*) => {
        mod one_group {
            use super::*;
            $(#[tokio::test] async fn $scenario() {
                check(stringify!($scenario), ONE_GROUP, scenarios::$scenario).await;
            })*
        }
        mod two_groups {
            use super::*;
            $(#[tokio::test] async fn $spanning() {
                check(stringify!($spanning), TWO_GROUPS, scenarios::$spanning).await;
            })*
        }
    };
}

scenarios!(
    versions puts ranges sorting filters history deletes compares txns txn_history txn_checks sizes compaction;
    over_groups: puts ranges sorting filters history
);

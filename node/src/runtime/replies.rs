//! Replies on their way back: to the gateway in this process, or to one at the end of a stream.

use shardkv::request::Reply;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Takes the replies of one turn that belong to one gateway. Must not block.
pub type ReplySink = Arc<dyn Fn(Vec<Reply>) + Send + Sync>;

/// The gateways that requests came from, by token.
#[derive(Default)]
pub struct Sinks {
    inner: Mutex<(u64, BTreeMap<u64, ReplySink>)>,
}

impl Sinks {
    /// Registers a gateway; requests under this token are answered there.
    pub fn add(&self, sink: ReplySink) -> u64 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        let token = inner.0;
        inner.1.insert(token, sink);
        token
    }

    /// Forgets a gateway; its replies are dropped.
    pub fn remove(&self, token: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&token);
    }

    /// Hands out the replies of a turn.
    pub fn deliver(&self, replies: Vec<(u64, Reply)>) {
        let mut by_token: BTreeMap<u64, Vec<Reply>> = BTreeMap::new();
        for (token, reply) in replies {
            by_token.entry(token).or_default().push(reply);
        }
        for (token, replies) in by_token {
            let sink = self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.get(&token).cloned();
            if let Some(sink) = sink {
                sink(replies);
            }
        }
    }
}

//! Where everything that the core must know arrives, from any thread.

use super::figures::MailboxFigures;
use crate::core::Input;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Default)]
struct Inner {
    inputs: Vec<Input>,
    /// Requests among them, and messages of peers: each kind has the bound for itself, so that a flood
    /// of requests keeps no heartbeat out.
    requests: usize,
    messages: usize,
    /// Of both, since the start.
    refused: u64,
}

impl Inner {
    /// What counts how many inputs of this one's kind wait, if they are bounded here.
    fn count(&mut self, input: &Input) -> Option<&mut usize> {
        match input {
            Input::Request { .. } => Some(&mut self.requests),
            Input::Message { .. } => Some(&mut self.messages),
            Input::Durable { .. }
            | Input::Applied(_)
            | Input::Scanned { .. }
            | Input::Tick
            | Input::Flushed(_)
            | Input::Snapshot(_)
            | Input::NoSpace(_)
            | Input::Closed(_)
            | Input::Retire => None,
        }
    }
}

/// Inputs waiting for the next turn. What other threads of this node bring is bounded by what the
/// core asked them for; what comes from outside is refused beyond the bound.
pub struct Mailbox {
    inner: Mutex<Inner>,
    notify: Notify,
    outside_max: usize,
}

impl Mailbox {
    /// An empty mailbox that takes at most `outside_max` waiting requests, and as many messages of peers.
    pub fn new(outside_max: usize) -> Mailbox {
        Mailbox { inner: Mutex::default(), notify: Notify::new(), outside_max }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // It is whole between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings an input of this node's own threads.
    pub fn push(&self, input: Input) {
        self.lock().inputs.push(input);
        self.notify.notify_one();
    }

    /// Brings an input that nobody waits for: the next turn, at the latest the next tick, takes it.
    pub fn push_quietly(&self, input: Input) {
        self.lock().inputs.push(input);
    }

    /// Brings inputs from outside; those beyond the bound come back.
    pub fn push_outside(&self, more: impl IntoIterator<Item = Input>) -> Vec<Input> {
        let (mut inner, outside_max) = (self.lock(), self.outside_max);
        let mut refused = Vec::new();
        for input in more {
            match inner.count(&input) {
                Some(count) if *count >= outside_max => {
                    inner.refused += 1;
                    refused.push(input);
                }
                count => {
                    if let Some(count) = count {
                        *count += 1;
                    }
                    inner.inputs.push(input);
                }
            }
        }
        drop(inner);
        self.notify.notify_one();
        refused
    }

    /// Something beside the inputs has changed: a turn, please.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Everything that waits, in order.
    pub fn drain(&self) -> Vec<Input> {
        let mut inner = self.lock();
        (inner.requests, inner.messages) = (0, 0);
        std::mem::take(&mut inner.inputs)
    }

    /// What waits, for operators.
    pub fn figures(&self) -> MailboxFigures {
        let inner = self.lock();
        MailboxFigures { requests: inner.requests, messages: inner.messages, refused: inner.refused }
    }

    /// Returns when something may wait.
    pub async fn filled(&self) {
        self.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::NodeMessage;
    use paxos::{GroupId, NodeId};
    use shardkv::request::{Request, RequestBody};
    use shardkv::types::Revision;

    fn request() -> Input {
        let (known, body) = (Revision(1), RequestBody::CurrentRevision);
        let request = Request { id: 1, group: GroupId(1), known, patience_micros: 1, trace: None, body };
        Input::Request { token: 1, request }
    }

    fn message() -> Input {
        Input::Message { from: NodeId(2), message: NodeMessage::MapRequest { have_version: 0 } }
    }

    #[test]
    fn a_flood_of_requests_keeps_no_peer_out() {
        let mailbox = Mailbox::new(3);
        assert_eq!(mailbox.push_outside((0..5).map(|_| request())).len(), 2);
        assert_eq!(mailbox.push_outside((0..4).map(|_| message())).len(), 1);
        mailbox.push(Input::Tick);
        assert_eq!(mailbox.drain().len(), 7);
        assert!(mailbox.push_outside([request(), message()]).is_empty(), "there is room again");
        assert_eq!(mailbox.figures(), MailboxFigures { requests: 1, messages: 1, refused: 3 });
    }
}

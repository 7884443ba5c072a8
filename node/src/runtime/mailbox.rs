//! Where everything that the core must know arrives, from any thread.

use crate::core::Input;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Inputs waiting for the next turn. What other threads of this node bring is bounded by what the
/// core asked them for; what comes from outside is refused beyond the bound.
pub struct Mailbox {
    inputs: Mutex<Vec<Input>>,
    notify: Notify,
    outside_max: usize,
}

impl Mailbox {
    /// An empty mailbox that takes at most `outside_max` waiting inputs from outside.
    pub fn new(outside_max: usize) -> Mailbox {
        Mailbox { inputs: Mutex::new(Vec::new()), notify: Notify::new(), outside_max }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Input>> {
        // A Vec is whole between any two statements.
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings an input of this node's own threads.
    pub fn push(&self, input: Input) {
        self.lock().push(input);
        self.notify.notify_one();
    }

    /// Brings an input that nobody waits for: the next turn, at the latest the next tick, takes it.
    pub fn push_quietly(&self, input: Input) {
        self.lock().push(input);
    }

    /// Brings inputs from outside; those beyond the bound come back.
    pub fn push_outside(&self, more: impl IntoIterator<Item = Input>) -> Vec<Input> {
        let mut inputs = self.lock();
        let mut refused = Vec::new();
        for input in more {
            if inputs.len() < self.outside_max { inputs.push(input) } else { refused.push(input) }
        }
        drop(inputs);
        self.notify.notify_one();
        refused
    }

    /// Something beside the inputs has changed: a turn, please.
    pub fn wake(&self) {
        self.notify.notify_one();
    }

    /// Everything that waits, in order.
    pub fn drain(&self) -> Vec<Input> {
        std::mem::take(&mut *self.lock())
    }

    /// Returns when something may wait.
    pub async fn filled(&self) {
        self.notify.notified().await;
    }
}

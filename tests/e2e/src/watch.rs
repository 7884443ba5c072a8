//! Looks at something again and again beside a measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A thread of its own that looks, until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Watch<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Watch<T> {
    /// Calls `look` with what was seen so far, every `period`. `None` if there is no thread to be had.
    pub(crate) fn start(period: Duration, mut seen: T, mut look: impl FnMut(&mut T) + Send + 'static) -> Option<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                look(&mut seen);
                std::thread::sleep(period);
            }
            seen
        });
        Some(Watch { stop, thread: Some(thread.ok()?) })
    }

    /// What was seen. `None` if the looking panicked.
    pub(crate) fn end(mut self) -> Option<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

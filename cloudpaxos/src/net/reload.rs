//! Files that are read again when they change.

use std::sync::{Arc, Weak};
use std::time::Duration;

/// How soon a change is seen. Polling, because the directories that Kubernetes mounts are replaced by
/// renaming a link, which watches of files and directories see in different ways or not at all.
const PERIOD: Duration = Duration::from_secs(1);

/// Something that is read from files.
pub(super) trait Reload: Send + Sync + 'static {
    /// Looks at the files, and takes them in if they have changed and are whole. Logs what is wrong.
    fn reload(&self);
}

/// Looks at the files from time to time, for as long as somebody holds what was read from them.
pub(super) fn watch<R: Reload>(read: &Arc<R>) -> std::io::Result<()> {
    let watched: Weak<R> = Arc::downgrade(read);
    std::thread::Builder::new().name("reload".into()).spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            match watched.upgrade() {
                Some(read) => read.reload(),
                None => return,
            }
        }
    })?;
    Ok(())
}

//! When the disk under a measurement stood still: it had requests, and finished none. Whoever waits for a sync waits then,
//! whatever the store does.

use crate::watch::Watch;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(5);
/// A disk that is slow, or has much to do, finishes something sooner.
const STANDSTILL_MIN: Duration = Duration::from_millis(100);

/// From when to when a disk stood still.
pub type Standstill = (Instant, Instant);

/// What a disk said.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    /// Reads, writes, discards and flushes so far.
    finished: u64,
    in_flight: u64,
}

/// Watches the disk that `directory` lies on. `None` if none is known: a file system in memory, or one over several disks.
pub(crate) fn watch(directory: &Path) -> Option<Watch<Standstills>> {
    let device = std::fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let figures = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
    read(&figures)?;
    Watch::start(LOOK, Standstills::default(), move |watched: &mut Standstills| {
        if let Some(look) = read(&figures) {
            watched.look(look);
        }
    })
}

/// As Documentation/block/stat.rst of Linux says. (Of a partition no flushes are counted: what waits for those alone is not
/// found.)
fn read(figures: &Path) -> Option<Look> {
    let text = std::fs::read_to_string(figures).ok()?;
    let fields: Vec<u64> = text.split_whitespace().map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let finished = [0, 4, 11, 15].into_iter().filter_map(|at| fields.get(at)).sum();
    Some(Look { at: Instant::now(), finished, in_flight: *fields.get(8)? })
}

/// Finds them from one look to the next. A watcher that was not given a core for long finds none then: more is finished when it
/// looks again.
#[derive(Debug, Default)]
pub(crate) struct Standstills {
    /// The first look since which nothing was finished, and the last.
    still: Option<(Look, Instant)>,
    found: Vec<Standstill>,
}

impl Standstills {
    fn look(&mut self, look: Look) {
        match &mut self.still {
            Some((first, last)) if first.finished == look.finished && look.in_flight > 0 => *last = look.at,
            _ => {
                self.keep();
                self.still = (look.in_flight > 0).then_some((look, look.at));
            }
        }
    }

    fn keep(&mut self) {
        if let Some((first, last)) = self.still.take()
            && last - first.at >= STANDSTILL_MIN
        {
            self.found.push((first.at, last));
        }
    }

    /// When it stood still, in order.
    pub(crate) fn end(mut self) -> Vec<Standstill> {
        self.keep();
        self.found
    }
}

/// For how long a disk stood still between two moments.
pub fn stood_still(standstills: &[Standstill], (from, to): (Instant, Instant)) -> Duration {
    standstills.iter().map(|(begin, end)| (*end).min(to).saturating_duration_since((*begin).max(from))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_requests_and_none_finished() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut watched = Standstills::default();
        let looks = [
            (0, 10, 0),
            (150, 10, 0), // idle
            (300, 10, 2),
            (390, 10, 5), // still
            (420, 10, 5),
            (450, 11, 4), // one was finished
            (500, 11, 4), // too short
            (510, 90, 4),
            (900, 99, 4), // it was not looked at in between
            (1030, 99, 1),
        ];
        for (millis, finished, in_flight) in looks {
            watched.look(Look { at: at(millis), finished, in_flight });
        }
        let found = watched.end();
        assert_eq!(found, [(at(300), at(420)), (at(900), at(1030))]);
        assert_eq!(stood_still(&found, (at(400), at(910))), Duration::from_millis(30));
        assert_eq!(stood_still(&found, (at(430), at(890))), Duration::ZERO);
    }
}

//! Waiting until what was asked for has come true, or is not wanted any more.

use super::ClientOptions;
use super::output::Format;
use crate::failure::Failure;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// How often a change is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// After this long every gateway has heard of a change: what an answer does not show is not there.
pub(super) const SETTLED: Duration = Duration::from_secs(3);

/// How to wait for a change.
#[derive(Args, Clone, Debug)]
pub struct ChangeOptions {
    /// Return when the change is logged, not when it has come true.
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Wait no longer than this; the change goes on.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub(super) wait: Duration,
    #[command(flatten)]
    pub(super) client: ClientOptions,
}

impl ChangeOptions {
    pub(super) fn format(&self) -> Format {
        self.client.format()
    }
}

/// Nobody waits longer; and a clock can tell when it is over.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long somebody would wait.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(wait) if wait > WAIT_MAX => Err("it is more than 365 days".to_owned()),
        Ok(wait) => Ok(wait),
        Err(error) => Err(error.to_string()),
    }
}

/// What a look at a change has found.
#[derive(Debug, PartialEq)]
pub(super) enum Seen<T> {
    /// It has come true.
    Done(T),
    /// It waits for this.
    Waits(String),
    /// Nobody has answered. A gateway that restarts meanwhile is no reason to give up.
    Nothing,
}

/// Looks until a change has come true; a look that fails ends it at once. Where time is up, that is a failure of
/// which `what` says what has not come about, and `hint` what to do.
pub(super) async fn until<T>(
    wait: Duration,
    bar: ProgressBar,
    (what, hint): (&str, &str),
    mut look: impl AsyncFnMut(Duration) -> Result<Seen<T>, Failure>,
) -> Result<T, Failure> {
    let began = Instant::now();
    let mut last = String::new();
    loop {
        match look(began.elapsed()).await.inspect_err(|_| bar.finish_and_clear())? {
            Seen::Done(outcome) => {
                bar.finish_and_clear();
                return Ok(outcome);
            }
            Seen::Waits(for_what) => {
                bar.set_message(for_what.clone());
                last = format!(" ({for_what})");
            }
            Seen::Nothing => {}
        }
        bar.tick();
        if began.elapsed() > wait {
            bar.finish_and_clear();
            let wait = humantime::format_duration(wait);
            return Err(Failure::Run(format!("{what} after {wait}; {hint}{last}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows on a terminal that something goes on, and since when.
pub(super) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Tells a wish that is gone from an answer that is older than the wish.
#[derive(Debug)]
pub(super) struct Wish {
    /// The map's version before it was made.
    before: u64,
    /// That of the first answer that shows it.
    shown: Option<u64>,
}

impl Wish {
    /// A wish that is made when the map has this version.
    pub(super) fn new(before: u64) -> Wish {
        Wish { before, shown: None }
    }

    /// Whether an answer out of a map of this version proves that the wish is gone, by not showing it.
    pub(super) fn is_gone(&mut self, elapsed: Duration, version: u64, shows: bool) -> bool {
        if shows {
            self.shown = self.shown.or(Some(version));
            return false;
        }
        let as_new = self.shown.is_some_and(|shown| version >= shown);
        version > self.before && (as_new || elapsed >= SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_an_end() {
        assert_eq!(duration("365d"), Ok(WAIT_MAX));
        for text in ["366d", "300000000000y", "5", "", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    const SOON: Duration = Duration::from_millis(200);

    #[test]
    fn an_answer_that_is_older_than_the_wish_proves_nothing() {
        let mut wish = Wish::new(7);
        assert!(!wish.is_gone(SOON, 7, false), "from before");
        assert!(!wish.is_gone(SOON, 8, false), "another change, perhaps before the wish");
        assert!(!wish.is_gone(SOON, 9, true));
        assert!(!wish.is_gone(SOON, 8, false), "another gateway is behind");
        assert!(wish.is_gone(SOON, 10, false));
    }

    #[test]
    fn a_wish_that_was_never_seen_is_gone_when_all_have_settled() {
        let mut wish = Wish::new(7);
        assert!(!wish.is_gone(SOON, 9, false));
        assert!(wish.is_gone(SETTLED, 9, false));
        assert!(!wish.is_gone(SETTLED * 100, 7, false), "the map is still the one from before");
    }
}

//! What happened, line by line: hashed as a whole, its tail kept for the report of a failure.

use std::collections::VecDeque;
use std::fmt::{Arguments, Write};

/// Lines kept for a failure's report.
const TAIL_LINES: usize = 400;

/// The trace of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    tail: VecDeque<String>,
    print: bool,
}

impl Trace {
    /// An empty trace; `print` writes every line to standard output as it comes.
    pub fn new(print: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, tail: VecDeque::with_capacity(TAIL_LINES), print }
    }

    /// Adds a line.
    pub fn line(&mut self, now: u64, text: Arguments<'_>) {
        let mut line =
            if self.tail.len() < TAIL_LINES { String::new() } else { self.tail.pop_front().unwrap_or_default() };
        line.clear();
        // Writing to a string does not fail.
        let _ = write!(line, "{:>4}.{:06} {text}", now / 1_000_000, now % 1_000_000);
        // FNV-1a: two runs of one seed must agree, nothing more.
        for byte in line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.print {
            println!("{line}");
        }
        self.tail.push_back(line);
    }

    /// The hash of all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines.
    pub fn tail(&self, lines: usize) -> String {
        let skip = self.tail.len().saturating_sub(lines);
        let mut text = String::new();
        for line in self.tail.iter().skip(skip) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

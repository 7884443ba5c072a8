//! Medians over the rounds, side by side, as Markdown.

use crate::error::BenchError;
use crate::measurement::{Cell, Measurement};
use crate::operation::Operation;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The two systems of the comparison.
const OURS: &str = "cloudpaxos";
const THEIRS: &str = "etcd";

/// Reads what `run` appended.
pub fn read(path: &Path) -> Result<Vec<Measurement>, BenchError> {
    let text = fs::read_to_string(path).map_err(BenchError::file(path))?;
    let parse = |(position, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|source| BenchError::Json { line: position + 1, source })
    };
    text.lines().enumerate().map(parse).collect()
}

/// One system's medians in one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Medians {
    throughput: f64,
    p50_millis: f64,
    p99_millis: f64,
    server_cpu_micros: f64,
    rounds: usize,
    failed: bool,
}

type Table = BTreeMap<Cell, BTreeMap<String, Medians>>;

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn summarise(measurements: &[Measurement]) -> Table {
    let mut grouped: BTreeMap<(Cell, &str), Vec<&Measurement>> = BTreeMap::new();
    for measurement in measurements {
        grouped.entry((measurement.cell, &measurement.system)).or_default().push(measurement);
    }
    let mut table = Table::new();
    for ((cell, system), rounds) in grouped {
        let of = |value: fn(&Measurement) -> f64| median(rounds.iter().map(|round| value(round)));
        let medians = Medians {
            throughput: of(|m| m.throughput),
            p50_millis: of(|m| m.p50 as f64 / 1000.0),
            p99_millis: of(|m| m.p99 as f64 / 1000.0),
            server_cpu_micros: of(|m| m.server_cpu_micros),
            rounds: rounds.len(),
            failed: rounds.iter().any(|m| m.errors > 0 || m.not_begun > 0),
        };
        table.entry(cell).or_default().insert(system.to_owned(), medians);
    }
    table
}

/// The lower of the systems' throughputs in a closed loop with the most clients.
pub fn peak(measurements: &[Measurement], operation: Operation) -> Result<u64, BenchError> {
    let table = summarise(measurements);
    let closed = table.iter().filter(|(cell, _)| cell.operation == operation && cell.rate.is_none());
    let (_, systems) = closed.max_by_key(|(cell, _)| cell.clients).ok_or(BenchError::NoResults(operation))?;
    let lowest = systems.values().map(|medians| medians.throughput).fold(f64::INFINITY, f64::min);
    Ok(lowest as u64)
}

/// From here on a document is written by hand: a report that is made anew leaves it alone.
const BY_HAND: &str = "<!-- by hand from here on -->";

/// The part of a document that is not ours, if it has one.
pub fn by_hand(document: &str) -> &str {
    document.find(BY_HAND).map_or("", |at| &document[at..])
}

/// The whole page.
pub fn markdown(preamble: &str, measurements: &[Measurement]) -> String {
    let table = summarise(measurements);
    let mut page = preamble.trim_end().to_owned();
    page.push_str("\n\n## Closed loop\n\nEach client sends its next request when it has the answer to the last.\n\n");
    section(&mut page, &table, |cell| cell.rate.is_none());
    if table.keys().any(|cell| cell.rate.is_some()) {
        page.push_str(
            "\n## Open loop\n\nRequests start by the clock, and latency counts from the intended start. \
             The rates are parts of the slower system's peak.\n\n",
        );
        section(&mut page, &table, |cell| cell.rate.is_some());
    }
    page.push_str("\n\\* Some operations failed, or never began.\n");
    page
}

fn section(page: &mut String, table: &Table, wanted: impl Fn(&Cell) -> bool) {
    let systems: BTreeSet<&String> = table.values().flat_map(BTreeMap::keys).collect();
    let mut head = "| work | clients |".to_owned();
    if table.keys().any(|cell| wanted(cell) && cell.rate.is_some()) {
        head.push_str(" op/s asked for |");
    }
    for system in &systems {
        // Formatting into a `String` cannot fail.
        let _infallible = write!(head, " {system} op/s | p50 ms | p99 ms | CPU/op µs |");
    }
    if systems.len() > 1 {
        head.push_str(" throughput × | p99 × | CPU × |");
    }
    let columns = head.matches('|').count() - 1;
    let _infallible = writeln!(page, "{head}\n|{}", "---|".repeat(columns));
    for (cell, medians) in table.iter().filter(|(cell, _)| wanted(cell)) {
        row(page, cell, &systems, medians);
    }
}

fn row(page: &mut String, cell: &Cell, systems: &BTreeSet<&String>, medians: &BTreeMap<String, Medians>) {
    let mut line = format!("| {} | {} |", cell.operation.title(), cell.clients);
    if let Some(rate) = cell.rate {
        let _infallible = write!(line, " {rate} |");
    }
    for system in systems {
        match medians.get(*system) {
            None => line.push_str(" – | – | – | – |"),
            Some(m) => {
                let star = if m.failed { "\\*" } else { "" };
                let Medians { throughput, p50_millis, p99_millis, server_cpu_micros, .. } = m;
                let _infallible = write!(
                    line,
                    " {throughput:.0}{star} | {p50_millis:.2} | {p99_millis:.2} | {server_cpu_micros:.0} |"
                );
            }
        }
    }
    if systems.len() > 1 {
        match (medians.get(OURS), medians.get(THEIRS)) {
            (Some(ours), Some(theirs)) => {
                let throughput = ours.throughput / theirs.throughput;
                let p99 = ours.p99_millis / theirs.p99_millis;
                let cpu = ours.server_cpu_micros / theirs.server_cpu_micros;
                let _infallible = write!(line, " {throughput:.2} | {p99:.2} | {cpu:.2} |");
            }
            _ => line.push_str(" – | – | – |"),
        }
    }
    page.push_str(&line);
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(system: &str, round: usize, throughput: f64, rate: Option<u64>) -> Measurement {
        Measurement {
            system: system.to_owned(),
            cell: Cell { operation: Operation::Put, clients: 64, rate },
            round,
            connections: 4,
            seconds: 1.0,
            operations: throughput as u64,
            errors: u64::from(rate.is_some()),
            not_begun: 0,
            throughput,
            p50: 1000,
            p99: 2000,
            p999: 3000,
            max: 4000,
            server_cpu_micros: 50.0,
            client_cpu_micros: 20.0,
        }
    }

    fn example() -> Vec<Measurement> {
        let mut all = Vec::new();
        for (round, factor) in [1.0, 5.0, 2.0].into_iter().enumerate() {
            all.push(measurement("etcd", round, 100.0 * factor, None));
            all.push(measurement("cloudpaxos", round, 400.0 * factor, None));
        }
        all.push(measurement("etcd", 0, 30.0, Some(30)));
        all
    }

    #[test]
    fn what_was_written_by_hand_stays() {
        let document = format!("# Old\n\n| old |\n{BY_HAND}\n\n## Ours\n");
        assert_eq!(by_hand(&document), format!("{BY_HAND}\n\n## Ours\n"));
        assert_eq!(by_hand("# Old\n"), "");
    }

    #[test]
    fn medians_and_ratios() {
        let page = markdown("# Title\n", &example());
        let row = "| put | 64 | 800 | 1.00 | 2.00 | 50 | 200 | 1.00 | 2.00 | 50 | 4.00 | 1.00 | 1.00 |";
        assert!(page.contains(row), "{page}");
        let open = "| put | 64 | 30 | – | – | – | – | 30\\* | 1.00 | 2.00 | 50 | – | – | – |";
        assert!(page.contains(open), "{page}");
    }

    #[test]
    fn every_row_has_as_many_columns_as_its_head() {
        let page = markdown("# Title\n", &example());
        let mut columns = None;
        for line in page.lines() {
            let here = line.starts_with('|').then(|| line.matches('|').count());
            assert!(columns.is_none() || here.is_none() || columns == here, "{line}");
            columns = here;
        }
    }

    #[test]
    fn peak_is_the_slower_systems() {
        assert_eq!(peak(&example(), Operation::Put).expect("there are results"), 200);
        assert!(matches!(peak(&example(), Operation::Get), Err(BenchError::NoResults(Operation::Get))));
    }

    #[test]
    fn median_of_even_counts_lies_between() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
    }
}

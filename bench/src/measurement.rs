//! The result of one run, as it is stored.

use crate::load::{Load, Measured};
use crate::operation::Operation;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is compared between systems and rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    /// The work.
    pub operation: Operation,
    /// Requests under way at once.
    pub clients: usize,
    /// Operations per second of an open loop.
    pub rate: Option<u64>,
}

/// One cell of one system in one round. Latencies are in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The system.
    pub system: String,
    /// The cell.
    pub cell: Cell,
    /// The round.
    pub round: usize,
    /// Connections that the clients shared.
    pub connections: usize,
    /// Seconds measured.
    pub seconds: f64,
    /// Operations that succeeded.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Operations that an open loop asked for and that never began.
    pub not_begun: usize,
    /// Operations per second.
    pub throughput: f64,
    /// Median latency.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
    /// CPU time of all servers per operation.
    pub server_cpu_micros: f64,
    /// CPU time of the load generator per operation.
    pub client_cpu_micros: f64,
}

impl Measurement {
    /// Summarises what was measured.
    pub fn new(system: String, cell: Cell, round: usize, load: &Load, measured: &Measured) -> Measurement {
        let operations = measured.latencies.len();
        let (seconds, per) = (measured.elapsed.as_secs_f64(), operations.max(1) as f64);
        if measured.errors > 0 {
            eprintln!("{} operations failed, the last with: {}", measured.errors, measured.last_error);
        }
        Measurement {
            system,
            cell,
            round,
            connections: load.connections,
            seconds,
            operations,
            errors: measured.errors,
            not_begun: measured.not_begun,
            throughput: operations as f64 / seconds,
            p50: measured.latencies.value_at_quantile(0.5),
            p99: measured.latencies.value_at_quantile(0.99),
            p999: measured.latencies.value_at_quantile(0.999),
            max: measured.latencies.max(),
            server_cpu_micros: measured.server_cpu.as_micros() as f64 / per,
            client_cpu_micros: measured.client_cpu.as_micros() as f64 / per,
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { operation, clients, rate } = self.cell;
        let pace = rate.map_or_else(|| "closed".to_owned(), |rate| format!("{rate}/s"));
        let millis = |micros: u64| micros as f64 / 1000.0;
        write!(
            f,
            "{:<11} {:<22} {clients:>4} clients {pace:>8} {:>9.0} op/s  p50 {:>8.2} ms  p99 {:>8.2} ms  max {:>8.1} ms  \
             CPU/op {:>5.0} + {:>3.0} µs  {} errors",
            self.system,
            operation.title(),
            self.throughput,
            millis(self.p50),
            millis(self.p99),
            millis(self.max),
            self.server_cpu_micros,
            self.client_cpu_micros,
            self.errors,
        )
    }
}

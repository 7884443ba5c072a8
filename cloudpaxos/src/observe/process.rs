//! What the operating system knows of this process, under the names that every Prometheus client uses.

use super::page::Page;
use procfs::WithCurrentSystemInfo;
use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::OnceLock;

#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Where /proc is not readable these are missing; the rest is worth having all the same.
        let Ok(process) = Process::myself() else { return Ok(()) };
        let Ok(stat) = process.stat() else { return Ok(()) };
        let mut page = Page(encoder);
        let one = |value: f64| [(Vec::new(), value)];
        let ticks = procfs::ticks_per_second() as f64;
        page.counter(
            "process_cpu_seconds",
            "CPU time, in user and system mode",
            one((stat.utime + stat.stime) as f64 / ticks),
        )?;
        page.gauge("process_resident_memory_bytes", "Memory held", one(stat.rss_bytes().get() as f64))?;
        page.gauge("process_virtual_memory_bytes", "Memory mapped", one(stat.vsize as f64))?;
        page.gauge("process_threads", "Threads", one(stat.num_threads as f64))?;
        if let Ok(count) = process.fd_count() {
            page.gauge("process_open_fds", "Open files and sockets", one(count as f64))?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(max) = limits.max_open_files.soft_limit
        {
            page.gauge("process_max_fds", "Open files and sockets allowed", one(max as f64))?;
        }
        // Computed once: the time of the boot is corrected with the clock, and a start that moves looks like another.
        static STARTED: OnceLock<Option<f64>> = OnceLock::new();
        let computed = || Some(procfs::boot_time_secs().ok()? as f64 + stat.starttime as f64 / ticks);
        if let Some(started) = STARTED.get_or_init(computed) {
            page.gauge("process_start_time_seconds", "When it started, in seconds since 1970", one(*started))?;
        }
        Ok(())
    }
}

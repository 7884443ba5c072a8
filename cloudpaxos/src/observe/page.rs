//! Writing figures under their names.

use ::node::tally::Distribution;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::ops::RangeInclusive;

/// Labels of one series.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What figures are written to.
pub(super) struct Page<'e>(pub(super) DescriptorEncoder<'e>);

impl Page<'_> {
    /// A value that rises and falls.
    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, series.into_iter().map(|(labels, value)| (labels, Gauge(value))))
    }

    /// A value that only rises; its name gets `_total`.
    pub(super) fn counter(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, series.into_iter().map(|(labels, value)| (labels, Counter(value))))
    }

    /// Times in microseconds, shown in seconds.
    pub(super) fn durations<'d>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, &'d Distribution)>,
    ) -> fmt::Result {
        // From 16 µs to 8 s.
        let shown = |seen: &Distribution| Histogram::new(seen, 4..=23, 1e-6);
        self.family(name, help, MetricType::Histogram, series.into_iter().map(|(labels, seen)| (labels, shown(seen))))
    }

    /// Sizes or counts.
    pub(super) fn sizes<'d>(
        &mut self,
        name: &str,
        help: &str,
        powers: RangeInclusive<usize>,
        series: impl IntoIterator<Item = (Labels, &'d Distribution)>,
    ) -> fmt::Result {
        let shown = |seen: &Distribution| Histogram::new(seen, powers.clone(), 1.0);
        self.family(name, help, MetricType::Histogram, series.into_iter().map(|(labels, seen)| (labels, shown(seen))))
    }

    fn family<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels, M)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in series {
            if labels.is_empty() {
                // The only one of its name.
                return metric.encode(family);
            }
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

struct Gauge(f64);

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

struct Counter(f64);

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.0, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

struct Histogram {
    sum: f64,
    count: u64,
    /// Upper bounds, and how many values fell between this and the one before.
    buckets: Vec<(f64, u64)>,
}

impl Histogram {
    fn new(seen: &Distribution, powers: RangeInclusive<usize>, unit: f64) -> Histogram {
        let mut below = 0;
        let mut buckets = Vec::new();
        for power in powers {
            let at_most = seen.at_most(power);
            buckets.push(((1u64 << power) as f64 * unit, at_most - below));
            below = at_most;
        }
        buckets.push((f64::INFINITY, seen.count() - below));
        Histogram { sum: seen.sum() as f64 * unit, count: seen.count(), buckets }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum, self.count, &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

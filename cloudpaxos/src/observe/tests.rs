use super::page::Page;
use ::node::tally::Distribution;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;
use std::fmt;

#[derive(Debug)]
struct Sample;

impl Collector for Sample {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut seen = Distribution::default();
        [1, 3, 4, 100].into_iter().for_each(|value| seen.record(value));
        let mut page = Page(encoder);
        let group = |id: u64| vec![("group", id.to_string())];
        page.gauge("temperature", "How warm", [(Vec::new(), 0.5)])?;
        page.counter("sent", "How many", [(group(1), 2.0), (group(2), 3.0)])?;
        page.sizes("size", "How large", 1..=3, [(group(1), &seen)])?;
        page.durations("wait_seconds", "How long", [(Vec::new(), &seen)])
    }
}

#[test]
fn figures_are_written_as_prometheus_reads_them() {
    let labels = [("node".into(), "n1".into())];
    let mut registry = Registry::with_prefix_and_labels("cloudpaxos", labels.into_iter());
    registry.register_collector(Box::new(Sample));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("texts can be written");
    let lines: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines[..9],
        [
            r#"cloudpaxos_temperature{node="n1"} 0.5"#,
            r#"cloudpaxos_sent_total{node="n1",group="1"} 2.0"#,
            r#"cloudpaxos_sent_total{node="n1",group="2"} 3.0"#,
            r#"cloudpaxos_size_sum{node="n1",group="1"} 108.0"#,
            r#"cloudpaxos_size_count{node="n1",group="1"} 4"#,
            r#"cloudpaxos_size_bucket{node="n1",le="2.0",group="1"} 1"#,
            r#"cloudpaxos_size_bucket{node="n1",le="4.0",group="1"} 3"#,
            r#"cloudpaxos_size_bucket{node="n1",le="8.0",group="1"} 3"#,
            r#"cloudpaxos_size_bucket{node="n1",le="+Inf",group="1"} 4"#,
        ],
        "{page}"
    );
    assert!(page.contains(r#"cloudpaxos_wait_seconds_bucket{node="n1",le="0.000016"} 3"#), "{page}");
}

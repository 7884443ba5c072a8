//! `cloudpaxos shards top`: which shards are busy, and how large they are.

use super::ClientOptions;
use super::output::{self, Format};
use crate::failure::Failure;
use clap::{Args, ValueEnum};
use indicatif::HumanBytes;
use proto::admin::{Shard, ShardLoad, ShardsTopRequest};
use serde_json::{Value, json};

/// What comes first.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Order {
    /// The shards with the most reads and writes.
    #[default]
    Requests,
    /// The largest shards.
    Bytes,
}

/// Which shards are shown.
#[derive(Args, Clone, Debug)]
pub struct TopOptions {
    /// What comes first.
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
    /// Show so many shards at most; 0 for all.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    client: ClientOptions,
}

/// `cloudpaxos shards top`.
pub(super) async fn top(options: TopOptions) -> Result<(), Failure> {
    let answer = options.client.client()?.admin(async |admin| admin.shards_top(ShardsTopRequest {}).await).await?;
    let load = |id: u64| answer.loads.iter().find(|load| load.shard == id).cloned().unwrap_or_default();
    let mut shards: Vec<(&Shard, ShardLoad)> = answer.shards.iter().map(|shard| (shard, load(shard.id))).collect();
    shards.sort_by_key(|(_, load)| match options.sort {
        Order::Requests => std::cmp::Reverse(load.reads_per_second + load.writes_per_second),
        Order::Bytes => std::cmp::Reverse(load.stored_bytes),
    });
    let hidden = if options.limit == 0 { 0 } else { shards.len().saturating_sub(options.limit) };
    shards.truncate(shards.len() - hidden);
    if matches!(options.client.format(), Format::Json) {
        let shards: Vec<Value> = shards.iter().map(|(shard, load)| as_json(shard, load)).collect();
        return output::json(&json!({ "shards": shards }));
    }
    output::table(
        &["SHARD", "GROUP", "START", "READS/S", "WRITES/S", "BYTES", "KEYS", "HOTTEST"],
        shards.iter().map(|(shard, load)| row(shard, load)),
    )?;
    if hidden > 0 {
        output::line(format!("and {hidden} more: --limit 0 shows all"))?;
    }
    Ok(())
}

fn row(shard: &Shard, load: &ShardLoad) -> Vec<String> {
    let known = |text: String| if load.measured { text } else { "-".to_owned() };
    let hottest = load.hottest.first();
    let hottest = hottest.map(|hot| format!("{} ({} %)", output::shown(&hot.key), hot.per_mille / 10));
    vec![
        shard.id.to_string(),
        shard.group.to_string(),
        if shard.start.is_empty() { "(lowest)".to_owned() } else { output::shown(&shard.start) },
        load.reads_per_second.to_string(),
        load.writes_per_second.to_string(),
        known(HumanBytes(load.stored_bytes).to_string()),
        known(load.keys.to_string()),
        hottest.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn as_json(shard: &Shard, load: &ShardLoad) -> Value {
    let hottest = load.hottest.iter().map(|hot| json!({ "key": output::value(&hot.key), "per_mille": hot.per_mille }));
    json!({
        "id": shard.id,
        "group": shard.group,
        "start": output::value(&shard.start),
        "reads_per_second": load.reads_per_second,
        "writes_per_second": load.writes_per_second,
        "stored_bytes": load.measured.then_some(load.stored_bytes),
        "keys": load.measured.then_some(load.keys),
        "hottest": hottest.collect::<Vec<_>>(),
    })
}

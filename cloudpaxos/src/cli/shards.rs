//! `cloudpaxos shards move|moves|cancel|split|merge`: shards change while they serve.

use super::ClientOptions;
use super::client::Client;
use super::groups::{ChangeOptions, LOOK};
use super::output::{self, Format};
use crate::failure::Failure;
use clap::Args;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use proto::admin::{
    CancelMoveRequest, MergeShardsRequest, Move, MoveReport, MoveShardRequest, MoveStage, MovesListRequest,
    MovesListResponse, ShardsListRequest, SplitShardRequest,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Of a progress bar.
const WHOLE: u64 = 1000;

/// A shard, and where it is to be.
#[derive(Args, Clone, Debug)]
pub struct MoveOptions {
    /// The shard's number; `cloudpaxos shards list` has it.
    #[arg(value_name = "SHARD")]
    shard: u64,
    /// The number of the group that is to own it.
    #[arg(value_name = "GROUP")]
    group: u64,
    #[command(flatten)]
    change: ChangeOptions,
}

/// A move.
#[derive(Args, Clone, Debug)]
pub struct CancelOptions {
    /// The move's number; `cloudpaxos shards moves` has it.
    #[arg(value_name = "MOVE")]
    id: u64,
    #[command(flatten)]
    client: ClientOptions,
}

/// A shard that becomes two.
#[derive(Args, Clone, Debug)]
pub struct SplitOptions {
    /// The shard's number; `cloudpaxos shards list` has it.
    #[arg(value_name = "SHARD")]
    shard: u64,
    /// The first key of the new shard. Without it, the new shard gets about half of the bytes.
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    at: Option<String>,
    #[command(flatten)]
    change: ChangeOptions,
}

/// Two shards that become one.
#[derive(Args, Clone, Debug)]
pub struct MergeOptions {
    /// The shard with the lower keys, whose number stays.
    #[arg(value_name = "LEFT")]
    left: u64,
    /// The shard that begins where the other one ends.
    #[arg(value_name = "RIGHT")]
    right: u64,
    #[command(flatten)]
    change: ChangeOptions,
}

async fn list(client: &Client) -> Result<MovesListResponse, Failure> {
    Ok(client.admin(async |admin| admin.moves_list(MovesListRequest {}).await).await?)
}

/// `cloudpaxos shards moves`.
pub(super) async fn moves(options: ClientOptions) -> Result<(), Failure> {
    let answer = list(&options.client()?).await?;
    match options.output.output {
        Format::Json => output::json(&json!({
            "moves": answer.moves.iter().map(as_json).collect::<Vec<_>>(),
            "last": answer.last,
        })),
        Format::Table if answer.moves.is_empty() => output::line("no shard is moving"),
        Format::Table => output::table(
            &["MOVE", "SHARD", "FROM", "TO", "STAGE", "COPIED", "BYTES"],
            answer.moves.iter().map(|one| {
                let report = one.report.unwrap_or_default();
                let numbers = [one.id, one.shard, one.from, one.to].map(|number| number.to_string());
                let share = format!("{} %", report.copied_per_mille / 10);
                let bytes = HumanBytes(report.copied_bytes).to_string();
                numbers.into_iter().chain([stage(report.stage()).to_owned(), share, bytes]).collect()
            }),
        ),
    }
}

fn as_json(one: &Move) -> Value {
    let report = one.report.unwrap_or_default();
    json!({
        "id": one.id,
        "shard": one.shard,
        "from": one.from,
        "to": one.to,
        "stage": stage(report.stage()),
        "copied_bytes": report.copied_bytes,
        "copied_per_mille": report.copied_per_mille,
    })
}

fn stage(stage: MoveStage) -> &'static str {
    match stage {
        MoveStage::Unspecified => "waiting",
        MoveStage::Copying => "copying",
        MoveStage::CatchingUp => "catching up",
        MoveStage::HandingOver => "handing over",
        MoveStage::Arrived => "arrived",
    }
}

/// `cloudpaxos shards cancel`.
pub(super) async fn cancel(options: CancelOptions) -> Result<(), Failure> {
    let id = options.id;
    options.client.client()?.admin(async |admin| admin.cancel_move(CancelMoveRequest { id }).await).await?;
    output::line(format!("move {id} is called off: the shard stays where it is"))
}

/// `cloudpaxos shards move`.
pub(super) async fn start_move(options: MoveOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let request = MoveShardRequest { shard: options.shard, group: options.group };
    let id = client.admin(async |admin| admin.move_shard(request).await).await?.id;
    if options.change.no_wait {
        return output::line(format!("move {id}: shard {} will move to group {}", options.shard, options.group));
    }
    let bar = ProgressBar::new(WHOLE);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent} % {elapsed} {msg}") {
        bar.set_style(style);
    }
    let began = Instant::now();
    loop {
        // A gateway that restarts meanwhile is no reason to give up.
        if let Ok(answer) = list(&client).await {
            match answer.moves.iter().find(|one| one.id == id) {
                Some(one) => show(&bar, one.report.as_ref(), began.elapsed()),
                None if id <= answer.last => {
                    bar.finish_and_clear();
                    return over(&client, &options, id, began.elapsed()).await;
                }
                None => {}
            }
        }
        if began.elapsed() > options.change.wait {
            bar.finish_and_clear();
            return Err(Failure::Run(format!(
                "move {id} is not done after {}; it goes on, see `cloudpaxos shards moves`; both groups need a majority \
                 of their replicas",
                humantime::format_duration(options.change.wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn show(bar: &ProgressBar, report: Option<&MoveReport>, elapsed: Duration) {
    let Some(report) = report else { return };
    let share = u64::from(report.copied_per_mille);
    let rate = report.copied_bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = match share {
        1..WHOLE => {
            let left = elapsed.mul_f64((WHOLE - share) as f64 / share as f64);
            format!(", {} left", HumanDuration(left))
        }
        _ => String::new(),
    };
    bar.set_position(share);
    let (bytes, rate) = (HumanBytes(report.copied_bytes), HumanBytes(rate as u64));
    bar.set_message(format!("{}: {bytes}, {rate}/s{left}", stage(report.stage())));
}

/// It is over: because it is done, or because somebody has called it off.
async fn over(client: &Client, options: &MoveOptions, id: u64, elapsed: Duration) -> Result<(), Failure> {
    let answer = client.admin(async |admin| admin.shards_list(ShardsListRequest {}).await).await?;
    let owner = answer.shards.iter().find(|shard| shard.id == options.shard).map_or(0, |shard| shard.group);
    match owner == options.group {
        true => {
            let took = humantime::format_duration(Duration::from_millis(elapsed.as_millis() as u64));
            output::line(format!("shard {} is in group {owner}; the move took {took}", options.shard))
        }
        false => Err(Failure::Run(format!(
            "move {id} is over, and shard {} is in group {owner}: it was called off, or the shard has moved again",
            options.shard
        ))),
    }
}

/// `cloudpaxos shards split`.
pub(super) async fn split(options: SplitOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let at = options.at.unwrap_or_default().into_bytes().into();
    let request = SplitShardRequest { shard: options.shard, at };
    let done = client.admin(async |admin| admin.split_shard(request.clone()).await).await?;
    let at = output::shown(&done.at);
    if options.change.no_wait {
        return output::line(format!("change {}: shard {} will end before {at}", done.id, options.shard));
    }
    wait_for_cut(&client, &options.change, done.id).await?;
    let answer = client.admin(async |admin| admin.shards_list(ShardsListRequest {}).await).await?;
    let new = answer.shards.iter().find(|shard| shard.start == done.at).map_or("-".to_owned(), |it| it.id.to_string());
    output::line(format!("shard {} ends before {at}, where shard {new} begins", options.shard))
}

/// `cloudpaxos shards merge`.
pub(super) async fn merge(options: MergeOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let MergeOptions { left, right, change } = options;
    let request = MergeShardsRequest { left, right };
    let id = client.admin(async |admin| admin.merge_shards(request).await).await?.id;
    if change.no_wait {
        return output::line(format!("change {id}: shard {left} will have the keys of shard {right}, too"));
    }
    wait_for_cut(&client, &change, id).await?;
    output::line(format!("shard {left} has the keys of shard {right}, too, which is no more"))
}

/// Waits until a group has split or merged its shards.
async fn wait_for_cut(client: &Client, change: &ChangeOptions, id: u64) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        // A gateway that restarts meanwhile is no reason to give up.
        let answer = client.admin(async |admin| admin.shards_list(ShardsListRequest {}).await).await;
        if answer.is_ok_and(|answer| !answer.changes.contains(&id)) {
            return Ok(());
        }
        if began.elapsed() > change.wait {
            return Err(Failure::Run(format!(
                "change {id} is not done after {}; it goes on; the group needs a majority of its replicas, see \
                 `cloudpaxos status`",
                humantime::format_duration(change.wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

//! `cloudpaxos shards move|moves|cancel|split|merge`: shards change while they serve.

use super::ClientOptions;
use super::client::{Client, ClientError};
use super::output::{self, Format};
use super::wait::{ChangeOptions, Seen, spinner, until};
use crate::failure::Failure;
use bytes::Bytes;
use clap::Args;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use proto::admin::{
    CancelMoveRequest, MergeShardsRequest, Move, MoveReport, MoveShardRequest, MoveStage, MovesListRequest,
    MovesListResponse, Shard, ShardsListRequest, ShardsListResponse, SplitShardRequest, SplitShardResponse,
};
use serde_json::{Value, json};
use std::time::Duration;

/// Of a progress bar.
const WHOLE: u64 = 1000;
/// Characters of one in a table.
const BAR_WIDTH: u64 = 20;

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
    ///
    /// It is written as `cloudpaxos shards list` shows keys: \xHH is a byte, \\ a backslash.
    #[arg(long, value_name = "KEY")]
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
    match options.format() {
        Format::Json => output::json(&json!({
            "moves": answer.moves.iter().map(as_json).collect::<Vec<_>>(),
            "last": answer.last,
        })),
        Format::Table if answer.moves.is_empty() => output::line("no shard is moving"),
        Format::Table => output::table(
            &["MOVE", "SHARD", "FROM", "TO", "STAGE", "PROGRESS", "BYTES", "RATE", "LEFT", "STILL FOR"],
            answer.moves.iter().map(row),
        ),
    }
}

fn row(one: &Move) -> Vec<String> {
    let report = one.report.unwrap_or_default();
    let numbers = [one.id, one.shard, one.from, one.to].map(|number| number.to_string());
    let share = u64::from(report.copied_per_mille).min(WHOLE);
    let done = usize::try_from(share * BAR_WIDTH / WHOLE).unwrap_or_default();
    let bar = format!("{:-<width$} {:>3} %", "#".repeat(done), share * 100 / WHOLE, width = BAR_WIDTH as usize);
    let (bytes, rate) = (HumanBytes(report.copied_bytes), HumanBytes(report.bytes_per_second));
    let left = left(&report).map_or("-".to_owned(), |left| HumanDuration(left).to_string());
    let still = Duration::from_secs(report.still_millis / 1_000);
    let still = if still.is_zero() { "-".to_owned() } else { humantime::format_duration(still).to_string() };
    let texts = [stage(report.stage()).to_owned(), bar, bytes.to_string(), format!("{rate}/s"), left, still];
    numbers.into_iter().chain(texts).collect()
}

/// How long the copying will take, if it goes on like this.
fn left(report: &MoveReport) -> Option<Duration> {
    let share = u64::from(report.copied_per_mille);
    if report.bytes_per_second == 0 || share == 0 || share >= WHOLE {
        return None;
    }
    let bytes = u128::from(report.copied_bytes) * u128::from(WHOLE - share) / u128::from(share);
    let seconds = bytes / u128::from(report.bytes_per_second);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)))
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
        "bytes_per_second": report.bytes_per_second,
        "seconds_left": left(&report).map(|left| left.as_secs()),
        "still_millis": report.still_millis,
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
    // Moves count from 1, and 0 stands for none: the shardmaster takes shards that have never moved for its work.
    if id == 0 {
        return Err(Failure::Usage("there was no move 0; `cloudpaxos shards moves` shows those under way".to_owned()));
    }
    options.client.client()?.change(async |admin| admin.cancel_move(CancelMoveRequest { id }).await).await?;
    let sentence = format!("move {id} is called off: the shard stays where it is");
    output::outcome(options.client.format(), &json!({ "move": id, "cancelled": true }), sentence)
}

/// `cloudpaxos shards move`.
pub(super) async fn start_move(options: MoveOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let MoveOptions { shard, group, change } = options;
    let request = MoveShardRequest { shard, group };
    let id = client.change(async |admin| admin.move_shard(request).await).await?.id;
    let document = |done: bool| json!({ "move": id, "shard": shard, "group": group, "done": done });
    if change.no_wait {
        let sentence = format!("move {id}: shard {shard} will move to group {group}");
        return output::outcome(change.format(), &document(false), sentence);
    }
    let bar = ProgressBar::new(WHOLE);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent} % {elapsed} {msg}") {
        bar.set_style(style);
    }
    let what = format!("move {id} is not done");
    let hint = "it goes on, see `cloudpaxos shards moves`; both groups need a majority of their replicas";
    let look = async |elapsed| match list(&client).await {
        Ok(answer) => Ok(match answer.moves.iter().find(|one| one.id == id) {
            Some(one) => one.report.as_ref().map_or(Seen::Nothing, |report| Seen::Waits(show(&bar, report))),
            None if id <= answer.last => Seen::Done(elapsed),
            None => Seen::Nothing,
        }),
        Err(_) => Ok(Seen::Nothing),
    };
    let elapsed = until(change.wait, bar.clone(), (&what, hint), look).await?;
    over(&client, shard, group, id).await?;
    let took = humantime::format_duration(Duration::from_millis(elapsed.as_millis() as u64));
    let sentence = format!("shard {shard} is in group {group}; the move took {took}");
    output::outcome(change.format(), &document(true), sentence)
}

/// Moves the bar, and says what else there is to say.
fn show(bar: &ProgressBar, report: &MoveReport) -> String {
    bar.set_position(u64::from(report.copied_per_mille));
    let (bytes, rate) = (HumanBytes(report.copied_bytes), HumanBytes(report.bytes_per_second));
    let left = left(report).map_or(String::new(), |left| format!(", {} left", HumanDuration(left)));
    format!("{}: {bytes}, {rate}/s{left}", stage(report.stage()))
}

/// A move is over: because it is done, or because somebody has called it off.
async fn over(client: &Client, shard: u64, group: u64, id: u64) -> Result<(), Failure> {
    let answer = shards(client).await?;
    let owner = shard_of(&answer, shard).map_or(0, |shard| shard.group);
    match owner == group {
        true => Ok(()),
        false => Err(Failure::Run(format!(
            "move {id} is over, and shard {shard} is in group {owner}: it was called off, or the shard has moved again"
        ))),
    }
}

async fn shards(client: &Client) -> Result<ShardsListResponse, Failure> {
    Ok(client.admin(async |admin| admin.shards_list(ShardsListRequest {}).await).await?)
}

fn shard_of(answer: &ShardsListResponse, id: u64) -> Option<&Shard> {
    answer.shards.iter().find(|shard| shard.id == id)
}

/// `cloudpaxos shards split`.
pub(super) async fn split(options: SplitOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let SplitOptions { shard, at, change } = options;
    let done = match at {
        Some(at) => {
            let request = SplitShardRequest { shard, at: cut(&at)? };
            client.change(async |admin| admin.split_shard(request.clone()).await).await?
        }
        None => halve(&client, shard).await?,
    };
    let at = output::shown(&done.at);
    let document =
        |new: Option<u64>| json!({ "change": done.id, "shard": shard, "at": output::value(&done.at), "new": new });
    if change.no_wait {
        let sentence = format!("change {}: shard {shard} will end before {at}", done.id);
        return output::outcome(change.format(), &document(None), sentence);
    }
    let answer = wait_for_cut(&client, &change, done.id).await?;
    let new = answer.shards.iter().find(|shard| shard.start == done.at).map(|shard| shard.id);
    let begins = new.map_or("-".to_owned(), |new| new.to_string());
    let sentence = format!("shard {shard} ends before {at}, where shard {begins} begins");
    output::outcome(change.format(), &document(new), sentence)
}

/// The key that a shard is to be cut at.
fn cut(at: &str) -> Result<Bytes, Failure> {
    match output::written("--at", at)? {
        at if at.is_empty() => Err(Failure::Usage(
            "--at: no shard can be cut at the empty key, below which there is nothing; leave --at out to cut it in the \
             middle"
                .to_owned(),
        )),
        at => Ok(at),
    }
}

/// Has a shard cut in the middle. The gateway asks the shard's group where that is.
async fn halve(client: &Client, shard: u64) -> Result<SplitShardResponse, Failure> {
    let Some(group) = shard_of(&shards(client).await?, shard).map(|shard| shard.group) else {
        return Err(Failure::Usage(format!("s{shard} is no shard of the map")));
    };
    let request = SplitShardRequest { shard, at: Bytes::new() };
    let asked = client.change(async |admin| admin.split_shard(request.clone()).await).await;
    asked.map_err(|error| match error {
        ClientError::UnknownChange { endpoint, why } => Failure::Run(format!(
            "nobody who leads group {group}, or else the shardmaster, answered in time: the shard may or may not be \
             split; see `cloudpaxos status` ({endpoint}: {why})"
        )),
        other => other.into(),
    })
}

/// `cloudpaxos shards merge`.
pub(super) async fn merge(options: MergeOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let MergeOptions { left, right, change } = options;
    let request = MergeShardsRequest { left, right };
    let id = client.change(async |admin| admin.merge_shards(request).await).await?.id;
    let document = |done: bool| json!({ "change": id, "shard": left, "merged": right, "done": done });
    if change.no_wait {
        let sentence = format!("change {id}: shard {left} will have the keys of shard {right}, too");
        return output::outcome(change.format(), &document(false), sentence);
    }
    wait_for_cut(&client, &change, id).await?;
    let sentence = format!("shard {left} has the keys of shard {right}, too, which is no more");
    output::outcome(change.format(), &document(true), sentence)
}

/// Waits until a group has split or merged its shards; which there are then.
async fn wait_for_cut(client: &Client, change: &ChangeOptions, id: u64) -> Result<ShardsListResponse, Failure> {
    let what = format!("change {id} is not done");
    let hint = "it goes on; the group needs a majority of its replicas, see `cloudpaxos status`";
    until(change.wait, spinner(), (&what, hint), async |_| match shards(client).await {
        Ok(answer) if is_cut(&answer, id) => Ok(Seen::Done(answer)),
        Ok(_) | Err(_) => Ok(Seen::Nothing),
    })
    .await
}

/// Whether a split or a merge is done; a gateway may answer by a map from before it was asked for.
fn is_cut(answer: &ShardsListResponse, id: u64) -> bool {
    id <= answer.last && !answer.changes.contains(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_has_not_heard_of_a_change_does_not_say_that_it_is_done() {
        let answer =
            |last, changes: &[u64]| ShardsListResponse { last, changes: changes.to_vec(), ..Default::default() };
        assert!(!is_cut(&answer(6, &[]), 7));
        assert!(!is_cut(&answer(8, &[7]), 7));
        assert!(is_cut(&answer(8, &[8]), 7));
    }

    #[test]
    fn a_shard_is_cut_at_a_key_as_it_is_shown() {
        assert_eq!(cut(r"a\x00\\").expect("a key"), &b"a\0\\"[..]);
        let empty = cut("").expect_err("nothing lies below it");
        assert_eq!(empty.exit_code(), 2);
        assert!(empty.to_string().starts_with("--at: "), "{empty}");
    }
}

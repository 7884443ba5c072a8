//! `cloudpaxos balance`: what the balancer does by itself, and what operators want of it.

use super::ClientOptions;
use super::client::Client;
use super::groups::status;
use super::output::{self, Format};
use crate::failure::Failure;
use bytes::Bytes;
use clap::{Args, Subcommand};
use proto::admin::{BalanceExplainRequest, PauseBalanceRequest, PinPrefixRequest, StatusResponse};
use serde_json::json;

/// The commands about balancing.
#[derive(Subcommand, Debug)]
pub enum BalanceCommand {
    /// Show what each group carries, what the balancer does about it, and why.
    #[command(after_help = "\
Examples:
  cloudpaxos balance explain
  cloudpaxos balance explain -o json")]
    Explain(ClientOptions),
    /// Have the balancer do nothing; changes under way go on.
    #[command(after_help = "\
Example:
  cloudpaxos balance pause")]
    Pause(ClientOptions),
    /// Have the balancer go on.
    #[command(after_help = "\
Example:
  cloudpaxos balance resume")]
    Resume(ClientOptions),
    /// Keep all keys with a prefix in one group, whatever the load.
    ///
    /// The balancer splits shards where the pinned keys begin and end, and moves those in between.
    #[command(after_help = "\
Example, all keys that begin with /jobs/ in group 3:
  cloudpaxos balance pin /jobs/ 3")]
    Pin(PinOptions),
    /// Let the keys with a prefix lie anywhere again.
    #[command(after_help = "\
Example:
  cloudpaxos balance unpin /jobs/")]
    Unpin(UnpinOptions),
}

/// A prefix and a group.
#[derive(Args, Clone, Debug)]
pub struct PinOptions {
    /// What the keys begin with, as `cloudpaxos shards list` shows keys: \xHH is a byte, \\ a backslash.
    #[arg(value_name = "PREFIX")]
    prefix: String,
    /// The group's number.
    #[arg(value_name = "GROUP", value_parser = clap::value_parser!(u64).range(1..))]
    group: u64,
    #[command(flatten)]
    client: ClientOptions,
}

/// A prefix.
#[derive(Args, Clone, Debug)]
pub struct UnpinOptions {
    /// What the keys begin with, as `cloudpaxos shards list` shows keys: \xHH is a byte, \\ a backslash.
    #[arg(value_name = "PREFIX")]
    prefix: String,
    #[command(flatten)]
    client: ClientOptions,
}

/// Runs one of the commands.
pub(super) async fn run(command: BalanceCommand) -> Result<(), Failure> {
    match command {
        BalanceCommand::Explain(options) => explain(options).await,
        BalanceCommand::Pause(options) => {
            let until = "`cloudpaxos balance resume`; what is under way goes on";
            pause(&options, true, &format!("the balancer does nothing until {until}")).await
        }
        BalanceCommand::Resume(options) => pause(&options, false, "the balancer goes on").await,
        BalanceCommand::Pin(options) => pin(options).await,
        BalanceCommand::Unpin(options) => {
            let prefix = output::written("PREFIX", &options.prefix)?;
            wish(&options.client.client()?, &prefix, 0).await?;
            let document = json!({ "prefix": output::value(&prefix), "group": null });
            let sentence = format!("{}* is not pinned any more", output::shown(&prefix));
            output::outcome(options.client.format(), &document, sentence)
        }
    }
}

async fn pause(options: &ClientOptions, paused: bool, sentence: &str) -> Result<(), Failure> {
    options.client()?.change(async |admin| admin.pause_balance(PauseBalanceRequest { paused }).await).await?;
    output::outcome(options.format(), &json!({ "paused": paused }), sentence)
}

async fn pin(options: PinOptions) -> Result<(), Failure> {
    let (client, group) = (options.client.client()?, options.group);
    let prefix = output::written("PREFIX", &options.prefix)?;
    takes_shards(&status(&client).await?, group)?;
    wish(&client, &prefix, group).await?;
    let document = json!({ "prefix": output::value(&prefix), "group": group });
    let shown = output::shown(&prefix);
    let sentence = format!(
        "{shown}* is pinned to group {group}: its shards are split and moved for that, unless balancing is paused"
    );
    output::outcome(options.client.format(), &document, sentence)
}

/// Whether a group may be given shards; one that is unknown here is the shardmaster's to judge.
fn takes_shards(status: &StatusResponse, group: u64) -> Result<(), Failure> {
    match status.groups.iter().any(|known| known.id == group && known.emptying) {
        true => Err(Failure::Usage(format!(
            "group {group} is being emptied and gets no shards: choose another one, or undo that with `cloudpaxos \
             groups empty {group} --undo`"
        ))),
        false => Ok(()),
    }
}

async fn wish(client: &Client, prefix: &Bytes, group: u64) -> Result<(), Failure> {
    let request = PinPrefixRequest { prefix: prefix.clone(), group };
    client.change(async |admin| admin.pin_prefix(request.clone()).await).await?;
    Ok(())
}

async fn explain(options: ClientOptions) -> Result<(), Failure> {
    let answer = options.client()?.admin(async |admin| admin.balance_explain(BalanceExplainRequest {}).await).await?;
    if matches!(options.format(), Format::Json) {
        let pins = answer.pins.iter().map(|pin| json!({ "prefix": output::value(&pin.prefix), "group": pin.group }));
        let pins: Vec<_> = pins.collect();
        return output::json(&json!({ "paused": answer.paused, "pins": pins, "why": answer.why }));
    }
    for pin in &answer.pins {
        output::line(format!("{}* is pinned to group {}", output::shown(&pin.prefix), pin.group))?;
    }
    if answer.why.is_empty() {
        return output::line("nobody who answers leads the shardmaster: see `cloudpaxos status`");
    }
    answer.why.iter().try_for_each(output::line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::admin::Group;

    #[test]
    fn nothing_is_pinned_to_a_group_that_is_being_emptied() {
        let group = |id, emptying| Group { id, emptying, ..Group::default() };
        let status = StatusResponse { groups: vec![group(2, false), group(3, true)], ..StatusResponse::default() };
        assert!(takes_shards(&status, 2).is_ok() && takes_shards(&status, 9).is_ok());
        let refused = takes_shards(&status, 3).expect_err("it gives its shards away");
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().starts_with("group 3 is being emptied"), "{refused}");
    }
}

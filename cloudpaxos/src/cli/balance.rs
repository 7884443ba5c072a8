//! `cloudpaxos balance`: what the balancer does by itself, and what operators want of it.

use super::ClientOptions;
use super::output::{self, Format};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use proto::admin::{BalanceExplainRequest, PauseBalanceRequest, PinPrefixRequest};
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
    /// What the keys begin with.
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
    /// What the keys begin with.
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
            pause(&options, true).await?;
            output::line("the balancer does nothing until `cloudpaxos balance resume`; what is under way goes on")
        }
        BalanceCommand::Resume(options) => {
            pause(&options, false).await?;
            output::line("the balancer goes on")
        }
        BalanceCommand::Pin(options) => {
            pin(&options.client, &options.prefix, options.group).await?;
            let (prefix, group) = (options.prefix, options.group);
            output::line(format!("{prefix}* is pinned to group {group}: its shards will be split and moved for that"))
        }
        BalanceCommand::Unpin(options) => {
            pin(&options.client, &options.prefix, 0).await?;
            output::line(format!("{}* is not pinned any more", options.prefix))
        }
    }
}

async fn pause(options: &ClientOptions, paused: bool) -> Result<(), Failure> {
    options.client()?.admin(async |admin| admin.pause_balance(PauseBalanceRequest { paused }).await).await?;
    Ok(())
}

async fn pin(options: &ClientOptions, prefix: &str, group: u64) -> Result<(), Failure> {
    let request = PinPrefixRequest { prefix: prefix.to_owned().into_bytes().into(), group };
    options.client()?.admin(async |admin| admin.pin_prefix(request.clone()).await).await?;
    Ok(())
}

async fn explain(options: ClientOptions) -> Result<(), Failure> {
    let answer = options.client()?.admin(async |admin| admin.balance_explain(BalanceExplainRequest {}).await).await?;
    if matches!(options.output.output, Format::Json) {
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

//! `cloudpaxos nodes`: who is there, and how a node leaves for good.

use super::groups::{ChangeOptions, LOOK, node_of, status};
use super::output::{self, Format};
use super::{ClientOptions, client::Client};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use proto::admin::{DrainNodeRequest, Node, RemoveNodeRequest, StatusResponse};
use serde_json::{Value, json};
use std::time::Instant;

/// The commands about nodes.
#[derive(Subcommand, Debug)]
pub enum NodesCommand {
    /// List the nodes, and how many replicas each holds.
    #[command(after_help = "\
A new node joins by `cloudpaxos start --join`.

Examples:
  cloudpaxos nodes list
  cloudpaxos nodes list -o json")]
    List(ClientOptions),
    /// Empty a node of replicas; other nodes take them over.
    #[command(after_help = "\
Example:
  cloudpaxos nodes drain n3
  cloudpaxos nodes drain n3 --undo")]
    Drain(DrainOptions),
    /// Forget a node that holds no replicas. It is stopped before, or refused after.
    #[command(after_help = "\
Example:
  cloudpaxos nodes drain n3 && cloudpaxos nodes remove n3")]
    Remove(RemoveOptions),
}

/// Which node to empty.
#[derive(Args, Clone, Debug)]
pub struct DrainOptions {
    /// Its name or number.
    #[arg(value_name = "NODE")]
    node: String,
    /// It may hold replicas again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    change: ChangeOptions,
}

/// Which node to forget.
#[derive(Args, Clone, Debug)]
pub struct RemoveOptions {
    /// Its name or number.
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    client: ClientOptions,
}

/// Does what was typed.
pub(super) async fn run(command: NodesCommand) -> Result<(), Failure> {
    match command {
        NodesCommand::List(options) => list(options).await,
        NodesCommand::Drain(options) => drain(options).await,
        NodesCommand::Remove(options) => {
            let client = options.client.client()?;
            let node = node_of(&status(&client).await?, &options.node)?;
            client.admin(async |admin| admin.remove_node(RemoveNodeRequest { node }).await).await?;
            output::line(format!("{} is no node of the cluster any more", options.node))
        }
    }
}

/// The groups that a node holds replicas of, or is to hold.
fn groups_on(status: &StatusResponse, node: u64) -> Vec<u64> {
    let holds = status.groups.iter().filter(|group| group.members.contains(&node) || group.next.contains(&node));
    holds.map(|group| group.id).collect()
}

async fn list(options: ClientOptions) -> Result<(), Failure> {
    let answer = status(&options.client()?).await?;
    let state = |node: &Node| match (node.alive, node.draining) {
        (true, false) => "alive",
        (true, true) => "alive, draining",
        (false, false) => "silent",
        (false, true) => "silent, draining",
    };
    match options.output.output {
        Format::Json => {
            let one = |node: &Node| -> Value {
                json!({
                    "node": node.id,
                    "name": node.name,
                    "alive": node.alive,
                    "draining": node.draining,
                    "zone": node.zone,
                    "peer_address": node.peer_address,
                    "client_address": node.client_address,
                    "groups": groups_on(&answer, node.id),
                })
            };
            output::json(&json!({ "nodes": answer.nodes.iter().map(one).collect::<Vec<_>>() }))
        }
        Format::Table => output::table(
            &["NODE", "NAME", "STATE", "ZONE", "PEER", "GROUPS"],
            answer.nodes.iter().map(|node| {
                let groups: Vec<String> = groups_on(&answer, node.id).iter().map(u64::to_string).collect();
                let groups = if groups.is_empty() { "-".to_owned() } else { groups.join(",") };
                let zone = if node.zone.is_empty() { "-" } else { &node.zone };
                let (name, state) = (node.name.clone(), state(node).to_owned());
                vec![node.id.to_string(), name, state, zone.to_owned(), node.peer_address.clone(), groups]
            }),
        ),
    }
}

async fn drain(options: DrainOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let node = node_of(&status(&client).await?, &options.node)?;
    let request = DrainNodeRequest { node, drain: !options.undo };
    client.admin(async |admin| admin.drain_node(request).await).await?;
    let name = &options.node;
    if options.undo {
        return output::line(format!("{name} may hold replicas again"));
    }
    if options.change.no_wait {
        return output::line(format!("{name} will be emptied"));
    }
    wait(&client, node, name, &options.change).await
}

async fn wait(client: &Client, node: u64, name: &str, options: &ChangeOptions) -> Result<(), Failure> {
    let began = Instant::now();
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    loop {
        // A gateway that restarts meanwhile is no reason to give up.
        if let Ok(answer) = status(client).await {
            let left = groups_on(&answer, node);
            if left.is_empty() {
                bar.finish_and_clear();
                return output::line(format!("{name} holds no replicas any more"));
            }
            let left: Vec<String> = left.iter().map(u64::to_string).collect();
            bar.set_message(format!("{name} still holds replicas of the groups {}", left.join(", ")));
        }
        bar.tick();
        if began.elapsed() > options.wait {
            bar.finish_and_clear();
            return Err(Failure::Run(format!(
                "{name} still holds replicas after {}; the draining goes on. Where no other node can take a replica, it \
                 stays: see `cloudpaxos nodes list`, and add a node with `cloudpaxos start --join`",
                humantime::format_duration(options.wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

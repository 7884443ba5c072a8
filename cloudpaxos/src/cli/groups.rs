//! `cloudpaxos groups`: which nodes hold the replicas of a group, and how that changes.
//!
//! A change is a wish that the shardmaster logs; the nodes do the rest. The commands wait until it has come
//! true, and show how far it is; `--no-wait` does not.

use super::ClientOptions;
use super::client::Client;
use super::output::{self, Format};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use proto::admin::{
    ChangeMembersRequest, CreateGroupRequest, EmptyGroupRequest, Group, RemoveGroupRequest, ReplicaState,
    StatusRequest, StatusResponse,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often a change is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// The commands about groups.
#[derive(Subcommand, Debug)]
pub enum GroupsCommand {
    /// List the groups, their members, and changes under way.
    #[command(after_help = "\
Examples:
  cloudpaxos groups list
  cloudpaxos groups list -o json")]
    List(ClientOptions),
    /// Give a group one more replica.
    #[command(after_help = "\
Example, a replica of group 2 on the node n4:
  cloudpaxos groups add 2 n4")]
    Add(OneNode),
    /// Take a replica from a group.
    #[command(after_help = "\
Example:
  cloudpaxos groups remove 2 n1")]
    Remove(OneNode),
    /// Put a node in another one's place: the newcomer catches up before the other one leaves.
    #[command(after_help = "\
Example, n4 instead of n1, which may be dead:
  cloudpaxos groups replace 2 n1 n4")]
    Replace(TwoNodes),
    /// Create one more data group; the balancer gives it shards.
    #[command(after_help = "\
Examples, on the emptiest nodes, spread over zones, and on nodes of your choice:
  cloudpaxos groups create
  cloudpaxos groups create --node n3 --node n4 --node n5")]
    Create(CreateOptions),
    /// Move all shards of a group to the others, while they serve; it stays, and gets none.
    #[command(after_help = "\
Examples:
  cloudpaxos groups empty 3
  cloudpaxos groups empty 3 --undo")]
    Empty(EmptyOptions),
    /// Delete a group that has no shards, with its replicas.
    #[command(after_help = "\
Example:
  cloudpaxos groups empty 3 && cloudpaxos groups delete 3")]
    Delete(DeleteOptions),
}

/// A new group.
#[derive(Args, Clone, Debug)]
pub struct CreateOptions {
    /// A node that is to hold a replica, by name or number; for each replica one.
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    change: ChangeOptions,
}

/// A group that is to have no shards.
#[derive(Args, Clone, Debug)]
pub struct EmptyOptions {
    /// The group's number.
    #[arg(value_name = "GROUP")]
    group: u64,
    /// Let it have shards again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    change: ChangeOptions,
}

/// A group that goes.
#[derive(Args, Clone, Debug)]
pub struct DeleteOptions {
    /// The group's number.
    #[arg(value_name = "GROUP")]
    group: u64,
    #[command(flatten)]
    client: ClientOptions,
}

/// How to wait for a change.
#[derive(Args, Clone, Debug)]
pub struct ChangeOptions {
    /// Return when the change is logged, not when it has come true.
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Wait no longer than this; the change goes on.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(super) wait: Duration,
    #[command(flatten)]
    pub(super) client: ClientOptions,
}

/// A group and a node.
#[derive(Args, Clone, Debug)]
pub struct OneNode {
    /// The group's number; 1 is the shardmaster's.
    #[arg(value_name = "GROUP")]
    group: u64,
    /// The node's name or number.
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    change: ChangeOptions,
}

/// A group, and two nodes.
#[derive(Args, Clone, Debug)]
pub struct TwoNodes {
    /// The group's number; 1 is the shardmaster's.
    #[arg(value_name = "GROUP")]
    group: u64,
    /// The node that leaves, by name or number.
    #[arg(value_name = "OLD")]
    old: String,
    /// The node that takes its place, by name or number.
    #[arg(value_name = "NEW")]
    new: String,
    #[command(flatten)]
    change: ChangeOptions,
}

/// Does what was typed.
pub(super) async fn run(command: GroupsCommand) -> Result<(), Failure> {
    match command {
        GroupsCommand::List(options) => list(options).await,
        GroupsCommand::Create(options) => create(options).await,
        GroupsCommand::Empty(options) => empty(options).await,
        GroupsCommand::Delete(options) => {
            let (client, group) = (options.client.client()?, options.group);
            client.admin(async |admin| admin.remove_group(RemoveGroupRequest { group }).await).await?;
            output::line(format!("group {group} is deleted"))
        }
        GroupsCommand::Add(one) => {
            let change = |members: &mut Vec<u64>, node: u64| match members.contains(&node) {
                true => Err("it has a replica already"),
                false => {
                    members.push(node);
                    Ok(())
                }
            };
            alter(one.group, &[&one.node], one.change, |members, nodes| change(members, nodes[0])).await
        }
        GroupsCommand::Remove(one) => {
            alter(one.group, &[&one.node], one.change, |members, nodes| leave(members, nodes[0])).await
        }
        GroupsCommand::Replace(two) => {
            let replace = |members: &mut Vec<u64>, nodes: &[u64]| {
                leave(members, nodes[0])?;
                if members.contains(&nodes[1]) {
                    return Err("the newcomer has a replica already");
                }
                members.push(nodes[1]);
                Ok(())
            };
            alter(two.group, &[&two.old, &two.new], two.change, replace).await
        }
    }
}

async fn create(options: CreateOptions) -> Result<(), Failure> {
    let client = options.change.client.client()?;
    let before = status(&client).await?;
    let members = options.nodes.iter().map(|node| node_of(&before, node)).collect::<Result<Vec<_>, _>>()?;
    let request = CreateGroupRequest { members, nonce: rand::random() };
    let group = client.admin(async |admin| admin.create_group(request.clone()).await).await?.group;
    let began = Instant::now();
    loop {
        // A gateway that restarts meanwhile is no reason to give up.
        let answer = status(&client).await.ok();
        let present = answer.as_ref().and_then(|answer| answer.groups.iter().find(|it| it.id == group));
        if let (Some(answer), Some(present)) = (&answer, present)
            && (options.change.no_wait || present.leader != 0)
        {
            return output::line(format!("group {group} has the members {}", names(answer, &present.members)));
        }
        if began.elapsed() > options.change.wait {
            return Err(Failure::Run(format!(
                "group {group} has no leader after {}: a majority of its nodes must be alive, see `cloudpaxos status`",
                humantime::format_duration(options.change.wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn empty(options: EmptyOptions) -> Result<(), Failure> {
    let (client, group) = (options.change.client.client()?, options.group);
    let request = EmptyGroupRequest { group, emptying: !options.undo };
    client.admin(async |admin| admin.empty_group(request).await).await?;
    if options.undo {
        return output::line(format!("group {group} may have shards again"));
    }
    if options.change.no_wait {
        return output::line(format!("group {group} will be emptied"));
    }
    let began = Instant::now();
    let bar = ProgressBar::new_spinner();
    loop {
        let mut left = None;
        if let Ok(answer) = status(&client).await {
            left = Some(group_of(&answer, group)?.shards);
        }
        if left == Some(0) {
            bar.finish_and_clear();
            return output::line(format!("group {group} has no shards"));
        }
        if let Some(left) = left {
            bar.set_message(format!("group {group}: {left} shards left"));
        }
        bar.tick();
        if began.elapsed() > options.change.wait {
            bar.finish_and_clear();
            return Err(Failure::Run(format!(
                "group {group} still has shards after {}; it goes on, see `cloudpaxos balance explain` and `cloudpaxos \
                 shards moves`",
                humantime::format_duration(options.change.wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn leave(members: &mut Vec<u64>, node: u64) -> Result<(), &'static str> {
    let before = members.len();
    members.retain(|member| *member != node);
    if members.len() == before { Err("it has no replica") } else { Ok(()) }
}

pub(super) async fn status(client: &Client) -> Result<StatusResponse, Failure> {
    Ok(client.admin(async |admin| admin.status(StatusRequest {}).await).await?)
}

async fn list(options: ClientOptions) -> Result<(), Failure> {
    let answer = status(&options.client()?).await?;
    let name = |id: &u64| name_of(&answer, *id);
    match options.output.output {
        Format::Json => output::json(&json!({ "groups": answer.groups.iter().map(as_json).collect::<Vec<_>>() })),
        Format::Table => output::table(
            &["GROUP", "CONFIG", "LEADER", "MEMBERS", "NEXT", "SHARDS"],
            answer.groups.iter().map(|group| {
                let names = |ids: &[u64]| match ids {
                    [] => "-".to_owned(),
                    ids => ids.iter().map(name).collect::<Vec<_>>().join(","),
                };
                let leader = if group.leader == 0 { "-".to_owned() } else { name(&group.leader) };
                let (id, config, shards) = (group.id.to_string(), group.config.to_string(), group.shards.to_string());
                vec![id, config, leader, names(&group.members), names(&group.next), shards]
            }),
        ),
    }
}

fn as_json(group: &Group) -> Value {
    json!({
        "group": group.id,
        "config": group.config,
        "leader": group.leader,
        "members": group.members,
        "next": group.next,
        "shards": group.shards,
        "emptying": group.emptying,
    })
}

fn name_of(status: &StatusResponse, id: u64) -> String {
    let node = status.nodes.iter().find(|node| node.id == id);
    node.map_or_else(|| id.to_string(), |node| node.name.clone())
}

/// A node by its name, or by its number.
pub(super) fn node_of(status: &StatusResponse, text: &str) -> Result<u64, Failure> {
    let named = |node: &&proto::admin::Node| node.name == text || node.id.to_string() == text;
    status.nodes.iter().find(named).map(|node| node.id).ok_or_else(|| {
        let known: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        Failure::NotFound(format!("there is no node {text}; there are {}", known.join(", ")))
    })
}

fn group_of(status: &StatusResponse, id: u64) -> Result<&Group, Failure> {
    status.groups.iter().find(|group| group.id == id).ok_or_else(|| {
        let known: Vec<String> = status.groups.iter().map(|group| group.id.to_string()).collect();
        Failure::NotFound(format!("there is no group {id}; there are {}", known.join(", ")))
    })
}

async fn alter(
    group: u64,
    nodes: &[&str],
    options: ChangeOptions,
    change: impl Fn(&mut Vec<u64>, &[u64]) -> Result<(), &'static str>,
) -> Result<(), Failure> {
    let client = options.client.client()?;
    let before = status(&client).await?;
    let ids = nodes.iter().map(|node| node_of(&before, node)).collect::<Result<Vec<_>, _>>()?;
    let present = group_of(&before, group)?;
    let mut wanted = present.members.clone();
    change(&mut wanted, &ids)
        .map_err(|why| Failure::Usage(format!("group {group}, {}: {why}", nodes.join(" and "))))?;
    wanted.sort_unstable();
    let request = ChangeMembersRequest { group, members: wanted.clone() };
    client.admin(async |admin| admin.change_members(request.clone()).await).await?;
    if options.no_wait {
        return output::line(format!("group {group} will have the members {}", names(&before, &wanted)));
    }
    wait(&client, group, &wanted, &options).await
}

fn names(status: &StatusResponse, ids: &[u64]) -> String {
    ids.iter().map(|id| name_of(status, *id)).collect::<Vec<_>>().join(", ")
}

/// Waits until a group has these members, and says what it waits for.
async fn wait(client: &Client, group: u64, wanted: &[u64], options: &ChangeOptions) -> Result<(), Failure> {
    let began = Instant::now();
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    loop {
        // A gateway that restarts meanwhile is no reason to give up.
        if let Ok(answer) = status(client).await {
            let present = group_of(&answer, group)?;
            if present.members == wanted {
                bar.finish_and_clear();
                let config = present.config;
                return output::line(format!(
                    "group {group} has the members {} (configuration {config})",
                    names(&answer, wanted)
                ));
            }
            bar.set_message(standing(&answer, present, wanted));
        }
        bar.tick();
        if began.elapsed() > options.wait {
            bar.finish_and_clear();
            return Err(Failure::Run(format!(
                "group {group} does not have these members after {}; the change goes on, see `cloudpaxos groups list`; \
                 a newcomer must reach the others, and a majority of both the old and the new members must be alive",
                humantime::format_duration(options.wait)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a change waits for.
fn standing(status: &StatusResponse, group: &Group, wanted: &[u64]) -> String {
    let behind = group.replicas.iter().filter(|replica| wanted.contains(&replica.node)).filter_map(|replica| {
        let name = name_of(status, replica.node);
        match replica.report.as_ref().filter(|_| replica.alive) {
            None => Some(format!("{name} has no replica yet")),
            Some(report) if report.state() == ReplicaState::CatchingUp => {
                Some(format!("{name} catches up, {} entries behind", replica.lag_slots))
            }
            Some(_) => None,
        }
    });
    let behind: Vec<String> = behind.collect();
    match behind.is_empty() {
        true => format!("group {}: the members change", group.id),
        false => format!("group {}: {}", group.id, behind.join("; ")),
    }
}

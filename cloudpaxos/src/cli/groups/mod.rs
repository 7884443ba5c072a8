//! `cloudpaxos groups`: which nodes hold the replicas of a group, and how that changes.
//!
//! A change is a wish that the shardmaster logs; the nodes do the rest. The commands wait until it has come
//! true, and show how far it is; `--no-wait` does not.

mod data;
mod members;

use super::ClientOptions;
use super::client::Client;
use super::output::{self, Format};
use super::wait::ChangeOptions;
use crate::failure::Failure;
use clap::{Args, Subcommand};
use proto::admin::{Group, StatusRequest, StatusResponse};
use serde_json::{Value, json};

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
    /// Call off a change of members that has not come true.
    #[command(after_help = "\
Example:
  cloudpaxos groups cancel 2")]
    Cancel(OneGroup),
    /// Create one more data group; the balancer gives it shards.
    #[command(after_help = "\
Examples, on the emptiest nodes, spread over zones, and on nodes of your choice:
  cloudpaxos groups create
  cloudpaxos groups create --node n3 --node n4 --node n5")]
    Create(CreateOptions),
    /// Move all shards of a group to the others, while they serve; it stays, and gets none.
    #[command(after_help = "\
Waits until it has none. It is given none from then on, until it is deleted, or that is undone.

Examples:
  cloudpaxos groups empty 3
  cloudpaxos groups empty 3 --undo")]
    Empty(EmptyOptions),
    /// Delete a group that has no shards, with its replicas, for good.
    #[command(after_help = "\
Example:
  cloudpaxos groups empty 3 && cloudpaxos groups delete 3")]
    Delete(OneGroup),
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

/// A group.
#[derive(Args, Clone, Debug)]
pub struct OneGroup {
    /// The group's number.
    #[arg(value_name = "GROUP")]
    group: u64,
    #[command(flatten)]
    client: ClientOptions,
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
        GroupsCommand::Create(options) => data::create(options).await,
        GroupsCommand::Empty(options) => data::empty(options).await,
        GroupsCommand::Delete(options) => data::delete(options).await,
        GroupsCommand::Add(one) => members::add(one).await,
        GroupsCommand::Remove(one) => members::remove(one).await,
        GroupsCommand::Replace(two) => members::replace(two).await,
        GroupsCommand::Cancel(one) => members::cancel(one).await,
    }
}

pub(super) async fn status(client: &Client) -> Result<StatusResponse, Failure> {
    Ok(client.admin(async |admin| admin.status(StatusRequest {}).await).await?)
}

async fn list(options: ClientOptions) -> Result<(), Failure> {
    let answer = status(&options.client()?).await?;
    let name = |id: &u64| name_of(&answer, *id);
    match options.format() {
        Format::Json => output::json(&json!({ "groups": answer.groups.iter().map(as_json).collect::<Vec<_>>() })),
        Format::Table => output::table(
            &["GROUP", "CONFIG", "LEADER", "MEMBERS", "NEXT", "SHARDS"],
            answer.groups.iter().map(|group| {
                let names = |ids: &[u64]| match ids {
                    [] => "-".to_owned(),
                    ids => ids.iter().map(name).collect::<Vec<_>>().join(","),
                };
                let leader = if group.leader == 0 { "-".to_owned() } else { name(&group.leader) };
                let (id, config) = (group.id.to_string(), group.config.to_string());
                let shards = format!("{}{}", group.shards, if group.emptying { " (emptying)" } else { "" });
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

pub(super) fn name_of(status: &StatusResponse, id: u64) -> String {
    let node = status.nodes.iter().find(|node| node.id == id);
    node.map_or_else(|| id.to_string(), |node| node.name.clone())
}

fn names(status: &StatusResponse, ids: &[u64]) -> String {
    ids.iter().map(|id| name_of(status, *id)).collect::<Vec<_>>().join(", ")
}

/// A node by its name, or else by its number: a name may look like another node's number.
pub(super) fn node_of(status: &StatusResponse, text: &str) -> Result<u64, Failure> {
    let named = status.nodes.iter().find(|node| node.name == text);
    let found = named.or_else(|| status.nodes.iter().find(|node| node.id.to_string() == text));
    found.map(|node| node.id).ok_or_else(|| {
        let known: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        Failure::Usage(format!("there is no node {text}; there are {}", known.join(", ")))
    })
}

fn group_of(status: &StatusResponse, id: u64) -> Result<&Group, Failure> {
    status.groups.iter().find(|group| group.id == id).ok_or_else(|| {
        let known: Vec<String> = status.groups.iter().map(|group| group.id.to_string()).collect();
        Failure::Usage(format!("there is no group {id}; there are {}", known.join(", ")))
    })
}

/// What is worth saying of a group of this size, if anything.
fn size_note(replicas: usize) -> Option<String> {
    match replicas {
        1 => Some("a group of 1 replica survives no failure: without its node it stands still".to_owned()),
        2 => Some("a group of 2 replicas survives no more failures than one of 1: none".to_owned()),
        even if even % 2 == 0 => Some(format!(
            "a group of {even} replicas survives no more failures than one of {}: {}",
            even - 1,
            even / 2 - 1
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::admin::Node;

    #[test]
    fn a_name_wins_over_a_number() {
        let node = |id, name: &str| Node { id, name: name.to_owned(), ..Node::default() };
        let status = StatusResponse {
            nodes: vec![node(1, "n1"), node(3, "n3"), node(4, "3"), node(5, "1")],
            ..StatusResponse::default()
        };
        assert_eq!(node_of(&status, "3").expect("it is there"), 4, "the node called 3, not number 3");
        assert_eq!(node_of(&status, "1").expect("it is there"), 5);
        assert_eq!(node_of(&status, "4").expect("it is there"), 4, "nobody is called so");
        let unknown = node_of(&status, "n9").expect_err("it is not there");
        assert_eq!(
            (unknown.to_string().as_str(), unknown.exit_code()),
            ("there is no node n9; there are n1, n3, 3, 1", 2)
        );
    }

    #[test]
    fn even_groups_and_single_replicas_are_worth_a_note() {
        let note = |replicas| size_note(replicas).unwrap_or_default();
        assert!(note(1).contains("no failure") && note(2).ends_with("one of 1: none"));
        assert!(note(4).ends_with("than one of 3: 1") && note(6).ends_with("than one of 5: 2"));
        assert_eq!([3, 5, 7].map(size_note), [None, None, None]);
    }
}

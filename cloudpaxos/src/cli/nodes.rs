//! `cloudpaxos nodes`: who is there, and how a node leaves for good.

use super::ClientOptions;
use super::groups::{name_of, node_of, status};
use super::output::{self, Format};
use super::wait::{ChangeOptions, SETTLED, Seen, Wish, spinner, until};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use proto::admin::{DrainNodeRequest, Group, Node, RemoveNodeRequest, Role, StatusResponse};
use serde_json::{Value, json};
use std::time::Duration;

/// The group of the shardmaster's replicas.
const SHARDMASTER: u64 = 1;

/// The commands about nodes.
#[derive(Subcommand, Debug)]
pub enum NodesCommand {
    /// List the nodes: whether they answer, their zones, and the groups that each holds replicas of.
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
    /// Forget a node that holds no replicas. Its process ends by itself, and is refused when it is started again.
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
    /// It may hold replicas again; what would still take one from it is called off.
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
            let before = status(&client).await?;
            let node = node_of(&before, &options.node)?;
            client.change(async |admin| admin.remove_node(RemoveNodeRequest { node }).await).await?;
            let name = name_of(&before, node);
            let document = json!({ "node": node, "name": name, "removed": true });
            output::outcome(options.client.format(), &document, format!("{name} is no node of the cluster any more"))
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
    let state = |node: &Node| {
        let mut words = vec![match (node.alive, node.silent_seconds) {
            (true, _) => "alive".to_owned(),
            (false, 0) => "silent".to_owned(),
            (false, seconds) => format!("silent for {}", humantime::format_duration(Duration::from_secs(seconds))),
        }];
        words.extend(node.draining.then(|| "draining".to_owned()));
        words.extend(node.no_space.then(|| "disk full".to_owned()));
        words.join(", ")
    };
    match options.format() {
        Format::Json => {
            let one = |node: &Node| -> Value {
                json!({
                    "node": node.id,
                    "name": node.name,
                    "alive": node.alive,
                    "draining": node.draining,
                    "no_space": node.no_space,
                    "silent_seconds": node.silent_seconds,
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
                let (name, state) = (node.name.clone(), state(node));
                vec![node.id.to_string(), name, state, zone.to_owned(), node.peer_address.clone(), groups]
            }),
        ),
    }
}

async fn drain(options: DrainOptions) -> Result<(), Failure> {
    let (client, format) = (options.change.client.client()?, options.change.format());
    let before = status(&client).await?;
    let node = node_of(&before, &options.node)?;
    let name = name_of(&before, node);
    let request = DrainNodeRequest { node, drain: !options.undo };
    client.change(async |admin| admin.drain_node(request).await).await?;
    let document = |groups: &[u64]| json!({ "node": node, "name": name, "draining": !options.undo, "groups": groups });
    if options.undo {
        let sentence = format!("{name} may hold replicas again");
        return output::outcome(format, &document(&groups_on(&before, node)), sentence);
    }
    if options.change.no_wait {
        return output::outcome(format, &document(&groups_on(&before, node)), format!("{name} will be emptied"));
    }
    let what = format!("{name} still holds replicas");
    let hint = "the draining goes on. Where no other node can take a replica, it stays: see `cloudpaxos nodes list`, \
                and add a node with `cloudpaxos start --join`";
    let mut leaving = Leaving { node, wish: Wish::new(before.map_version), stuck_since: None };
    let look = async |elapsed| match status(&client).await {
        Ok(answer) => leaving.judge(elapsed, &answer),
        Err(_) => Ok(Seen::Nothing),
    };
    until(options.change.wait, spinner(), (&what, hint), look).await?;
    output::outcome(format, &document(&[]), format!("{name} holds no replicas any more"))
}

/// A node that is being emptied, as it has been seen.
struct Leaving {
    node: u64,
    wish: Wish,
    /// Since when there has been a replica that nobody can take.
    stuck_since: Option<Duration>,
}

impl Leaving {
    /// How empty the node is; it fails where that goes no further, or is not wanted any more.
    fn judge(&mut self, elapsed: Duration, answer: &StatusResponse) -> Result<Seen<()>, Failure> {
        let node = self.node;
        let left = groups_on(answer, node);
        let draining = answer.nodes.iter().any(|known| known.id == node && known.draining);
        let gone = self.wish.is_gone(elapsed, answer.map_version, draining);
        if left.is_empty() {
            return Ok(Seen::Done(()));
        }
        let name = name_of(answer, node);
        if gone {
            return Err(Failure::Run(format!("{name} is not being drained any more: somebody has undone it")));
        }
        let groups = answer.groups.iter().filter(|group| left.contains(&group.id));
        let hold_ups: Vec<HoldUp> = groups.map(|group| hold_up(answer, group, node)).collect();
        let texts: Vec<&str> = hold_ups.iter().map(|hold_up| hold_up.text.as_str()).collect();
        let text = texts.join("; ");
        // A node that restarts is silent for a moment, and what is asked for shows a moment later.
        let stuck = hold_ups.iter().any(|hold_up| hold_up.stuck);
        self.stuck_since = if stuck { self.stuck_since.or(Some(elapsed)) } else { None };
        match self.stuck_since {
            Some(since) if elapsed.saturating_sub(since) >= SETTLED => Err(Failure::Run(format!(
                "{name} still holds replicas: {text}. It stays to be drained: add a node with `cloudpaxos start \
                 --join`, or call it off with `cloudpaxos nodes drain {name} --undo`"
            ))),
            _ => Ok(Seen::Waits(text)),
        }
    }
}

/// What keeps a group on a node that is to leave.
#[derive(Debug, PartialEq)]
struct HoldUp {
    text: String,
    /// Nothing is under way, and nothing will be before another node comes.
    stuck: bool,
}

fn hold_up(status: &StatusResponse, group: &Group, node: u64) -> HoldUp {
    let newcomers = group.next.iter().filter(|next| !group.members.contains(next));
    let newcomers: Vec<String> = newcomers.map(|newcomer| newcomer_text(status, *newcomer)).collect();
    let (why, stuck) = if group.next.contains(&node) {
        ("another change of its members comes first".to_owned(), false)
    } else if !newcomers.is_empty() {
        let verb = if newcomers.len() == 1 { "comes" } else { "come" };
        (format!("{} {verb} in its place", newcomers.join(", ")), false)
    } else if !group.next.is_empty() {
        ("it is about to leave".to_owned(), false)
    } else if status.nodes.iter().any(|other| can_take(other, group)) {
        ("it waits for its turn".to_owned(), false)
    } else {
        let why = "no other node can take it: all others are silent, draining, of other roles, or hold one already";
        (why.to_owned(), true)
    };
    HoldUp { text: format!("group {}: {why}", group.id), stuck }
}

fn newcomer_text(status: &StatusResponse, id: u64) -> String {
    let alive = status.nodes.iter().any(|node| node.id == id && node.alive);
    let silent = if alive { "" } else { " (silent)" };
    format!("{}{silent}", name_of(status, id))
}

/// Whether a node can take a replica of a group; of a silent one nothing is known.
fn can_take(node: &Node, group: &Group) -> bool {
    let role = if group.id == SHARDMASTER { Role::Shardmaster } else { Role::Shardkv };
    node.alive && !node.draining && !group.members.contains(&node.id) && node.roles().any(|known| known == role)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, alive: bool, draining: bool) -> Node {
        let roles = vec![Role::Shardkv.into()];
        Node { id, name: format!("n{id}"), alive, draining, roles, ..Node::default() }
    }

    /// n1 is being drained, n4 silent; group 2 has replicas on n1, n2 and n3.
    fn answer(map_version: u64, next: &[u64]) -> StatusResponse {
        let group = Group { id: 2, members: vec![1, 2, 3], next: next.to_vec(), ..Group::default() };
        let nodes = vec![node(1, true, true), node(2, true, false), node(3, true, false), node(4, false, false)];
        StatusResponse { map_version, nodes, groups: vec![group], ..StatusResponse::default() }
    }

    fn held_up(answer: &StatusResponse) -> (String, bool) {
        let HoldUp { text, stuck } = hold_up(answer, &answer.groups[0], 1);
        (text, stuck)
    }

    #[test]
    fn each_group_says_what_it_waits_for() {
        assert_eq!(held_up(&answer(8, &[2, 3, 4])), ("group 2: n4 (silent) comes in its place".to_owned(), false));
        let (text, stuck) = held_up(&answer(8, &[]));
        assert!(stuck && text.starts_with("group 2: no other node can take it: all others are silent"), "{text}");
        let mut joined = answer(8, &[]);
        joined.nodes.push(node(5, true, false));
        assert_eq!(held_up(&joined), ("group 2: it waits for its turn".to_owned(), false));
        joined.groups[0].id = SHARDMASTER;
        assert!(held_up(&joined).1, "n5 holds no metadata");
        assert!(!held_up(&answer(8, &[1, 2, 3, 4])).1, "something is under way");
    }

    #[test]
    fn nobody_waits_for_what_cannot_be_or_is_not_wanted() {
        let second = Duration::from_secs(1);
        let leaving = || Leaving { node: 1, wish: Wish::new(7), stuck_since: None };
        let mut stuck = leaving();
        assert!(stuck.judge(second, &answer(8, &[])).is_ok());
        assert!(stuck.judge(2 * second, &answer(9, &[2, 3, 4])).is_ok(), "something is under way");
        assert!(stuck.judge(3 * second, &answer(10, &[])).is_ok());
        assert!(stuck.judge(5 * second, &answer(10, &[])).is_ok());
        let error = stuck.judge(6 * second, &answer(10, &[])).expect_err("nobody comes").to_string();
        assert!(error.starts_with("n1 still holds replicas: group 2: no other node can take it"), "{error}");

        let mut undone = leaving();
        assert!(undone.judge(second, &answer(8, &[2, 3, 4])).is_ok());
        let mut back = answer(9, &[2, 3, 4]);
        back.nodes[0].draining = false;
        let error = undone.judge(second, &back).expect_err("it was undone").to_string();
        assert!(error.contains("not being drained any more"), "{error}");
        back.groups[0].members = vec![2, 3, 4];
        assert_eq!(undone.judge(second, &back).expect("it is empty"), Seen::Done(()));
    }
}

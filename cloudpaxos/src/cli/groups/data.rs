//! `cloudpaxos groups create|empty|delete`: data groups that come and go.

use super::{CreateOptions, EmptyOptions, OneGroup, as_json, names, node_of, size_note, status};
use crate::cli::client::ClientError;
use crate::cli::output;
use crate::cli::wait::{Seen, Wish, spinner, until};
use crate::failure::Failure;
use proto::admin::{CreateGroupRequest, EmptyGroupRequest, Group, RemoveGroupRequest, StatusResponse};
use serde_json::json;
use std::time::Duration;

pub(super) async fn create(options: CreateOptions) -> Result<(), Failure> {
    let (client, format) = (options.change.client.client()?, options.change.format());
    let before = status(&client).await?;
    let members = options.nodes.iter().map(|node| node_of(&before, node)).collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) = twice(&members) {
        return Err(Failure::Usage(format!("{} is named twice", names(&before, &[twice]))));
    }
    let request = CreateGroupRequest { members, nonce: rand::random() };
    let created = client.change(async |admin| admin.create_group(request.clone()).await).await;
    let id = created.map_err(|error| refused(error, options.nodes.is_empty()))?.group;
    let what = format!("group {id} has no leader");
    let hint = "a majority of its nodes must be alive, see `cloudpaxos status`";
    let (mut wish, no_wait) = (Wish::new(before.map_version), options.change.no_wait);
    let look = async |elapsed| match status(&client).await {
        Ok(answer) => begun(&mut wish, elapsed, answer, id, no_wait),
        Err(_) => Ok(Seen::Nothing),
    };
    let (group, members) = until(options.change.wait, spinner(), (&what, hint), look).await?;
    if let Some(note) = size_note(group.members.len()) {
        output::note(format, note);
    }
    output::outcome(format, &as_json(&group), format!("group {id} has the members {members}"))
}

/// The first node that is there more than once.
fn twice(nodes: &[u64]) -> Option<u64> {
    nodes.iter().enumerate().find(|(at, node)| nodes[..*at].contains(node)).map(|(_, node)| *node)
}

/// The shardmaster counts the nodes that it has found, and says no more.
fn refused(error: ClientError, any_node: bool) -> Failure {
    match error {
        ClientError::Refused { status, .. } if any_node && status.message().ends_with(" replicas, not 0") => {
            Failure::Run(
                "no node can take a replica: all are being drained, or hold none of data groups (see `cloudpaxos \
                 nodes list`)"
                    .to_owned(),
            )
        }
        other => other.into(),
    }
}

/// A new group with its members' names, once it is in the map and, if that is waited for, has a leader.
fn begun(
    wish: &mut Wish,
    elapsed: Duration,
    answer: StatusResponse,
    id: u64,
    no_wait: bool,
) -> Result<Seen<(Group, String)>, Failure> {
    let group = answer.groups.iter().find(|group| group.id == id);
    let gone = wish.is_gone(elapsed, answer.map_version, group.is_some());
    match group {
        Some(group) if no_wait || group.leader != 0 => Ok(Seen::Done((group.clone(), names(&answer, &group.members)))),
        Some(group) => Ok(Seen::Waits(format!("group {id}: {} begin", names(&answer, &group.members)))),
        None if gone => Err(deleted(id)),
        None => Ok(Seen::Nothing),
    }
}

fn deleted(id: u64) -> Failure {
    Failure::Run(format!("group {id} was deleted meanwhile"))
}

pub(super) async fn empty(options: EmptyOptions) -> Result<(), Failure> {
    let (client, format, id) = (options.change.client.client()?, options.change.format(), options.group);
    let before = status(&client).await?;
    let request = EmptyGroupRequest { group: id, emptying: !options.undo };
    client.change(async |admin| admin.empty_group(request).await).await?;
    let document = json!({ "group": id, "emptying": !options.undo });
    if options.undo {
        return output::outcome(format, &document, format!("group {id} may have shards again"));
    }
    if options.change.no_wait {
        return output::outcome(format, &document, format!("group {id} will be emptied"));
    }
    let what = format!("group {id} still has shards");
    let hint = "it goes on, see `cloudpaxos balance explain` and `cloudpaxos shards moves`";
    let mut wish = Wish::new(before.map_version);
    let look = async |elapsed| match status(&client).await {
        Ok(answer) => emptied(&mut wish, elapsed, &answer, id),
        Err(_) => Ok(Seen::Nothing),
    };
    let group = until(options.change.wait, spinner(), (&what, hint), look).await?;
    output::outcome(format, &as_json(&group), format!("group {id} has no shards"))
}

/// How empty a group is; it fails where it is not to be emptied any more.
fn emptied(wish: &mut Wish, elapsed: Duration, answer: &StatusResponse, id: u64) -> Result<Seen<Group>, Failure> {
    let group = answer.groups.iter().find(|group| group.id == id);
    let gone = wish.is_gone(elapsed, answer.map_version, group.is_some_and(|group| group.emptying));
    match group {
        Some(group) if group.shards == 0 => Ok(Seen::Done(group.clone())),
        Some(group) if gone => Err(Failure::Run(format!(
            "group {id} is not to be emptied any more: somebody has undone it; it has {} shards",
            group.shards
        ))),
        Some(group) => Ok(Seen::Waits(format!("group {id}: {} shards left", group.shards))),
        None if gone => Err(deleted(id)),
        None => Ok(Seen::Nothing),
    }
}

pub(super) async fn delete(options: OneGroup) -> Result<(), Failure> {
    let (client, group) = (options.client.client()?, options.group);
    client.change(async |admin| admin.remove_group(RemoveGroupRequest { group }).await).await?;
    let document = json!({ "group": group, "deleted": true });
    output::outcome(options.client.format(), &document, format!("group {group} is deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    const SOON: Duration = Duration::from_millis(200);

    fn answer(map_version: u64, emptying: bool, shards: u64) -> StatusResponse {
        let group = Group { id: 3, emptying, shards, ..Group::default() };
        StatusResponse { map_version, groups: vec![group], ..StatusResponse::default() }
    }

    #[test]
    fn a_group_that_is_not_to_be_emptied_any_more_is_not_waited_for() {
        let mut wish = Wish::new(7);
        let mut look = |answer: &StatusResponse| emptied(&mut wish, SOON, answer, 3).map_err(|error| error.to_string());
        assert!(matches!(look(&answer(7, false, 4)), Ok(Seen::Waits(_))), "the answer is older");
        assert!(matches!(look(&answer(8, true, 4)), Ok(Seen::Waits(_))));
        assert!(look(&answer(9, false, 4)).expect_err("it was undone").contains("somebody has undone it"));
        assert!(matches!(look(&answer(9, true, 0)), Ok(Seen::Done(_))));
        let none = StatusResponse { map_version: 10, ..StatusResponse::default() };
        assert_eq!(look(&none).expect_err("it is gone"), "group 3 was deleted meanwhile");
    }

    #[test]
    fn a_new_group_is_there_once_it_leads() {
        let mut wish = Wish::new(7);
        let mut look = |answer, no_wait| begun(&mut wish, SOON, answer, 3, no_wait).map_err(|error| error.to_string());
        let none = |map_version| StatusResponse { map_version, ..StatusResponse::default() };
        assert!(matches!(look(none(7), false), Ok(Seen::Nothing)));
        assert!(matches!(look(answer(8, false, 0), false), Ok(Seen::Waits(_))));
        assert!(matches!(look(answer(8, false, 0), true), Ok(Seen::Done(_))));
        assert!(look(none(9), false).is_err(), "somebody has deleted it");
    }

    #[test]
    fn a_node_is_named_once() {
        assert_eq!((twice(&[1, 2, 3]), twice(&[1, 2, 3, 2, 1])), (None, Some(2)));
    }

    #[test]
    fn a_group_for_which_there_is_no_node_is_no_mistake_of_the_command() {
        let answer = || {
            let status = Box::new(Status::invalid_argument("a group has 1 to 7 replicas, not 0"));
            ClientError::Refused { endpoint: "a:1".to_owned(), status }
        };
        assert!(refused(answer(), true).to_string().starts_with("no node can take a replica"));
        assert_eq!(refused(answer(), true).exit_code(), 1);
        assert_eq!(refused(answer(), false).exit_code(), 2);
    }
}

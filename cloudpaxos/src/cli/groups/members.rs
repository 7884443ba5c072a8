//! `cloudpaxos groups add|remove|replace|cancel`: other members for a group, and back.

use super::{OneGroup, OneNode, TwoNodes, as_json, group_of, name_of, names, node_of, size_note, status};
use crate::cli::output;
use crate::cli::wait::{ChangeOptions, SETTLED, Seen, Wish, spinner, until};
use crate::failure::Failure;
use proto::admin::{ChangeMembersRequest, Group, ReplicaState, StatusResponse};
use std::time::Duration;

pub(super) async fn add(one: OneNode) -> Result<(), Failure> {
    alter(one.group, &[&one.node], one.change, |members, nodes| join(members, nodes[0])).await
}

pub(super) async fn remove(one: OneNode) -> Result<(), Failure> {
    alter(one.group, &[&one.node], one.change, |members, nodes| leave(members, nodes[0])).await
}

pub(super) async fn replace(two: TwoNodes) -> Result<(), Failure> {
    alter(two.group, &[&two.old, &two.new], two.change, swap).await
}

fn join(members: &mut Vec<u64>, node: u64) -> Result<(), &'static str> {
    if members.contains(&node) {
        return Err("it has a replica already");
    }
    members.push(node);
    Ok(())
}

fn leave(members: &mut Vec<u64>, node: u64) -> Result<(), &'static str> {
    let before = members.len();
    members.retain(|member| *member != node);
    if members.len() == before { Err("it has no replica") } else { Ok(()) }
}

fn swap(members: &mut Vec<u64>, nodes: &[u64]) -> Result<(), &'static str> {
    if nodes[0] == nodes[1] {
        return Err("they are the same node, which cannot take its own place");
    }
    leave(members, nodes[0]).map_err(|_| "the one that leaves has no replica")?;
    join(members, nodes[1]).map_err(|_| "the newcomer has a replica already")
}

async fn alter(
    group: u64,
    nodes: &[&str],
    options: ChangeOptions,
    change: impl Fn(&mut Vec<u64>, &[u64]) -> Result<(), &'static str>,
) -> Result<(), Failure> {
    let (client, format) = (options.client.client()?, options.format());
    let before = status(&client).await?;
    let ids = nodes.iter().map(|node| node_of(&before, node)).collect::<Result<Vec<_>, _>>()?;
    let present = group_of(&before, group)?;
    let mut wanted = present.members.clone();
    change(&mut wanted, &ids).map_err(|why| {
        let pending = pending(&before, present);
        Failure::Usage(format!("group {group}, {}: {why}{pending}", nodes.join(" and ")))
    })?;
    wanted.sort_unstable();
    let request = ChangeMembersRequest { group, members: wanted.clone() };
    client.change(async |admin| admin.change_members(request.clone()).await).await?;
    if let Some(note) = size_note(wanted.len()).filter(|_| wanted.len() != present.members.len()) {
        output::note(format, note);
    }
    if options.no_wait {
        let document = as_json(&Group { next: wanted.clone(), ..present.clone() });
        let sentence = format!("group {group} will have the members {}", names(&before, &wanted));
        return output::outcome(format, &document, sentence);
    }
    let what = format!("group {group} does not have these members");
    let hint = "the change goes on, see `cloudpaxos groups list`; a newcomer must reach the others, and a majority of \
                both the old and the new members must be alive";
    let mut wish = Wish::new(before.map_version);
    let changed = until(options.wait, spinner(), (&what, hint), async |elapsed| match status(&client).await {
        Ok(answer) => judge(&mut wish, elapsed, &answer, group, &wanted),
        Err(_) => Ok(Seen::Nothing),
    });
    let changed = changed.await?;
    let (members, config) = (names(&before, &wanted), changed.config);
    output::outcome(
        format,
        &as_json(&changed),
        format!("group {group} has the members {members} (configuration {config})"),
    )
}

/// What is to be said of a change under way to somebody who counts on it.
fn pending(status: &StatusResponse, group: &Group) -> String {
    match &group.next[..] {
        [] => String::new(),
        next => format!(
            "; a change to the members {} is under way, which `cloudpaxos groups cancel {}` calls off",
            names(status, next),
            group.id
        ),
    }
}

/// How far a change is; it fails where it is not wanted any more.
fn judge(
    wish: &mut Wish,
    elapsed: Duration,
    answer: &StatusResponse,
    id: u64,
    wanted: &[u64],
) -> Result<Seen<Group>, Failure> {
    let group = answer.groups.iter().find(|group| group.id == id);
    if let Some(group) = group.filter(|group| group.members == wanted) {
        return Ok(Seen::Done(group.clone()));
    }
    let wished = group.is_some_and(|group| group.next == wanted);
    match (group, wish.is_gone(elapsed, answer.map_version, wished)) {
        (Some(group), false) => Ok(Seen::Waits(standing(answer, group, wanted))),
        (None, false) => Ok(Seen::Nothing),
        (None, true) => Err(Failure::Run(format!("group {id} was deleted meanwhile"))),
        (Some(group), true) => {
            let members = names(answer, &group.members);
            let now = match &group.next[..] {
                [] => "and no others are wanted now".to_owned(),
                next => format!("and {} are wanted now", names(answer, next)),
            };
            Err(Failure::Run(format!(
                "the change of group {id} was called off, or replaced by another one: it has the members {members}, {now}"
            )))
        }
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

/// Who asks for the members that there are calls off the change to others.
pub(super) async fn cancel(options: OneGroup) -> Result<(), Failure> {
    let (client, format, id) = (options.client.client()?, options.client.format(), options.group);
    let before = status(&client).await?;
    let group = group_of(&before, id)?;
    if group.next.is_empty() {
        let sentence = format!("no change of the members of group {id} is under way: nothing is to be done");
        return output::outcome(format, &as_json(group), sentence);
    }
    let request = ChangeMembersRequest { group: id, members: group.members.clone() };
    client.change(async |admin| admin.change_members(request.clone()).await).await?;
    let what = format!("group {id} is still to have other members");
    let hint = "somebody may have asked for them again, as happens where a node is being drained or counts as dead";
    let after = until(SETTLED, spinner(), (&what, hint), async |_| match status(&client).await {
        Ok(answer) => Ok(called_off(&answer, id)),
        Err(_) => Ok(Seen::Nothing),
    });
    let after = after.await?;
    let members = names(&before, &after.members);
    if after.members != group.members {
        return Err(Failure::Run(format!("it was too late: group {id} has the members {members} already")));
    }
    output::outcome(format, &as_json(&after), format!("called off: group {id} keeps the members {members}"))
}

fn called_off(answer: &StatusResponse, id: u64) -> Seen<Group> {
    let group = answer.groups.iter().find(|group| group.id == id);
    group.filter(|group| group.next.is_empty()).map_or(Seen::Nothing, |group| Seen::Done(group.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::admin::Node;

    const SOON: Duration = Duration::from_millis(200);

    fn answer(map_version: u64, members: &[u64], next: &[u64]) -> StatusResponse {
        let node = |id| Node { id, name: format!("n{id}"), ..Node::default() };
        let group = Group { id: 2, members: members.to_vec(), next: next.to_vec(), ..Group::default() };
        StatusResponse { map_version, nodes: (1..=5).map(node).collect(), groups: vec![group], ..Default::default() }
    }

    /// What is said in the end of a wish for these members, made at version 7.
    fn end(answers: &[(u64, &[u64], &[u64])], wanted: &[u64]) -> Result<Seen<Group>, String> {
        let mut wish = Wish::new(7);
        let judged = answers.iter().map(|(version, members, next)| {
            judge(&mut wish, SOON, &answer(*version, members, next), 2, wanted).map_err(|error| error.to_string())
        });
        judged.last().expect("one at least")
    }

    #[test]
    fn a_change_that_is_not_wanted_any_more_is_not_waited_for() {
        let (old, new, other) = (&[1, 2, 3][..], &[2, 3, 4][..], &[2, 3, 5][..]);
        assert!(matches!(end(&[(7, old, &[])], new), Ok(Seen::Waits(_))), "the answer is older");
        assert!(matches!(end(&[(8, old, new)], new), Ok(Seen::Waits(_))));
        assert!(matches!(end(&[(8, old, new), (9, new, &[])], new), Ok(Seen::Done(_))));
        assert!(matches!(end(&[(8, old, new), (10, new, other)], new), Ok(Seen::Done(_))), "and then another");
        let off = end(&[(8, old, new), (9, old, &[])], new).expect_err("it was called off");
        assert!(off.ends_with("it has the members n1, n2, n3, and no others are wanted now"), "{off}");
        let replaced = end(&[(8, old, new), (9, old, other)], new).expect_err("it was replaced");
        assert!(replaced.ends_with("and n2, n3, n5 are wanted now"), "{replaced}");
    }

    #[test]
    fn whoever_counts_on_a_change_under_way_is_told_of_it() {
        let busy = answer(8, &[1, 2, 3], &[1, 2, 3, 4]);
        let text = pending(&busy, &busy.groups[0]);
        assert!(text.contains("n1, n2, n3, n4 is under way") && text.contains("groups cancel 2"), "{text}");
        let calm = answer(8, &[1, 2, 3], &[]);
        assert_eq!(pending(&calm, &calm.groups[0]), "");
        assert_eq!((called_off(&busy, 2), called_off(&calm, 2)), (Seen::Nothing, Seen::Done(calm.groups[0].clone())));
    }

    #[test]
    fn a_node_does_not_take_its_own_place() {
        let mut members = vec![1, 2, 3];
        assert!(swap(&mut members, &[1, 1]).is_err() && swap(&mut members, &[9, 9]).is_err());
        assert_eq!(swap(&mut members, &[1, 4]), Ok(()));
        assert_eq!(members, [2, 3, 4]);
    }
}

//! Leases between nodes that are configured differently, or were before a restart.

use paxos::election::Status;
use paxos::heartbeat::{Heartbeats, Timing};
use paxos::{Ballot, ConfigId, GroupId, NodeId, Time};

const GROUP: GroupId = GroupId(2);
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const START: Time = Time(10_000_000);

fn timing(lease_micros: u64) -> Timing {
    Timing { lease_micros, ..Timing::default() }
}

fn ballot() -> Ballot {
    Ballot { config: ConfigId::default(), round: 1, node: N1, boot: 1 }
}

/// n1's lease, counted from when it pinged, and when n2's grant ends: n1 leads, n2 follows.
fn lease(holder: Timing, granter: Timing) -> (u64, u64) {
    let mut n1 = Heartbeats::new(N1, 1, holder, &[N1, N2], START);
    let mut n2 = Heartbeats::new(N2, 1, granter, &[N1, N2], START);
    let status = Status {
        promised: ballot(),
        own: ballot(),
        leader: ballot(),
        happy: true,
        reluctant: false,
        barred: false,
        config: ConfigId(0),
    };
    n1.publish(GROUP, status);
    n2.publish(GROUP, status);
    // The first exchange only tells boots.
    for _ in 0..2 {
        for (_, ping) in n1.ping(START, None) {
            if let Some(pong) = n2.receive(START, N1, ping) {
                n1.receive(START, N2, pong);
            }
        }
    }
    let until = n1.lease_until(START, GROUP, ballot(), &[N1, N2]).expect("n2 grants");
    (until.since(START), n2.grant_ends(GROUP, ballot()).since(START))
}

#[test]
fn a_lease_never_outlives_its_grant_however_nodes_are_configured() {
    for (holder, granter) in [(800_000, 800_000), (3_000_000, 800_000), (300_000, 2_000_000)] {
        let (held, granted) = lease(timing(holder), timing(granter));
        assert_eq!(granted, granter);
        assert_eq!(held, granter - granter / 100, "held by {holder}, granted by {granter}");
    }
}

/// n2 hears of a candidate, which freezes its grant, loses sight of it, and follows n1 again: its pongs grant again, and
/// it must keep to that.
#[test]
fn a_node_that_turned_back_to_its_leader_grants_anew() {
    let mut beats = Heartbeats::new(N2, 1, timing(800_000), &[N1, N2], Time(0));
    let mut n1 = Heartbeats::new(N1, 1, timing(800_000), &[N1, N2], Time(0));
    let mut hear = |beats: &mut Heartbeats, now: Time| {
        for (_, ping) in n1.ping(now, None) {
            beats.receive(now, N1, ping);
        }
    };
    let follows = |leader| Status { promised: ballot(), leader, happy: true, ..Status::default() };
    beats.publish(GROUP, follows(ballot()));
    hear(&mut beats, START);
    beats.publish(GROUP, follows(Ballot { round: 2, ..ballot() }));
    let (frozen, later) = (START.plus(800_000), START.plus(2_000_000));
    hear(&mut beats, START.plus(100_000));
    assert_eq!(beats.grant_ends(GROUP, ballot()), frozen, "what it answers while it follows another grants nothing");
    beats.publish(GROUP, follows(ballot()));
    hear(&mut beats, later);
    assert_eq!(beats.grant_ends(GROUP, ballot()), later.plus(800_000));
}

#[test]
fn after_a_restart_the_longest_grant_is_kept() {
    let shorter_now = Timing { granted_before_micros: 3_000_000, ..timing(300_000) };
    let beats = Heartbeats::new(N2, 2, shorter_now, &[N1, N2], START);
    assert_eq!(beats.grant_ends(GROUP, ballot()), START.plus(3_000_000));
    let longer_now = Timing { granted_before_micros: 300_000, ..timing(900_000) };
    let beats = Heartbeats::new(N2, 2, longer_now, &[N1, N2], START);
    assert_eq!(beats.grant_ends(GROUP, ballot()), START.plus(900_000));
}

/// A node that is forgotten, or not known yet, may lead all the same, by what it was granted.
#[test]
fn a_grant_outlives_what_is_known_of_its_holder() {
    let end = START.plus(800_000);
    let mut beats = Heartbeats::new(N2, 1, timing(800_000), &[N1, N2], START);
    let later = START.plus(300_000);
    for _ in 0..2 {
        let mut n1 = Heartbeats::new(N1, 1, timing(800_000), &[N1, N2], later);
        n1.ping(later, None).into_iter().for_each(|(_, ping)| drop(beats.receive(later, N1, ping)));
    }
    assert_eq!(beats.grant_ends(GROUP, ballot()), later.plus(800_000));
    beats.remove_peer(N1);
    assert_eq!(beats.grant_ends(GROUP, ballot()), later.plus(800_000), "it was told so");
    beats.add_peer(N1);
    assert_eq!(beats.grant_ends(GROUP, ballot()), later.plus(800_000));

    let fresh = Heartbeats::new(N2, 2, timing(800_000), &[N2], START);
    assert_eq!(fresh.grant_ends(GROUP, ballot()), end, "before the restart");
    assert_eq!(fresh.grant_ends(GROUP, Ballot::default()), Time(0), "nobody");
    assert_eq!(fresh.grant_ends(GROUP, Ballot { node: N2, ..ballot() }), Time(0), "itself");
}

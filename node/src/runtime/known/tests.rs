use super::*;

fn known(me: u64, cluster: u64, directory: &Path) -> KnownPeers {
    let address = |id: u64| PeerAddress { name: format!("n{id}"), address: format!("127.0.0.1:{id}") };
    KnownPeers {
        path: directory.join("peers.json"),
        ours: Handshake { cluster, node: NodeId(me), incarnation: 10 * me, to: NodeId(me) },
        members: Mutex::new(Members {
            nodes: (1..=3).map(|id| (NodeId(id), address(id))).collect(),
            ..Members::default()
        }),
        described: BTreeMap::new(),
        known: Mutex::default(),
        refused_by: Mutex::default(),
    }
}

fn info(id: u64, incarnation: u64) -> NodeInfo {
    let (name, peer_address) = (format!("n{id}"), format!("127.0.0.1:{id}"));
    NodeInfo { id: NodeId(id), name, peer_address, incarnation, ..NodeInfo::default() }
}

#[test]
fn one_stranger_stops_nobody_but_a_stranger_among_peers_stops() {
    let directory = tempfile::tempdir().expect("a directory");
    let (n1, n2) = (known(1, 7, directory.path()), known(2, 7, directory.path()));
    let stranger = known(3, 8, directory.path());
    let refusal = stranger.admit(Some(n1.ours(NodeId(3)))).expect_err("of another cluster");
    assert_eq!(n1.refused(NodeId(3), &refusal), Verdict::TryOn, "n2 may take n1 for what it is");
    assert_eq!(n1.refused(NodeId(3), &refusal), Verdict::TryOn, "said again");
    let refusal = |by: &KnownPeers| by.admit(Some(stranger.ours(by.ours.node))).expect_err("of another cluster");
    assert_eq!(stranger.refused(NodeId(1), &refusal(&n1)), Verdict::TryOn);
    assert_eq!(stranger.refused(NodeId(2), &refusal(&n2)), Verdict::Stop, "all of them say so");
    n1.accepted(NodeId(3));
    assert_eq!(n1.refused(NodeId(2), &refusal(&n2)), Verdict::TryOn, "n3 has changed its mind");
}

#[test]
fn a_node_with_another_directory_stops_at_the_first_refusal() {
    let directory = tempfile::tempdir().expect("a directory");
    let n1 = known(1, 7, directory.path());
    let mut n2 = known(2, 7, directory.path());
    assert_eq!(n1.admit(Some(n2.ours(NodeId(1)))).expect("welcome"), n2.ours(NodeId(1)));
    n2.ours.incarnation += 1;
    let refusal = n1.admit(Some(n2.ours(NodeId(1)))).expect_err("its promises are gone");
    assert_eq!(n2.refused(NodeId(1), &refusal), Verdict::Stop, "{refusal}");
    // The same words from another cluster's node prove nothing.
    let foreign = known(1, 8, directory.path());
    let refusal = foreign.refusal(REPLACED, "no".into());
    assert_eq!(n2.refused(NodeId(3), &refusal), Verdict::TryOn);
}

/// n4 has never met n1, which has told the shardmaster of its directory, and comes with another one: together they might
/// be a majority that knows nothing of what n1 had accepted.
#[test]
fn a_directory_that_the_map_has_is_known_to_who_never_met_the_node() {
    let directory = tempfile::tempdir().expect("a directory");
    let (n4, mut n1) = (known(4, 7, directory.path()), known(1, 7, directory.path()));
    let first = n1.ours(NodeId(4));
    n1.ours.incarnation += 1;
    let second = n1.ours(NodeId(4));
    n4.meet(&[1, 2, 3, 4].map(|id| info(id, 0)), NodeId(4));
    n4.meet(&[1, 2, 3, 4].map(|id| info(id, 10 * id)), NodeId(4));
    let refusal = n4.admit(Some(second)).expect_err("its promises are gone");
    assert_eq!(n1.refused(NodeId(4), &refusal), Verdict::Stop, "{refusal}");
    assert!(n4.is_welcome(&first) && !n4.is_welcome(&second), "a stream that was open before ends");
    let file = read(&directory.path().join("peers.json")).expect("a file");
    assert_eq!(file.registered, [1, 2, 3, 4].map(|id| (id, 10 * id)).into(), "the next start knows it, too");
    n4.meet(&[1, 2, 3, 4].map(|id| info(id, 0)), NodeId(4));
    assert!(!n4.is_welcome(&second), "a map from before n1 has told, after a crash, makes nobody forget");
    n4.admit(Some(first)).expect("it is who it was");
}

#[test]
fn a_peer_is_admitted_only_when_it_is_remembered() {
    let n1 = known(1, 7, Path::new("/nowhere/at/all"));
    let n2 = known(2, 7, Path::new("/nowhere"));
    for _ in 0..2 {
        let refusal = n1.admit(Some(n2.ours(NodeId(1)))).expect_err("it cannot be remembered");
        assert_eq!(refusal.code(), Code::Unavailable);
    }
}

#[test]
fn who_was_removed_is_told_for_good_and_who_is_new_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let (n1, n3) = (known(1, 7, directory.path()), known(3, 7, directory.path()));
    n1.meet(&[1, 2, 4].map(|id| info(id, 0)), NodeId(4));
    let refusal = n1.admit(Some(n3.ours(NodeId(1)))).expect_err("it was removed");
    assert_eq!(n3.refused(NodeId(1), &refusal), Verdict::Leave, "{refusal}");
    assert!(!n1.is_welcome(&n3.ours));
    let n5 = known(5, 7, directory.path());
    let refusal = n1.admit(Some(n5.ours(NodeId(1)))).expect_err("the map here is older");
    assert_eq!(n5.refused(NodeId(1), &refusal), Verdict::TryOn, "{refusal}");
    n1.meet(&[1, 2, 3].map(|id| info(id, 0)), NodeId(3));
    let n4 = known(4, 7, directory.path());
    assert!(n1.is_welcome(&n4.ours) && !n1.is_welcome(&n3.ours), "that map is older");
}

#[test]
fn what_is_meant_for_another_node_is_not_taken() {
    let directory = tempfile::tempdir().expect("a directory");
    let (n1, n2) = (known(1, 7, directory.path()), known(2, 7, directory.path()));
    let refusal = n1.admit(Some(n2.ours(NodeId(3)))).expect_err("n3's address leads here");
    assert!(refusal.message().contains("this is n1, not n3"), "{refusal}");
    assert_eq!(n2.refused(NodeId(3), &refusal), Verdict::TryOn);
}

use super::*;
use crate::config::{Address, Descent, Member, Role, Roles};
use std::process::Command;

fn name(text: &str) -> NodeName {
    NodeName::parse(text).expect("a name")
}

fn genesis(token: &str) -> Genesis {
    let roles = Roles::parse(&[Role::Shardmaster.word(), Role::Shardkv.word()]).expect("roles");
    let member = |id| Member {
        id: NodeId(id),
        name: name(&format!("n{id}")),
        peer_address: Address::parse(&format!("127.0.0.1:{id}")).expect("an address"),
        roles: roles.clone(),
    };
    let boundaries = vec![bytes::Bytes::from_static(b"\x00,"), bytes::Bytes::from_static(b"m")];
    Genesis {
        token: token.to_owned(),
        members: (1..=3).map(member).collect(),
        data_groups: 2,
        boundaries,
        descent: None,
    }
}

/// Opens `path` as this node, as a first start would.
fn open_as(path: &Path, node: &str) -> Result<DataDir, IdentityError> {
    let (name, genesis) = (name(node), genesis("t"));
    open(path, Claim { name: &name, token: Some("t"), genesis: Some(&genesis), lease_ms: 800, joins: false })
}

/// Opens `path` as a later start would, with nothing but a name.
fn open_again(path: &Path) -> Result<DataDir, IdentityError> {
    open(path, Claim { name: &name("n2"), token: None, genesis: None, lease_ms: 300, joins: false })
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn the_first_start_makes_an_identity_and_later_ones_count() {
    let base = directory();
    let path = base.path().join("not/yet/there");
    let first = open_as(&path, "n2").expect("an empty directory becomes ours");
    assert!(first.created);
    let born = first.identity.clone();
    assert_eq!((born.node_id, born.boot), (NodeId(2), 1));
    assert_eq!(born.cluster_id, genesis("t").cluster_id());
    drop(first);
    for boot in 2..5 {
        let again = open_again(&path).expect("ours again, without being told the cluster");
        assert!(!again.created);
        assert_eq!(again.identity, Identity { boot, ..born.clone() });
    }
}

#[test]
fn two_directories_of_one_name_have_two_incarnations() {
    let (one, other) = (directory(), directory());
    let incarnation = |path: &Path| open_as(path, "n2").expect("ours").identity.incarnation;
    assert_ne!(incarnation(one.path()), incarnation(other.path()));
}

#[test]
fn an_empty_directory_needs_a_cluster_with_this_node() {
    let base = directory();
    let error = open_again(base.path()).expect_err("nothing says which cluster");
    assert!(matches!(error, IdentityError::NothingToForm { .. }), "{error}");
    let error = open_as(base.path(), "n9").expect_err("no such member");
    assert!(matches!(error, IdentityError::NotAMember { .. }), "{error}");
    assert!(!base.path().join(file::NAME).exists(), "a refusal leaves nothing behind");
    assert!(open_as(base.path(), "n2").is_ok(), "and the right words still work");
}

#[test]
fn another_nodes_or_clusters_directory_is_refused_and_left_alone() {
    let base = directory();
    drop(open_as(base.path(), "n2").expect("ours"));
    let before = fs::read(base.path().join(file::NAME)).expect("a file");

    let error = open_as(base.path(), "n1").expect_err("it is n2's");
    assert!(matches!(error, IdentityError::OtherNode { .. }), "{error}");
    let (n2, other) = (name("n2"), genesis("other"));
    let error = open(
        base.path(),
        Claim { name: &n2, token: Some("other"), genesis: Some(&other), lease_ms: 800, joins: false },
    );
    let error = error.expect_err("it is another cluster's");
    assert!(matches!(error, IdentityError::OtherCluster { .. }), "{error}");
    assert_eq!(fs::read(base.path().join(file::NAME)).expect("a file"), before, "refused starts are not counted");
}

#[test]
fn a_changed_description_is_noted_and_ignored() {
    let base = directory();
    let born = open_as(base.path(), "n2").expect("ours").identity;
    let (n2, mut changed) = (name("n2"), genesis("t"));
    changed.members.pop();
    changed.data_groups = 7;
    let again =
        open(base.path(), Claim { name: &n2, token: None, genesis: Some(&changed), lease_ms: 800, joins: false })
            .expect("still ours");
    assert_eq!(again.identity.genesis, born.genesis);
    assert_eq!(again.notes.len(), 2, "{:?}", again.notes);
    assert!(again.notes[0].contains("--initial-cluster") && again.notes[1].contains("--data-groups"));
}

#[test]
fn a_foreign_directory_is_refused_untouched() {
    let base = directory();
    fs::write(base.path().join("thesis.tex"), "chapter 1").expect("a file");
    let error = open_as(base.path(), "n2").expect_err("it is somebody's thesis");
    assert!(matches!(&error, IdentityError::Foreign { example, .. } if example == "thesis.tex"), "{error}");
    let left: Vec<_> = fs::read_dir(base.path()).expect("readable").collect();
    assert_eq!(left.len(), 1, "nothing was added: {left:?}");
}

#[test]
fn a_fresh_file_system_is_empty() {
    let base = directory();
    fs::create_dir(base.path().join("lost+found")).expect("a directory");
    assert!(open_as(base.path(), "n2").is_ok());
}

#[test]
fn a_path_that_is_no_directory_is_named() {
    let base = directory();
    let path = base.path().join("file");
    fs::write(&path, "").expect("a file");
    let error = open_as(&path, "n2").expect_err("it is a file").to_string();
    assert!(error.contains(path.to_str().expect("UTF-8")) && !error.contains('\n'), "{error}");
}

/// Every state that a crash inside the very first start can leave: before and after each step.
#[test]
fn a_first_start_cut_short_anywhere_is_simply_begun_again() {
    let whole = {
        let base = directory();
        drop(open_as(base.path(), "n2").expect("ours"));
        fs::read(base.path().join(file::NAME)).expect("a file")
    };
    for written in 0..=whole.len() {
        let base = directory();
        fs::write(base.path().join(LOCK), "").expect("a lock");
        fs::write(base.path().join(file::TEMPORARY), &whole[..written]).expect("a part of the file");
        let opened = open_as(base.path(), "n2").unwrap_or_else(|error| panic!("cut at {written}: {error}"));
        assert!(opened.created && opened.identity.boot == 1);
    }
}

/// The same for a later start: whatever is left beside it, the old file counts until the rename.
#[test]
fn a_later_start_cut_short_never_counts_back() {
    let base = directory();
    let born = open_as(base.path(), "n2").expect("ours").identity;
    let next = file::encode(&Identity { boot: 2, ..born.clone() });
    for written in 0..=next.len() {
        fs::write(base.path().join(file::TEMPORARY), &next[..written]).expect("a part of the file");
        let boot = 2 + written as u64;
        assert_eq!(open_again(base.path()).expect("ours").identity, Identity { boot, ..born.clone() });
    }
}

#[test]
fn no_damage_to_the_file_goes_unnoticed() {
    let base = directory();
    let path = base.path().join(file::NAME);
    drop(open_as(base.path(), "n2").expect("ours"));
    let good = fs::read(&path).expect("a file");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        // The checksum's digits may change case, and mean the same.
        if bad.eq_ignore_ascii_case(&good) {
            continue;
        }
        let bad = String::from_utf8_lossy(&bad).into_owned();
        assert!(file::decode(&bad).is_err(), "byte {at} may change: {bad}");
        let good = String::from_utf8_lossy(&good);
        assert!(at < 2 || file::decode(&good[..at]).is_err() || at + 2 > good.len(), "the file may end at {at}");
    }
    fs::write(&path, &good[..good.len() / 2]).expect("a torn file");
    let error = open_again(base.path()).expect_err("it is torn");
    assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
}

#[test]
fn a_later_format_is_left_to_later_versions() {
    let json = r#"{"version":2,"everything":"else"}"#;
    let text = format!("{json}\ncrc32 {:08x}\n", crc32fast::hash(json.as_bytes()));
    assert!(matches!(file::decode(&text), Err(file::Undecodable::TooNew(2))));
}

#[test]
fn the_longest_lease_is_remembered() {
    let base = directory();
    assert_eq!(open_as(base.path(), "n2").expect("ours").identity.lease_ms, 800);
    assert_eq!(open_again(base.path()).expect("ours").identity.lease_ms, 800, "now it grants shorter ones");
}

#[test]
fn a_formed_directory_stays_formed() {
    let base = directory();
    let born = open_as(base.path(), "n2").expect("ours");
    assert!(!born.identity.formed);
    mark_formed(&born.path, &born.identity).expect("it is written");
    drop(born);
    for _ in 0..2 {
        let again = open_again(base.path()).expect("ours");
        assert!(again.identity.formed);
        mark_formed(&again.path, &again.identity).expect("nothing to do");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let base = directory();
    let identity = open_as(base.path(), "n3").expect("ours").identity;
    assert_eq!(file::decode(&file::encode(&identity)).expect("readable"), identity);
}

/// This test starts itself as the second process.
#[test]
fn one_process_at_a_time() {
    const VARIABLE: &str = "IDENTITY_TEST_SECOND_PROCESS";
    if let Some(path) = std::env::var_os(VARIABLE) {
        let error = open_as(Path::new(&path), "n2").expect_err("another process has it");
        assert!(matches!(error, IdentityError::InUse { .. }), "{error}");
        return;
    }
    let base = directory();
    let held = open_as(base.path(), "n2").expect("ours");
    let second = |path: &Path| {
        let own = std::env::current_exe().expect("this test");
        let words = ["--exact", "identity::tests::one_process_at_a_time"];
        Command::new(own).args(words).env(VARIABLE, path).output().expect("it starts")
    };
    let output = second(base.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "the second process got in: {said}");
    drop(held);
    assert!(open_again(base.path()).is_ok(), "the lock goes with its holder");
}

#[test]
fn a_directory_that_a_restore_left_half_full_starts_no_node_and_can_be_filled_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("n1");
    let descent = Descent { backup: 9, incarnation: 2, floor: 1000 };
    let restored = Genesis { descent: Some(descent), ..genesis("t") };
    let name = NodeName::parse("n1").expect("a name");
    let claim = Claim { name: &name, token: None, genesis: Some(&restored), lease_ms: 800, joins: false };
    let begin = |genesis: &Genesis| begin_restore(&path, &name, genesis);
    let Ok(Found::Empty(cut_short)) = begin(&restored) else { panic!("it is empty") };
    assert!(matches!(begin(&restored), Err(IdentityError::InUse { .. })), "one restore at a time");
    std::fs::create_dir(path.join("store")).expect("writable");
    drop(cut_short);
    assert!(matches!(open(&path, claim), Err(IdentityError::RestoreCutShort { .. })));

    let stray = path.join("notes.txt");
    std::fs::write(&stray, "somebody's").expect("writable");
    assert!(matches!(begin(&restored), Err(IdentityError::Foreign { .. })), "the mark excuses only what is ours");
    std::fs::remove_file(&stray).expect("it is there");
    let Ok(Found::Empty(restoring)) = begin(&restored) else { panic!("it begins anew") };
    assert!(!path.join("store").exists(), "what was left is gone");
    let identity = restoring.finish(claim).expect("it is the node's now");
    assert_eq!(identity.genesis.descent, Some(descent));
    assert!(matches!(begin(&restored), Ok(Found::Restored(_))), "done again, it changes nothing");
    let other = Genesis { descent: Some(Descent { floor: 2000, ..descent }), ..restored.clone() };
    assert!(matches!(begin(&other), Err(IdentityError::NotEmpty { .. })), "another cluster's floor");
    let corrected = Genesis { data_groups: 3, ..restored.clone() };
    assert!(matches!(begin(&corrected), Err(IdentityError::NotEmpty { .. })), "other settings");
    let opened = open(&path, claim).expect("it starts");
    assert_eq!((opened.identity.boot, opened.identity.genesis.descent), (2, Some(descent)));
}

#[test]
fn how_a_cluster_was_restored_is_part_of_its_id() {
    let plain = genesis("t");
    let descent = Descent { backup: 9, incarnation: 2, floor: 1000 };
    let id = |descent| Genesis { descent: Some(descent), ..plain.clone() }.cluster_id();
    let others =
        [Descent { backup: 8, ..descent }, Descent { incarnation: 3, ..descent }, Descent { floor: 1001, ..descent }];
    assert_ne!(plain.cluster_id(), id(descent));
    assert!(others.into_iter().all(|other| id(other) != id(descent)));
}

#[test]
fn a_node_that_joins_keeps_its_directory_from_before_it_has_an_id() {
    let base = directory();
    let (name, genesis) = (name("n4"), genesis("t"));
    let claim = |joins| Claim { name: &name, token: None, genesis: Some(&genesis), lease_ms: 800, joins };
    assert!(matches!(open(base.path(), claim(false)), Err(IdentityError::NotAMember { .. })));
    let first = open(base.path(), claim(true)).expect("an empty directory becomes ours");
    assert_eq!(first.identity.node_id, UNASSIGNED);
    let incarnation = first.identity.incarnation;
    drop(first);
    // It was cut short before the cluster had answered: the same node asks again.
    let mut again = open(base.path(), claim(true)).expect("ours");
    assert_eq!((again.identity.node_id, again.identity.incarnation), (UNASSIGNED, incarnation));
    assign(&again.path, &mut again.identity, NodeId(4)).expect("writable");
    drop(again);
    let later = open(base.path(), claim(false)).expect("ours, without being told again");
    assert_eq!((later.identity.node_id, later.identity.incarnation), (NodeId(4), incarnation));
}

#[test]
fn a_node_that_was_refused_may_ask_as_another_one() {
    let base = directory();
    let claim = |name, genesis| Claim { name, token: None, genesis: Some(genesis), lease_ms: 800, joins: true };
    let (n4, n5, wrong, right) = (name("n4"), name("n5"), genesis("wrong"), genesis("t"));
    let refused = open(base.path(), claim(&n4, &wrong)).expect("an empty directory becomes ours").identity;
    let again = open(base.path(), claim(&n4, &right)).expect("it has joined nothing yet").identity;
    assert_eq!(again.cluster_id, right.cluster_id());
    assert_ne!(again.incarnation, refused.incarnation);
    let mut named = open(base.path(), claim(&n5, &right)).expect("it has joined nothing yet");
    assert_eq!(named.identity.name, n5);
    assign(&named.path, &mut named.identity, NodeId(4)).expect("writable");
    drop(named);
    assert!(open(base.path(), claim(&n4, &right)).is_err(), "now it is n5's");
}

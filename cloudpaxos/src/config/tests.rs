use super::*;
use clap::{ArgMatches, Args, Command};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// `start` without its environment variables: the tests run with whatever environment they are in.
fn command() -> Command {
    StartOptions::augment_args(Command::new("start")).mut_args(|argument| argument.env(None::<&str>))
}

fn matches(words: &[&str]) -> ArgMatches {
    command().try_get_matches_from(["start"].iter().chain(words)).expect("the words are well-formed")
}

fn resolve(words: &[&str]) -> Result<StartConfig, ConfigError> {
    StartConfig::resolve(&command(), &matches(words))
}

/// What every node with replicas must be told.
const NODE: [&str; 6] =
    ["--name", "n1", "--data-dir", "/d", "--initial-cluster", "n1=127.0.0.1:1,n2=127.0.0.1:2,n3=127.0.0.1:3"];

fn node(words: &[&str]) -> Result<StartConfig, ConfigError> {
    resolve(&NODE.iter().chain(words).copied().collect::<Vec<_>>())
}

fn complaint(words: &[&str]) -> String {
    let complaint = node(words).expect_err("it must not stand").to_string();
    assert!(!complaint.contains('\n'), "one line: {complaint}");
    complaint
}

struct TempFile {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn file(text: &str) -> TempFile {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.toml");
    fs::write(&path, text).expect("a file");
    TempFile { path, _directory: directory }
}

fn with_file(text: &str, words: &[&str]) -> (PathBuf, Result<StartConfig, ConfigError>) {
    let file = file(text);
    let path = file.path.to_str().expect("UTF-8");
    (file.path.clone(), resolve(&["--config", path].iter().chain(words).copied().collect::<Vec<_>>()))
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = node(&[]).expect("it stands");
    assert_eq!(config.listen_client.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:2379"));
    assert_eq!(config.advertise_peer.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:1"));
    assert_eq!(config.roles, Roles::all());
    assert_eq!(config.read_mode, ReadMode::Lease);
    let ms = Duration::from_millis;
    assert_eq!(
        config.timing,
        Timing { heartbeat: ms(100), election_timeout: ms(600), lease: ms(800), dead_after: ms(600_000) }
    );
    assert_eq!((config.limits.request_bytes_max, config.limits.txn_operations_max), (1_572_864, 128));
    assert_eq!((config.log.filter.as_str(), config.log.format), ("info", LogFormat::Text));
    let genesis = config.genesis.expect("a cluster was described");
    assert_eq!((genesis.data_groups, genesis.token.as_str()), (2, "cloudpaxos"));
    let boundaries: Vec<&[u8]> = genesis.boundaries.iter().map(|key| &key[..]).collect();
    assert_eq!(boundaries, [b"+", b"7", b"C", b"O", b"[", b"g", b"s"], "8 shards from space to tilde");
}

/// The numbers in the help are texts beside the code that has them; here they meet.
#[test]
fn the_help_tells_the_true_defaults() {
    let help = command().render_long_help().to_string();
    let limits = Limits::default();
    let default_of = |flag: &str| {
        let (_, text) = help.split_once(&format!("--{flag} ")).unwrap_or_else(|| panic!("no --{flag} in the help"));
        let (_, text) = text.split_once("[default: ").unwrap_or_else(|| panic!("no default of --{flag}"));
        text.split(']').next().unwrap_or_default().to_owned()
    };
    for (flag, value) in [
        ("request-bytes-max", limits.request_bytes_max),
        ("txn-operations-max", limits.txn_operations_max),
        ("batch-entries-max", limits.batch_entries_max),
        ("batch-bytes-max", limits.batch_bytes_max),
        ("group-slots-max", limits.group_slots_max),
        ("proposal-bytes-max", limits.proposal_bytes_max),
        ("peer-queue-bytes-max", limits.peer_queue_bytes_max),
        ("wal-queue-bytes-max", limits.wal_queue_bytes_max),
        ("apply-lag-bytes-max", limits.apply_lag_bytes_max),
        ("wal-segment-bytes", limits.wal_segment_bytes),
    ] {
        assert_eq!(value::bytes(&default_of(flag), 0..=u64::MAX), Ok(value), "--{flag}");
    }
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "name = \"n1\"\ndata-dir = \"/file\"\nheartbeat-ms = 50\nlease-ms = 900\n\
                initial-cluster = [\"n1=127.0.0.1:1\"]\nroles = [\"shardkv\", \"shardmaster\"]\n";
    let (_, config) = with_file(text, &["--data-dir", "/flag", "--lease-ms", "1000"]);
    let config = config.expect("it stands");
    assert_eq!(config.data_dir, Some(PathBuf::from("/flag")));
    let ms = Duration::from_millis;
    assert_eq!(
        config.timing,
        Timing { heartbeat: ms(50), election_timeout: ms(600), lease: ms(1000), dead_after: ms(600_000) }
    );
    assert_eq!(config.listen_client, None, "no gateway role, no client port");
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_what_was_meant() {
    let (path, config) = with_file("name = \"n1\"\n\nlisten_clinet = \"127.0.0.1:1\"\n", &[]);
    let expected = format!("{}:3: unknown key `listen_clinet`; did you mean `listen-client`?", path.display());
    assert_eq!(config.expect_err("the key is unknown").to_string(), expected);
    let (_, config) = with_file("wibble = 1\n", &[]);
    assert!(config.expect_err("the key is unknown").to_string().contains("--help"), "nothing is near to wibble");
}

#[test]
fn a_value_in_the_file_is_complained_of_at_its_line() {
    let (path, config) = with_file("# hello\nheartbeat-ms = \"soon\"\n", &NODE);
    let complaint = config.expect_err("no number").to_string();
    assert!(complaint.starts_with(&format!("{}:2: heartbeat-ms: `soon`", path.display())), "{complaint}");
    let (path, config) = with_file("name = \"n1\"\ndata-dir = [oops\n", &[]);
    let complaint = config.expect_err("no TOML").to_string();
    assert!(complaint.starts_with(&format!("{}:2: not valid TOML", path.display())), "{complaint}");
    assert!(!complaint.contains('\n'), "one line: {complaint}");
    let (_, config) = with_file("[limits]\nx = 1\n", &[]);
    assert!(config.is_err(), "a table is no setting");
}

#[test]
fn a_missing_file_is_the_machines_fault_a_wrong_one_the_operators() {
    let missing = resolve(&["--config", "/nowhere/node.toml"]).expect_err("there is no such file");
    assert!(missing.is_environmental() && missing.to_string().contains("/nowhere/node.toml"), "{missing}");
    let (_, wrong) = with_file("wibble = 1\n", &[]);
    assert!(!wrong.expect_err("the key is unknown").is_environmental());
}

#[test]
fn what_is_missing_is_named_in_all_three_spellings() {
    let complaint = resolve(&[]).expect_err("there is no name").to_string();
    for part in ["--name", "CLOUDPAXOS_NAME", "`name`"] {
        assert!(complaint.contains(part), "{complaint}");
    }
    let complaint = resolve(&["--name", "n1"]).expect_err("there is no directory").to_string();
    assert!(complaint.contains("--data-dir"), "{complaint}");
}

#[test]
fn bad_addresses_say_which_and_what_to_write() {
    for (address, reason) in [
        ("2379", "no port"),
        ("127.0.0.1:http", "no port between"),
        ("127.0.0.1:70000", "no port between"),
        ("http://127.0.0.1:2379", "URL"),
        ("::1:2379", "brackets"),
        (":2379", "host"),
        ("my host:2379", "host"),
        ("example.org:2379", "is a name"),
        ("127.0.0.1:0", "port 0"),
    ] {
        let complaint = complaint(&["--listen-client", address]);
        assert!(complaint.starts_with("--listen-client: ") && complaint.contains(reason), "{address}: {complaint}");
    }
    let config = node(&["--listen-client", "[::1]:2379"]).expect("IPv6 is an address");
    assert_eq!(config.listen_client.map(|address| address.to_string()).as_deref(), Some("[::1]:2379"));
}

#[test]
fn plain_text_off_loopback_needs_words() {
    for (flag, tls) in [
        ("--listen-client", "--client-tls-dir"),
        ("--listen-peer", "--peer-tls-dir"),
        ("--listen-metrics", "--client-tls-dir"),
    ] {
        let complaint = complaint(&[flag, "10.0.0.1:9000"]);
        assert!(complaint.contains("10.0.0.1:9000") && complaint.contains("--insecure-plaintext"), "{complaint}");
        assert!(complaint.contains(tls), "{complaint}");
        assert!(node(&[flag, "10.0.0.1:9000", tls, "/tls"]).is_ok(), "{flag}");
        assert!(node(&[flag, "10.0.0.1:9000", "--insecure-plaintext"]).is_ok());
        assert!(node(&[flag, "10.0.0.1:9000", "--insecure-plaintext=false"]).is_err());
    }
    let complaint = complaint(&["--insecure-plaintext", "--listen-client", "0.0.0.0:2379"]);
    assert!(complaint.contains("--advertise-client"), "nobody can dial 0.0.0.0: {complaint}");
    let config = node(&["--insecure-plaintext", "--listen-peer", "0.0.0.0:2380"]).expect("the list says how to dial");
    assert_eq!(config.advertise_peer.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:1"));
}

#[test]
fn nobody_is_dialled_in_plain_text_off_loopback() {
    let gateway = ["--name", "g1", "--roles", "gateway", "--initial-cluster", "n1=10.0.0.1:2380"];
    let complaint = complaint_of(&gateway);
    assert!(
        complaint.contains("--initial-cluster: 10.0.0.1:2380") && complaint.contains("--peer-tls-dir"),
        "{complaint}"
    );
    for words in [&["--peer-tls-dir", "/tls"][..], &["--insecure-plaintext"]] {
        assert!(resolve(&[&gateway[..], words].concat()).is_ok(), "{words:?}");
    }
}

#[test]
fn the_list_of_members_must_make_sense() {
    let with = |list: &str| resolve(&["--name", "n1", "--data-dir", "/d", "--initial-cluster", list]);
    for (list, reason) in [
        ("n1", "no name=host:port"),
        ("n1=127.0.0.1:1,n1=127.0.0.1:2,n3=127.0.0.1:3", "n1 twice"),
        ("n1=127.0.0.1:1,n2=127.0.0.1:1,n3=127.0.0.1:3", "127.0.0.1:1 twice"),
        ("n1=127.0.0.1:1,n2=127.0.0.1:2", "survives no failure"),
        ("n1=0.0.0.0:1", "cannot dial"),
        ("n 1=127.0.0.1:1", "no node name"),
        ("n2=127.0.0.1:1", "does not name this node, n1"),
        ("n1=127.0.0.1:1/gateway", "shardmaster or shardkv"),
        ("n1=127.0.0.1:1/shardkv", "no node the role shardmaster"),
    ] {
        let complaint = with(list).expect_err(list).to_string();
        assert!(complaint.starts_with("--initial-cluster: ") && complaint.contains(reason), "{list}: {complaint}");
    }
    assert!(with("n1=127.0.0.1:1").is_ok(), "one node is a cluster");
}

#[test]
fn ids_are_places_in_the_list_sorted_by_name() {
    let genesis = |list| {
        let words = ["--name", "b", "--data-dir", "/d", "--initial-cluster", list];
        resolve(&words).expect("it stands").genesis.expect("a cluster was described")
    };
    let (one, other) = (genesis("c=[::1]:3,a=[::1]:1,b=[::1]:2"), genesis("a=[::1]:1,b=[::1]:2,c=[::1]:3"));
    assert_eq!(one, other, "the order of writing means nothing");
    assert_eq!(one.cluster_id(), other.cluster_id());
    let ids: Vec<_> = one.members.iter().map(|member| (member.name.as_str(), member.id.0)).collect();
    assert_eq!(ids, [("a", 1), ("b", 2), ("c", 3)]);
}

/// Nodes that were told different things must find out: the id covers all of it.
#[test]
fn the_cluster_id_covers_the_whole_description() {
    let id = |words: &[&str]| node(words).expect("it stands").genesis.map(|genesis| genesis.cluster_id());
    let plain = id(&[]);
    // Fixed for ever: a version that computes another id could not join its own cluster.
    assert_eq!(plain, Some(0x4903_5fff_fe18_30d3));
    assert_ne!(plain, id(&["--cluster-token", "other"]));
    assert_ne!(plain, id(&["--data-groups", "3"]));
    assert_ne!(plain, id(&["--shard-boundaries", "m"]));
    assert_eq!(plain, id(&["--heartbeat-ms", "50"]), "no part of the description");
}

#[test]
fn roles_and_list_must_agree() {
    let complaint = complaint(&["--roles", "shardkv"]);
    assert!(complaint.contains("n1=127.0.0.1:1/shardkv"), "it says what to write: {complaint}");
    let list = "n1=localhost:1/shardkv,n2=localhost:2,n3=localhost:3,n4=localhost:4";
    let words = ["--name", "n1", "--data-dir", "/d", "--roles", "shardkv,gateway", "--initial-cluster", list];
    let config = resolve(&words).expect("it stands");
    assert!(config.roles.has(Role::Shardkv) && !config.roles.has(Role::Shardmaster));

    let gateway = ["--name", "g1", "--roles", "gateway"];
    let complaint = resolve(&gateway).expect_err("whom should it ask").to_string();
    assert!(complaint.contains("--initial-cluster"), "{complaint}");
    let config = resolve(&[&gateway[..], &NODE[4..]].concat()).expect("a gateway needs no directory");
    assert_eq!((config.data_dir, config.listen_peer), (None, None));
    let complaint = complaint_of(&[&["--name", "n1", "--roles", "gateway"], &NODE[4..]].concat());
    assert!(complaint.contains("take it out"), "a gateway is no member: {complaint}");
    assert!(complaint_of(&["--name", "g1", "--roles", "butler"]).contains("one of: shardmaster, shardkv, gateway"));
}

fn complaint_of(words: &[&str]) -> String {
    resolve(words).expect_err("it must not stand").to_string()
}

#[test]
fn boundaries_ascend_and_may_hold_any_byte() {
    let boundaries =
        |text: &str| node(&["--shard-boundaries", text]).map(|config| config.genesis.map(|g| g.boundaries));
    let keys = boundaries(r"a\,b,b\x00\\,m").expect("they stand").expect("a cluster was described");
    assert_eq!(keys, [&b"a,b"[..], b"b\0\\", b"m"]);
    for (text, reason) in [("m,a", "not above"), ("a,a", "not above"), (",a", "empty"), (r"a\q", "backslash")] {
        let complaint = boundaries(text).expect_err(text).to_string();
        assert!(complaint.contains(reason), "{text}: {complaint}");
    }
    assert_eq!(cluster::default_boundaries(95).len(), 94);
    assert!(cluster::default_boundaries(95).is_sorted_by(|a, b| a < b));
}

#[test]
fn numbers_have_units_and_bounds() {
    let bytes = |text| value::bytes(text, 0..=u64::MAX).ok();
    assert_eq!(bytes("1.5MiB"), Some(1_572_864));
    assert_eq!(bytes("64 KiB"), Some(65_536));
    assert_eq!(bytes("4096"), Some(4096));
    assert_eq!(bytes("12B"), Some(12));
    for text in ["", "MiB", "1.5", "-1", "1MB", "99999999999999999999GiB", "NaNKiB", "18014398509481984KiB"] {
        assert_eq!(bytes(text), None, "{text}");
    }
    assert!(complaint(&["--request-bytes-max", "1"]).contains("not between"));
    assert!(complaint(&["--data-groups", "0"]).contains("between 1 and 512"));
    assert!(complaint(&["--heartbeat-ms", "1e3"]).contains("no whole number"));
    assert!(complaint(&["--request-bytes-max", "8MiB"]).contains("cannot hold the largest request"));
    let entries = complaint(&["--batch-bytes-max", "16MiB", "--wal-segment-bytes", "32MiB"]);
    assert!(entries.contains("wal-segment-bytes") && entries.contains("67108864"), "{entries}");
}

#[test]
fn one_lost_heartbeat_must_not_end_a_lease() {
    let complaint = complaint(&["--heartbeat-ms", "300"]);
    assert!(complaint.contains("three heartbeats"), "{complaint}");
    assert!(node(&["--heartbeat-ms", "200"]).is_ok());
}

#[test]
fn words_out_of_few_are_listed() {
    assert!(complaint(&["--read-mode", "maybe"]).contains("one of: lease, quorum"));
    assert!(complaint(&["--log-format", "xml"]).contains("one of: text, json"));
    assert!(complaint(&["--log-level", "info,paxos=loud"]).contains("no filter"));
    assert!(complaint(&["--insecure-plaintext=perhaps"]).contains("neither true nor false"));
    assert!(complaint_of(&["--name", ""]).contains("empty"));
}

#[test]
fn only_what_looks_like_a_misspelt_variable_is_warned_of() {
    let names = ["CLOUDPAXOS_DATADIR", "CLOUDPAXOS_NAME", "CLOUDPAXOS_PORT_2379_TCP", "CLOUDPAXOS_ENDPOINTS", "HOME"];
    let warned = unknown_variables(names.into_iter(), &command());
    assert_eq!(warned, [("CLOUDPAXOS_DATADIR".to_owned(), "CLOUDPAXOS_DATA_DIR".to_owned())]);
}

#[test]
fn dev_needs_no_decision_and_takes_a_free_port() {
    let command = || DevOptions::augment_args(Command::new("dev")).mut_args(|argument| argument.env(None::<&str>));
    let resolve = |words: &[&str]| {
        let matches = command().try_get_matches_from(["dev"].iter().chain(words)).expect("well-formed");
        DevConfig::resolve(&command(), &matches)
    };
    let config = resolve(&[]).expect("defaults stand");
    assert_eq!((config.listen.to_string().as_str(), config.data_groups), ("127.0.0.1:2379", 2));
    assert_eq!(config.genesis.members.len(), 3);
    assert_eq!(resolve(&["--listen", "127.0.0.1:0"]).expect("a free port").genesis, config.genesis);
    assert!(resolve(&["--listen", "0.0.0.0:2379"]).is_err(), "plain text stays at home");
}

#[test]
fn a_node_that_joins_is_none_of_those_that_form_the_cluster_and_says_where_it_is() {
    let list = "n1=127.0.0.1:1,n2=127.0.0.1:2,n3=127.0.0.1:3";
    let joining = |words: &[&str]| {
        let usual = ["--name", "n4", "--data-dir", "/d", "--initial-cluster", list, "--listen-peer", "127.0.0.1:4"];
        resolve(&usual.iter().chain(words).copied().collect::<Vec<_>>())
    };
    let config = joining(&["--join", "--advertise-peer", "127.0.0.1:4"]).expect("it stands");
    assert!(config.join && config.genesis.is_some_and(|genesis| genesis.members.len() == 3));
    let told = |result: Result<StartConfig, ConfigError>| result.expect_err("it must not stand").to_string();
    assert!(told(joining(&["--join"])).contains("advertise-peer"));
    let error = told(joining(&["--advertise-peer", "127.0.0.1:4"]));
    assert!(error.contains("--join one that exists"), "{error}");
    assert!(complaint(&["--join"]).contains("none of those that form the cluster"));
    assert!(complaint(&["--dead-after-seconds", "5"]).contains("ten election timeouts"));
    assert_eq!(node(&["--dead-after-seconds", "0"]).expect("never").timing.dead_after, Duration::ZERO);
    assert_eq!(node(&[]).expect("nothing is said of a zone").zone, "");
    assert_eq!(node(&["--zone", ""]).expect("as on Kubernetes, where a pod has no such label").zone, "");
    assert_eq!(node(&["--zone", "eu-1a"]).expect("a zone").zone, "eu-1a");
    assert!(complaint(&["--zone", "eu 1a"]).contains("no spaces"));
}

#[test]
fn a_node_may_join_a_restored_cluster_and_nobody_forms_one_by_its_name() {
    let usual = ["--data-dir", "/d", "--initial-cluster", "n1=127.0.0.1:1", "--listen-peer", "127.0.0.1:4"];
    let descent = ["--descent", "00000000000000ff:2:1000000450"];
    let start = |words: &[&str]| resolve(&usual.iter().chain(words).copied().collect::<Vec<_>>());
    let join = ["--name", "n4", "--join", "--advertise-peer", "127.0.0.1:4"];
    let plain = start(&join).expect("it stands").genesis.expect("a cluster");
    let restored = start(&[&join[..], &descent].concat()).expect("it stands").genesis.expect("a cluster");
    assert_eq!(restored.descent.map(|it| (it.backup, it.incarnation, it.floor)), Some((255, 2, 1_000_000_450)));
    assert_eq!(restored.descent.map(|it| it.to_string()).as_deref(), Some(descent[1]));
    assert_ne!(plain.cluster_id(), restored.cluster_id());
    let refused = start(&[&["--name", "n1"], &descent[..]].concat()).expect_err("an empty cluster under its id");
    assert!(refused.to_string().contains("--descent: is for a node that joins"), "{refused}");
    for text in ["", "1:2", "x:1:2", "1:2:3:4", "1:-2:3"] {
        assert!(start(&[&join[..], &["--descent", text]].concat()).is_err(), "{text}");
    }
}

#[test]
fn a_node_that_has_joined_need_not_be_told_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("UTF-8");
    let words =
        ["--name", "n4", "--data-dir", path, "--initial-cluster", "n1=127.0.0.1:1", "--listen-peer", "127.0.0.1:4"];
    assert!(resolve(&words).is_err_and(|error| error.to_string().contains("does not name this node")));
    std::fs::write(directory.path().join("identity.json"), "{}").expect("writable");
    assert!(resolve(&words).is_err_and(|error| error.to_string().contains("advertise-peer")), "it may have moved");
    let words = [&words[..], &["--advertise-peer", "127.0.0.1:4"]].concat();
    assert!(resolve(&words).is_ok());
}

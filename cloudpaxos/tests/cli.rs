//! The binary as a person or a script sees it: words in; text, exit code and one line of complaint
//! out. The cluster behind it is a map in this process.

mod fake;

use fake::{Fake, Mood};
use std::process::{Command, Output, Stdio};
use std::{io::Write, net::TcpListener};

struct Answer {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary without any setting from the environment.
fn run(words: &[&str], input: &str) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloudpaxos"));
    std::env::vars().filter(|(name, _)| name.starts_with("CLOUDPAXOS_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads, or has what it needs");
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Answer { code: status.code().expect("no signal"), out: text(stdout), err: text(stderr) }
}

/// Runs a client command against these endpoints.
fn ask(endpoints: &str, words: &[&str]) -> Answer {
    run(&[words, &["--endpoints", endpoints]].concat(), "")
}

fn ok(endpoints: &str, words: &[&str]) -> String {
    let answer = ask(endpoints, words);
    assert_eq!(answer.code, 0, "{words:?}: {}", answer.err);
    answer.out
}

fn json(endpoints: &str, words: &[&str]) -> serde_json::Value {
    let text = ok(endpoints, &[words, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// One line that begins with our name.
fn complaint(answer: &Answer) -> &str {
    assert_ne!(answer.code, 0, "it should have failed: {}", answer.out);
    let line = answer.err.trim_end();
    assert!(line.starts_with("cloudpaxos: ") && !line.contains('\n'), "one line: {line}");
    line
}

/// An address where nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

#[test]
fn put_get_del_and_list() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    assert_eq!(ok(at, &["kv", "put", "a", "1"]), "OK, at revision 2\n");
    assert_eq!(ok(at, &["kv", "get", "a"]), "1\n");
    assert_eq!(ok(at, &["kv", "put", "a", "2", "--prev"]), "OK, at revision 3\nwas: 1\n");
    ok(at, &["kv", "put", "b", "x y"]);
    ok(at, &["kv", "put", "c", "z"]);
    let table = ok(at, &["kv", "get", "a", "c"]);
    assert!(table.contains("a") && table.contains("x y") && !table.contains('z'), "up to, but without, c: {table}");
    let listed = json(at, &["kv", "list"]);
    assert_eq!(
        listed["keys"][0],
        serde_json::json!({
            "key": "a", "create_revision": 2, "mod_revision": 3, "version": 2, "value_bytes": 1
        })
    );
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(3));
    assert_eq!(json(at, &["kv", "get", "a"])["kvs"][0]["value"], "2");
    assert_eq!(ok(at, &["kv", "get", "", "--prefix", "--count-only"]), "3\n");
    assert_eq!(ok(at, &["kv", "del", "a", "--prev"]).lines().next(), Some("deleted: 1"));
    let missing = ask(at, &["kv", "get", "a"]);
    assert_eq!((missing.code, complaint(&missing)), (1, "cloudpaxos: the key `a` does not exist"));
}

#[test]
fn a_value_comes_from_standard_input_byte_for_byte() {
    let fake = Fake::start(Mood::Good);
    let words = ["kv", "put", "k", "-", "--endpoints", fake.address()];
    assert_eq!(run(&words, "two\nlines\n").code, 0);
    assert_eq!(ok(fake.address(), &["kv", "get", "k"]), "two\nlines\n\n");
}

#[test]
fn list_pages_through_more_keys_than_one_answer_holds() {
    let fake = Fake::start(Mood::Good);
    fake.fill(2500);
    let keys = json(fake.address(), &["kv", "list"]);
    let keys: Vec<_> = keys["keys"].as_array().expect("a list").iter().map(|row| row["key"].to_string()).collect();
    assert_eq!(keys.len(), 2500);
    assert!(keys.is_sorted_by(|a, b| a < b), "each key once, in order");
    let limited = json(fake.address(), &["kv", "list", "--limit", "1200"]);
    assert_eq!(limited["keys"].as_array().map(Vec::len), Some(1200));
}

#[test]
fn transactions_by_flags_and_by_blocks() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    let words = ["kv", "txn", "--if", "create(\"lock\") = 0", "--then", "put lock me", "--else", "get lock"];
    assert_eq!(ok(at, &words), "SUCCESS\nput: OK\n");
    assert_eq!(ok(at, &words), "FAILURE\nlock = me\n");
    let blocks = run(&["kv", "txn", "--endpoints", at, "-o", "json"], "create(\"lock\") = 0\n\n\nget lock\n\n");
    let answer: serde_json::Value = serde_json::from_str(&blocks.out).expect("JSON");
    assert_eq!(answer["succeeded"], false);
    assert_eq!(answer["responses"][0]["get"]["kvs"][0]["value"], "me");
    let bad = ask(at, &["kv", "txn", "--then", "drop table"]);
    assert_eq!(bad.code, 2);
    assert!(complaint(&bad).contains("`drop table` is no operation"));
}

#[test]
fn a_dead_endpoint_is_passed_by() {
    let fake = Fake::start(Mood::Good);
    let endpoints = format!("{},http://{}/", nobody(), fake.address());
    ok(&endpoints, &["kv", "put", "a", "1"]);
    assert_eq!(ok(&endpoints, &["kv", "get", "a"]), "1\n");
    let dead = ask(&format!("{},{}", nobody(), nobody()), &["kv", "put", "a", "1"]);
    assert_eq!(dead.code, 1);
    assert!(complaint(&dead).contains("no endpoint can be reached"));
}

#[test]
fn reads_go_on_past_an_unavailable_gateway_writes_say_they_may_have_happened() {
    let (sick, well) = (Fake::start(Mood::Unavailable), Fake::start(Mood::Good));
    well.fill(1);
    let endpoints = format!("{},{}", sick.address(), well.address());
    assert_eq!(ok(&endpoints, &["kv", "get", "key0000"]), "v\n");
    let put = ask(&endpoints, &["kv", "put", "a", "1"]);
    assert_eq!(put.code, 1);
    assert!(complaint(&put).contains("may or may not have happened"), "{}", put.err);
    assert_eq!(ask(well.address(), &["kv", "get", "a"]).code, 1, "the write was sent to a second gateway");
    let get = ask(sick.address(), &["kv", "get", "a"]);
    assert!(complaint(&get).contains("etcdserver: no leader (Unavailable)"), "{}", get.err);
}

#[test]
fn a_silent_gateway_costs_no_more_than_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = silent.local_addr().expect("bound").to_string();
    let get = ask(&at, &["kv", "get", "a", "--timeout", "300ms"]);
    assert!(complaint(&get).contains("no answer within 300ms"), "{}", get.err);
}

#[test]
fn the_servers_refusal_is_passed_on() {
    let fake = Fake::start(Mood::Good);
    let answer = ask(fake.address(), &["kv", "get", "a", "--revision", "99"]);
    assert!(complaint(&answer).contains("required revision is a future revision (OutOfRange)"), "{}", answer.err);
}

#[test]
fn status_and_shards_for_people_and_programs() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    let table = ok(at, &["status"]);
    for part in ["cluster 00000000000000c1", "leader", "0.3.1b1", "attention: node 2 (n2) does not answer"] {
        assert!(table.contains(part), "no `{part}` in:\n{table}");
    }
    let status = json(at, &["status"]);
    assert_eq!(status["groups"][0]["leader"], 1);
    assert_eq!(status["nodes"][1]["alive"], false);
    assert_eq!(status["groups"][0]["replicas"][1]["report"], serde_json::Value::Null);
    assert!(ok(at, &["shards", "list"]).contains("(highest)"));
    let shards = json(at, &["shards", "list"]);
    assert_eq!((&shards["shards"][0]["start"], &shards["shards"][0]["end"]), (&"m".into(), &serde_json::Value::Null));
}

#[test]
fn groups_and_nodes_for_people_and_programs() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    let table = ok(at, &["groups", "list"]);
    assert!(table.lines().any(|line| line.contains("n1,n2")), "{table}");
    assert_eq!(json(at, &["groups", "list"])["groups"][0]["members"], serde_json::json!([1, 2]));
    let nodes = ok(at, &["nodes", "list"]);
    assert!(nodes.contains("alive") && nodes.contains("silent"), "{nodes}");
    assert_eq!(json(at, &["nodes", "list"])["nodes"][1]["groups"], serde_json::json!([1]));
    for (words, told) in [
        (&["groups", "add", "1", "n2"][..], "it has a replica already"),
        (&["groups", "remove", "1", "n9"], "there is no node n9; there are n1, n2"),
        (&["groups", "remove", "7", "n1"], "there is no group 7; there are 1"),
        (&["groups", "replace", "1", "n1", "n2"], "the newcomer has a replica already"),
        (&["groups", "remove", "1", "n1"], "a group has 1 to 7 replicas, not 0"),
        (&["nodes", "remove", "n1"], "drain it first"),
        (&["nodes", "drain", "n1", "--wait", "300ms"], "n1 still holds replicas after 300ms"),
    ] {
        let answer = ask(at, words);
        assert!(complaint(&answer).contains(told), "{words:?}: {}", answer.err);
    }
    assert!(ok(at, &["nodes", "drain", "n1", "--no-wait"]).contains("n1 will be emptied"));
    assert!(ok(at, &["nodes", "drain", "n1", "--undo"]).contains("may hold replicas again"));
}

#[test]
fn moves_of_shards_for_people_and_programs() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    let table = ok(at, &["shards", "moves"]);
    for part in ["copying", "#####---------------  25 %", "3.00 MiB", "1.00 MiB/s", "9 seconds", "4s"] {
        assert!(table.contains(part), "{part:?}: {table}");
    }
    let moves = json(at, &["shards", "moves"]);
    assert_eq!(moves["moves"][0]["seconds_left"], 9);
    assert_eq!((&moves["moves"][0]["stage"], &moves["last"]), (&"copying".into(), &7.into()));
    assert!(ok(at, &["shards", "move", "2", "3", "--no-wait"]).contains("move 7: shard 2 will move to group 3"));
    for (words, told) in [
        (&["shards", "move", "9", "3"][..], "s9 is no shard of the map"),
        (&["shards", "move", "2", "3", "--wait", "300ms"], "move 7 is not done after 300ms; it goes on"),
        (&["shards", "cancel", "7"], "move 7 is done"),
    ] {
        let answer = ask(at, words);
        assert!(complaint(&answer).contains(told), "{words:?}: {}", answer.err);
    }
}

#[test]
fn shards_top_for_people_and_programs() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    let table = ok(at, &["shards", "top"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].contains("5.00 MiB") && lines[1].contains("1234") && lines[1].contains("m/hot (42 %)"), "{table}");
    assert!(lines[2].contains("(lowest)") && lines[2].contains('-'), "the busy one comes first: {table}");
    assert!(ok(at, &["shards", "top", "--limit", "1"]).contains("and 1 more: --limit 0 shows all"));
    let top = json(at, &["shards", "top", "--sort", "bytes"]);
    assert_eq!(
        (&top["shards"][0]["reads_per_second"], &top["shards"][1]["keys"]),
        (&30.into(), &serde_json::Value::Null)
    );
}

#[test]
fn balancing_is_explained_and_directed() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    let text = ok(at, &["balance", "explain"]);
    assert!(text.contains("/jobs/* is pinned to group 3") && text.contains("nothing is to be done"), "{text}");
    assert_eq!(json(at, &["balance", "explain"])["pins"][0]["group"], 3);
    assert!(ok(at, &["balance", "pause"]).contains("does nothing until"));
    assert!(ok(at, &["balance", "resume"]).contains("goes on"));
    assert!(ok(at, &["balance", "pin", "/jobs/", "3"]).contains("/jobs/* is pinned to group 3"));
    for (words, told) in [
        (&["balance", "unpin", "/x"][..], "/x* is not pinned"),
        (&["balance", "pin", "/x", "0"], "invalid value '0' for '<GROUP>'"),
    ] {
        let answer = ask(at, words);
        assert!(answer.code != 0 && answer.err.contains(told), "{words:?}: {}", answer.err);
    }
}

#[test]
fn groups_are_created_emptied_and_deleted() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    assert!(ok(at, &["groups", "create", "--node", "n1"]).contains("group 1 has the members n1"));
    assert!(ok(at, &["groups", "empty", "1"]).contains("group 1 has no shards"));
    assert!(ok(at, &["groups", "empty", "1", "--undo"]).contains("group 1 may have shards again"));
    for (words, told) in [
        (&["groups", "create", "--node", "n9"][..], "there is no node n9"),
        (&["groups", "empty", "9"], "g9 is no group that holds shards"),
        (&["groups", "delete", "2"], "empty it first"),
    ] {
        let answer = ask(at, words);
        assert!(complaint(&answer).contains(told), "{words:?}: {}", answer.err);
    }
}

#[test]
fn splits_and_merges_of_shards() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    assert!(ok(at, &["shards", "split", "2"]).contains("shard 2 ends before m\\x00, where shard - begins"));
    assert!(
        ok(at, &["shards", "split", "2", "--at", "m", "--no-wait"]).contains("change 9: shard 2 will end before m")
    );
    assert!(ok(at, &["shards", "merge", "1", "2"]).contains("shard 1 has the keys of shard 2, too, which is no more"));
    for (words, told) in [
        (&["shards", "split", "9"][..], "s9 is no shard of the map"),
        (&["shards", "split", "2", "--at", "m", "--wait", "300ms"], "change 9 is not done after 300ms; it goes on"),
        (&["shards", "merge", "7", "2"], "s7 is no shard of the map"),
        (&["shards", "split", "2", "--at", ""], "--at: no shard can be cut at the empty key"),
    ] {
        let answer = ask(at, words);
        assert!(answer.code != 0 && answer.err.contains(told), "{words:?}: {}", answer.err);
    }
}

#[test]
fn changes_answer_programs_with_one_document() {
    let fake = Fake::start(Mood::Good);
    let at = fake.address();
    for (words, key, value) in [
        (&["groups", "create", "--node", "n1"][..], "members", serde_json::json!([1, 2])),
        (&["groups", "empty", "1"], "shards", 0.into()),
        (&["groups", "empty", "1", "--no-wait"], "emptying", true.into()),
        (&["groups", "empty", "1", "--undo"], "emptying", false.into()),
        (&["groups", "cancel", "1"], "next", serde_json::json!([])),
        (&["nodes", "drain", "n1", "--no-wait"], "groups", serde_json::json!([1])),
        (&["nodes", "drain", "1", "--undo"], "draining", false.into()),
        (&["shards", "move", "2", "3", "--no-wait"], "move", 7.into()),
        (&["shards", "split", "2"], "at", "m\0".into()),
        (&["shards", "split", "2", "--at", r"m\x01", "--no-wait"], "at", "m\u{1}".into()),
        (&["shards", "merge", "1", "2"], "merged", 2.into()),
        (&["balance", "pause"], "paused", true.into()),
        (&["balance", "resume"], "paused", false.into()),
        (&["balance", "pin", r"/jobs\xff", "3"], "prefix", serde_json::json!({ "hex": "2f6a6f6273ff" })),
    ] {
        let document = json(at, words);
        assert_eq!(document[key], value, "{words:?}: {document}");
    }
    let quiet = ask(at, &["groups", "create", "--node", "n1", "-o", "json"]);
    assert_eq!(quiet.err, "", "programs know what they do");
    let noted = ask(at, &["groups", "create", "--node", "n1"]);
    assert!(noted.err.contains("note: a group of 2 replicas survives no more failures than one of 1"), "{}", noted.err);
    assert!(ok(at, &["groups", "cancel", "1"]).contains("nothing is to be done"));
}

#[test]
fn what_must_be_written_differently_is_exit_code_2() {
    let fake = Fake::start(Mood::Good);
    for (words, code, told) in [
        (&["groups", "create", "--node", "n1", "--node", "1"][..], 2, "n1 is named twice"),
        (&["groups", "replace", "1", "n1", "n1"], 2, "cannot take its own place"),
        (&["groups", "add", "1", "n9"], 2, "there is no node n9"),
        (&["groups", "cancel", "9"], 2, "there is no group 9"),
        (&["shards", "cancel", "0"], 2, "there was no move 0"),
        (&["shards", "split", "99"], 2, "s99 is no shard of the map"),
        (&["shards", "split", "2", "--at", r"a\n"], 2, "a backslash starts"),
        (&["balance", "pin", r"/a\", "3"], 2, "a backslash starts"),
        (&["nodes", "remove", "n1"], 2, "drain it first (InvalidArgument)"),
        (&["nodes", "drain", "n1", "--wait", "300ms"], 1, "(group 1: no other node can take it"),
    ] {
        let answer = ask(fake.address(), words);
        assert!(complaint(&answer).contains(told), "{words:?}: {}", answer.err);
        assert_eq!(answer.code, code, "{words:?}");
    }
}

#[test]
fn bad_configuration_is_one_line_and_exit_code_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("node.toml");
    std::fs::write(&file, "naem = \"n1\"\n").expect("a file");
    let file = file.to_str().expect("UTF-8");
    let answer = run(&["start", "--config", file], "");
    assert_eq!(answer.code, 2);
    assert_eq!(complaint(&answer), format!("cloudpaxos: {file}:1: unknown key `naem`; did you mean `name`?"));
    let answer = run(&["start", "--name", "n1", "--data-dir", "/d", "--listen-client", "2379"], "");
    assert_eq!(answer.code, 2);
    assert!(complaint(&answer).contains("--listen-client"));
    let answer = run(&["start", "--config", "/nowhere.toml"], "");
    assert_eq!(answer.code, 1);
    assert!(complaint(&answer).contains("/nowhere.toml"));
    let answer = run(&["kv", "get", "a", "--endpoints", "localhost"], "");
    assert!(complaint(&answer).contains("--endpoints: `localhost` has no port"), "{}", answer.err);
    assert_eq!(answer.code, 2);
}

#[test]
fn environment_lies_between_flags_and_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("node.toml");
    std::fs::write(&file, "heartbeat-ms = \"from the file\"\nlease-ms = \"from the file\"\n").expect("a file");
    let start = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloudpaxos"));
        command.env_clear().args(["start", "--name", "n1", "--data-dir", "/d", "--config"]).arg(&file).args(words);
        let output = command.envs(variables.iter().copied()).output().expect("it starts");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    assert!(start(&[], &[]).contains("node.toml:1: heartbeat-ms: `from the file`"));
    let variable = ("CLOUDPAXOS_HEARTBEAT_MS", "from the environment");
    assert!(start(&[], &[variable]).contains("CLOUDPAXOS_HEARTBEAT_MS: `from the environment`"));
    assert!(start(&["--heartbeat-ms", "from a flag"], &[variable]).contains("--heartbeat-ms: `from a flag`"));
    assert!(start(&["--heartbeat-ms", "100"], &[variable]).contains("node.toml:2: lease-ms"), "a good flag hides both");
}

#[test]
fn every_command_has_help_with_an_example() {
    for words in [
        &["dev"][..],
        &["start"],
        &["kv", "put"],
        &["kv", "get"],
        &["kv", "del"],
        &["kv", "list"],
        &["kv", "txn"],
        &["status"],
        &["shards", "list"],
        &["shards", "move"],
        &["shards", "top"],
        &["balance", "explain"],
        &["groups", "create"],
        &["groups", "empty"],
        &["groups", "delete"],
        &["balance", "pin"],
        &["shards", "split"],
        &["shards", "merge"],
        &["shards", "moves"],
        &["shards", "cancel"],
        &["groups", "list"],
        &["groups", "add"],
        &["groups", "remove"],
        &["groups", "replace"],
        &["groups", "cancel"],
        &["nodes", "list"],
        &["nodes", "drain"],
        &["nodes", "remove"],
        &[],
    ] {
        let answer = run(&[words, &["--help"]].concat(), "");
        assert_eq!(answer.code, 0);
        assert!(answer.out.contains("Example"), "{words:?} --help shows no example");
    }
    assert_eq!(run(&["version"], "").out, format!("cloudpaxos {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["frobnicate"], "").code, 2);
}

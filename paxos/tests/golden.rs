//! Golden scripts: protocol traces as text, one scenario a file in `tests/golden`. Commands stand
//! above `---`, what they led to below it; a blank line ends a stanza. `UPDATE_GOLDENFILES=1` writes
//! what happens now, to be read before it is committed.
//!
//! The script is disk, network and clock: records are durable when it says `sync`, messages arrive
//! when it says `deliver`, and time passes when it says so. The formats are in `golden/display.rs`.

#![allow(clippy::unwrap_used, reason = "a script that does not parse is a mistake of its author")]

#[path = "golden/display.rs"]
mod display;

use bytes::Bytes;
use display::{ballot_of, message, number, record, text_of};
use paxos::heartbeat::{Heartbeats, Timing};
use paxos::message::Promise;
use paxos::{
    Ballot, Configuration, GroupId, Input, Message, NodeId, Outputs, Record, Replica, ReplicaConfig, Slot, Time,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

const GROUP: GroupId = GroupId(1);

struct Node {
    replica: Replica,
    beats: Heartbeats,
    /// Everything logged, and how much of it is durable; the running replica counts from `base`.
    log: Vec<Record>,
    synced: usize,
    base: usize,
    gated: Vec<(u64, NodeId, Message)>,
    applied: Slot,
    configuration: Configuration,
    boot: u64,
}

#[derive(Default)]
struct Script {
    now: Time,
    replicas: Vec<NodeId>,
    members: Vec<NodeId>,
    nodes: BTreeMap<NodeId, Node>,
    net: Vec<(NodeId, NodeId, Message)>,
    out: String,
}

/// The words of a command: a verb, nodes, and `name=value` settings.
struct Words<'a>(Vec<&'a str>);

impl Words<'_> {
    fn node(&self, index: usize) -> NodeId {
        self.maybe_node(index).unwrap_or_else(|| panic!("no node at word {index} of {:?}", self.0))
    }
    fn maybe_node(&self, index: usize) -> Option<NodeId> {
        self.0.get(index)?.strip_prefix('n')?.parse().ok().map(NodeId)
    }
    fn setting(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
    fn slot(&self, name: &str) -> Slot {
        Slot(self.setting(name).map_or(0, number))
    }
    fn ballot(&self, name: &str) -> Ballot {
        self.setting(name).map(ballot_of).unwrap_or_default()
    }
    fn entries(&self) -> Vec<Bytes> {
        let text = self.setting("entries").unwrap_or_default();
        text.split(',')
            .filter(|entry| !entry.is_empty())
            .map(|entry| Bytes::copy_from_slice(entry.as_bytes()))
            .collect()
    }
    fn nodes(&self, name: &str) -> Vec<NodeId> {
        let text = self.setting(name).unwrap_or_default();
        text.split(',').filter_map(|node| node.strip_prefix('n')?.parse().ok().map(NodeId)).collect()
    }
    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }
}

impl Script {
    fn command(&mut self, line: &str) {
        let words = Words(line.split_whitespace().collect());
        let verb = words.0[0];
        match verb {
            "nodes" => {
                self.now = Time(10_000_000);
                self.replicas = (1..=number(words.0[1])).map(NodeId).collect();
                // More nodes than members: the others may learn.
                let members = words.setting("members").map_or(self.replicas.len(), |count| number(count) as usize);
                self.members = self.replicas[..members].to_vec();
                for node in self.replicas.clone() {
                    self.start(node, 1, Vec::new(), Slot(0));
                }
            }
            // A replica that begins with this state, as if it had run before.
            "given" => self.given(&words),
            "wait" => self.now = self.now.plus(number(words.0[1].trim_end_matches("ms")) * 1000),
            "beats" => self.beats(words.maybe_node(1).zip(words.maybe_node(2))),
            "tick" => self.step(words.node(1), Input::Tick),
            "propose" => {
                let entry = Bytes::copy_from_slice(words.0[2].as_bytes());
                self.step(words.node(1), Input::Propose(entry));
            }
            "sync" => self.sync(words.node(1)),
            "deliver" | "duplicate" => self.deliver(words.maybe_node(1), words.maybe_node(2), verb == "duplicate"),
            "drop" => {
                let (from, to) = (words.node(1), words.node(2));
                self.net.retain(|(sender, receiver, _)| (*sender, *receiver) != (from, to));
            }
            "settle" => self.settle(),
            "restart" => self.restart(words.node(1)),
            "installed" => {
                let input = Input::Installed { slot: words.slot("slot"), configuration: None };
                self.step(words.node(1), input);
            }
            "learners" => self.step(words.node(1), Input::Learners(words.nodes("nodes"))),
            "seal" => {
                let id = words.node(1);
                let next = self.nodes[&id].replica.configuration().next(words.nodes("nodes"));
                self.step(id, Input::Seal(next));
            }
            "trim" => self.step(words.node(1), Input::Trim { slot: words.slot("slot"), keep_bytes: 0 }),
            "checkpoint" => self.step(words.node(1), Input::Checkpoint(words.slot("slot"))),
            "tell" => self.step(words.node(1), Input::TellDecided),
            "confirm" => self.step(words.node(1), Input::Confirm),
            "hand-over" => self.step(words.node(1), Input::HandOver(words.node(2))),
            "bar" => self.step(words.node(1), Input::Bar(true)),
            "lift" => self.step(words.node(1), Input::Bar(false)),
            "state" => self.state(words.node(1)),
            _ => self.inject(verb, &words),
        }
    }

    /// `NAME nFROM nTO settings`: a message that arrives at once.
    fn inject(&mut self, verb: &str, words: &Words<'_>) {
        let ballot = words.ballot("ballot");
        let (start, decided, entries) = (words.slot("start"), words.slot("decided"), words.entries());
        let said = match verb {
            "Prepare" => Message::Prepare {
                ballot,
                handover: words.setting("handover").map(ballot_of),
                elected: words.has("elected"),
            },
            "AcceptSync" => {
                Message::AcceptSync { ballot, cut: words.slot("cut"), start, end: words.slot("end"), entries, decided }
            }
            "Accept" => Message::Accept { ballot, start, entries, decided },
            "Decide" => Message::Decide { ballot, decided, answer: words.has("answer") },
            "Accepted" => Message::Accepted { ballot, length: words.slot("length"), decided },
            "Promise" => Message::Promise(Promise {
                ballot,
                accepted: words.ballot("accepted"),
                length: words.slot("length"),
                decided,
                first_kept: Slot(words.slot("first").0.max(1)),
                suspect: words.has("suspect"),
                barred: words.has("barred"),
                votes: !words.has("learner"),
            }),
            "Confirm" => Message::Confirm { ballot, round: words.slot("round").0 },
            _ => panic!("unknown command {verb:?}"),
        };
        let (from, to) = (words.node(1), words.node(2));
        self.step(to, Input::Message { from, message: said });
    }

    fn given(&mut self, words: &Words<'_>) {
        let node = words.node(1);
        let accepted = words.ballot("accepted");
        let promised = words.ballot("promised").max(accepted);
        let first_kept = Slot(words.slot("first").0.max(1));
        let entries = words.entries();
        let length = Slot(first_kept.0 + entries.len() as u64 - 1);
        let (decided, suspect) = (words.slot("decided"), words.has("suspect"));
        let mut log = Vec::new();
        if !entries.is_empty() {
            log.push(Record::Rewritten { start: first_kept, entries });
        }
        log.push(Record::State { promised, accepted, first_kept, length, decided, suspect });
        let applied = Slot(words.slot("applied").0.max(first_kept.0 - 1));
        self.start(node, 2, log, applied);
    }

    fn start(&mut self, id: NodeId, boot: u64, log: Vec<Record>, applied: Slot) {
        let known = self.nodes.get(&id).map(|node| node.configuration.clone());
        let configuration = known.unwrap_or_else(|| Configuration::first(self.members.clone()));
        let recovered = paxos::recover(log.iter(), applied, Slot(0), configuration.id);
        let recovered = recovered.unwrap_or_else(|gap| panic!("{id}: {gap}"));
        let config = ReplicaConfig {
            me: id,
            group: GROUP,
            configuration: configuration.clone(),
            boot,
            piece_bytes_max: paxos::PIECE_BYTES_MAX,
        };
        let replica = Replica::new(config, recovered, applied);
        let mut beats = Heartbeats::new(id, boot, Timing::default(), &self.replicas, self.now);
        beats.publish(GROUP, replica.status());
        let (synced, base) = (log.len(), log.len());
        self.nodes
            .insert(id, Node { replica, beats, log, synced, base, gated: Vec::new(), applied, configuration, boot });
    }

    /// What was not synced is gone.
    fn restart(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let log = node.log[..node.synced].to_vec();
        let (boot, applied) = (node.boot + 1, node.applied);
        self.start(id, boot, log, applied);
    }

    /// Heartbeats between two nodes or between all: twice, for the first round only tells boots.
    fn beats(&mut self, only: Option<(NodeId, NodeId)>) {
        let pairs = self.replicas.iter().flat_map(|from| self.replicas.iter().map(move |to| (*from, *to)));
        let wanted = |from, to| only.is_none_or(|(a, b)| (from, to) == (a, b) || (from, to) == (b, a));
        let pairs: Vec<_> = pairs.filter(|(from, to)| from != to && wanted(*from, *to)).collect();
        for (from, to) in pairs.iter().chain(&pairs) {
            let now = self.now;
            for (_, ping) in self.nodes.get_mut(from).unwrap().beats.ping(now, Some(*to)) {
                if let Some(pong) = self.nodes.get_mut(to).unwrap().beats.receive(now, *from, ping) {
                    self.nodes.get_mut(from).unwrap().beats.receive(now, *to, pong);
                }
            }
        }
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let node = self.nodes.get_mut(&id).unwrap();
        let out = node.replica.step(self.now, &node.beats, input);
        self.perform(id, out);
    }

    fn perform(&mut self, id: NodeId, out: Outputs) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.beats.publish(GROUP, node.replica.status());
        for logged in out.records {
            writeln!(self.out, "{id} logs {}", record(&logged)).unwrap();
            node.log.push(logged);
        }
        for envelope in out.send_now {
            writeln!(self.out, "{id} → {} {}", envelope.to, message(&envelope.message)).unwrap();
            self.net.push((id, envelope.to, envelope.message));
        }
        let durable = (node.synced - node.base) as u64;
        for envelope in out.send_durable {
            if out.tail <= durable {
                writeln!(self.out, "{id} → {} {}", envelope.to, message(&envelope.message)).unwrap();
                self.net.push((id, envelope.to, envelope.message));
            } else {
                writeln!(self.out, "{id} keeps for {}: {}", envelope.to, message(&envelope.message)).unwrap();
                node.gated.push((out.tail, envelope.to, envelope.message));
            }
        }
        for (slot, entry) in out.decided {
            writeln!(self.out, "{id} decides {slot}={}", text_of(&entry)).unwrap();
            node.applied = slot;
            if let Some(next) = Configuration::of_stop_sign(&entry) {
                node.configuration = next;
            }
        }
        for peer in out.snapshot_wanted {
            writeln!(self.out, "{id} is to send {peer} a snapshot").unwrap();
        }
    }

    fn sync(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.synced = node.log.len();
        let durable = (node.synced - node.base) as u64;
        for (_, to, said) in node.gated.drain(..) {
            writeln!(self.out, "{id} → {to} {}", message(&said)).unwrap();
            self.net.push((id, to, said));
        }
        self.step(id, Input::Durable(durable));
    }

    /// Delivers what is on its way now, in order; a duplicate stays on its way.
    fn deliver(&mut self, from: Option<NodeId>, to: Option<NodeId>, keep: bool) {
        let wanted = |packet: &(NodeId, NodeId, Message)| {
            from.is_none_or(|from| packet.0 == from) && to.is_none_or(|to| packet.1 == to)
        };
        let (ready, wait): (Vec<_>, Vec<_>) = std::mem::take(&mut self.net).into_iter().partition(wanted);
        self.net = wait;
        if keep {
            self.net.extend(ready.clone());
        }
        for (from, to, message) in ready {
            self.step(to, Input::Message { from, message });
        }
    }

    /// Syncs and delivers until nothing is left, without a word: for setting a scene.
    fn settle(&mut self) {
        let said = std::mem::take(&mut self.out);
        for _ in 0..100 {
            for id in self.replicas.clone() {
                self.sync(id);
            }
            self.deliver(None, None, false);
            let quiet = self.nodes.values().all(|node| node.synced == node.log.len() && node.gated.is_empty());
            if quiet && self.net.is_empty() {
                break;
            }
        }
        self.out = said;
    }

    fn state(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let acceptor = node.replica.acceptor();
        let (first, length) = acceptor.log().range();
        let entries: Vec<String> =
            (first.0..=length.0).filter_map(|slot| acceptor.log().get(Slot(slot)).map(text_of)).collect();
        let leading = node.replica.leading().map_or("nothing".to_owned(), display::ballot);
        let lease = node.replica.leading().is_some_and(|ballot| {
            let until = node.beats.lease_until(self.now, GROUP, ballot, node.replica.replicas());
            until.is_some_and(|until| self.now < until)
        });
        writeln!(
            self.out,
            "{id} promised={} accepted={} log {first}..{length} [{}] decided={}{} leads {leading}{} confirmed={}",
            display::ballot(acceptor.promised()),
            display::ballot(acceptor.accepted()),
            entries.join(" "),
            acceptor.decided(),
            if acceptor.suspect() { " suspect" } else { "" },
            if lease { " with a lease" } else { "" },
            node.replica.confirmed(),
        )
        .unwrap();
    }
}

/// Runs a script; the same text with what happens now below each `---`.
fn run(script: &str) -> String {
    let mut state = Script::default();
    let mut output = String::new();
    let mut expected = false;
    for line in script.lines() {
        match line {
            "---" => {
                output.push_str("---\n");
                output.push_str(&state.out);
                state.out.clear();
                expected = true;
            }
            "" => {
                output.push('\n');
                expected = false;
            }
            _ if expected => {}
            _ => {
                writeln!(output, "{line}").unwrap();
                if !line.starts_with('#') {
                    state.command(line);
                }
            }
        }
    }
    output
}

#[test]
fn scripts_behave_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDENFILES").is_some();
    let mut files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(files.len() >= 10, "only {} scripts in {}", files.len(), directory.display());
    let mut differ = Vec::new();
    for path in files {
        let script = std::fs::read_to_string(&path).unwrap();
        let now = run(&script);
        if now.trim_end() != script.trim_end() {
            if update {
                std::fs::write(&path, now.trim_end().to_owned() + "\n").unwrap();
            } else {
                differ.push(format!("=== {}, now:\n{now}", path.display()));
            }
        }
    }
    assert!(differ.is_empty(), "UPDATE_GOLDENFILES=1 accepts:\n{}", differ.concat());
}

//! Tests of the machine: scripted conversations here, a random fake cluster in `cluster`.

mod calls;
mod cluster;
mod fan_out;
mod maps;
mod retries;

use crate::{Answer, AnswerBody, Call, CallError, Gateway, GatewayConfig, Input};
use bytes::Bytes;
use paxos::{GroupId, NodeId, Time};
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardInfo, ShardMap};
use shardkv::ops::{KeyValue, Op, OpResult, Put, Range, RangeResult};
use shardkv::request::{Reply, ReplyBody, Request, RequestBody, SessionTag};
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};

pub(super) const SECOND: u64 = 1_000_000;

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn put(key: &str) -> Op {
    Op::Put(Put {
        key: bytes(key),
        value: bytes("v"),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    })
}

pub(super) fn get(key: &str) -> Op {
    Op::Range(Range::all(Keys::One(bytes(key))))
}

pub(super) fn all() -> Range {
    Range::all(Keys::From(bytes("")))
}

pub(super) fn pairs(keys: &[&str]) -> RangeResult {
    let kvs = keys.iter().map(|key| KeyValue { key: bytes(key), ..KeyValue::default() }).collect();
    RangeResult { kvs, more: false, count: keys.len() as u64 }
}

/// A map of shards that begin at the given keys, owned by the given groups; the first begins at "".
pub(super) fn map(version: u64, shards: &[(&str, u64)]) -> ShardMap {
    let infos = shards.iter().enumerate().map(|(i, (start, group))| ShardInfo {
        id: ShardId(i as u64 + 1),
        bounds: Bounds { start: bytes(start), end: shards.get(i + 1).map(|(end, _)| bytes(end)) },
        group: GroupId(*group),
        epoch: Epoch(version),
        by: MoveId(0),
    });
    let nodes = [NodeId(1), NodeId(2), NodeId(3)];
    let mut groups: Vec<u64> = shards.iter().map(|(_, group)| *group).collect();
    groups.sort();
    groups.dedup();
    let map = ShardMap {
        version,
        cluster_id: 7,
        incarnation: 1,
        compacted: Revision(0),
        shards: infos.collect(),
        shardmaster: GroupInfo::new(SHARDMASTER_GROUP, nodes.to_vec()),
        groups: groups.into_iter().map(|id| GroupInfo::new(GroupId(id), nodes.to_vec())).collect(),
        nodes: nodes
            .map(|id| NodeInfo {
                id,
                name: id.to_string(),
                peer_address: String::new(),
                client_address: String::new(),
                ..NodeInfo::default()
            })
            .to_vec(),
        ..ShardMap::default()
    };
    assert_eq!(map.check(), Ok(()));
    map
}

/// A gateway and the world around it, which the test plays by hand.
pub(super) struct World {
    pub(super) gateway: Gateway,
    pub(super) now: Time,
    /// Sent and not looked at yet.
    pub(super) sent: Vec<(NodeId, Request)>,
    answers: Vec<(u64, Result<Answer, CallError>)>,
    pub(super) wake_at: Option<Time>,
}

impl World {
    /// Nothing known yet.
    pub(super) fn fresh(config: GatewayConfig) -> World {
        let nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
        let gateway = Gateway::new(GatewayConfig { nodes, ..config });
        World { gateway, now: Time(SECOND), sent: Vec::new(), answers: Vec::new(), wake_at: None }
    }

    /// The map and a sequencer number (10) are known, and that n1 leads the shardmaster.
    pub(super) fn with_map(map: ShardMap) -> World {
        World::with_config(map, GatewayConfig::default())
    }

    pub(super) fn with_config(map: ShardMap, config: GatewayConfig) -> World {
        let mut world = World::fresh(config);
        world.step(Input::Tick);
        let (node, request) = world.take_one();
        assert_eq!(request.body, RequestBody::Map { have_version: 0 });
        world.reply_known(node, &request, ReplyBody::Map(Some(Box::new(map))), 10);
        world
    }

    pub(super) fn step(&mut self, input: Input) {
        let out = self.gateway.step(self.now, input);
        self.sent.extend(out.send);
        self.answers.extend(out.answers);
        self.wake_at = out.wake_at;
    }

    pub(super) fn call(&mut self, token: u64, call: Call) {
        let deadline = self.now.plus(5 * SECOND);
        self.step(Input::Call { token, call, deadline, trace: None });
    }

    pub(super) fn op(&mut self, token: u64, op: Op) {
        self.call(token, Call::Op { op, serializable: false });
    }

    /// The only request sent, apart from those that refresh the known revision.
    pub(super) fn take_one(&mut self) -> (NodeId, Request) {
        let mut sent = self.take_all();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    pub(super) fn take_all(&mut self) -> Vec<(NodeId, Request)> {
        std::mem::take(&mut self.sent)
    }

    pub(super) fn reply(&mut self, from: NodeId, request: &Request, body: ReplyBody) {
        self.reply_known(from, request, body, 0);
    }

    pub(super) fn reply_known(&mut self, from: NodeId, request: &Request, body: ReplyBody, known: u64) {
        self.step(Input::Reply { from, reply: Reply { id: request.id, known: Revision(known), map_version: 0, body } });
    }

    pub(super) fn done(&mut self, from: NodeId, request: &Request, revision: u64, result: OpResult) {
        self.reply(from, request, ReplyBody::Done { revision: Revision(revision), result });
    }

    /// Lets time pass until `micros` later, ticking whenever the gateway wants it.
    pub(super) fn pass(&mut self, micros: u64) {
        let end = self.now.plus(micros);
        while let Some(wake) = self.wake_at.filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            self.step(Input::Tick);
        }
        self.now = end;
        self.step(Input::Tick);
    }

    /// Ticks until something is sent.
    pub(super) fn until_sent(&mut self) {
        while self.sent.is_empty() {
            let wake = self.wake_at.expect("nothing is sent, and no timer is set");
            self.now = self.now.max(wake);
            self.step(Input::Tick);
        }
    }

    /// The answers so far.
    pub(super) fn answers(&mut self) -> Vec<(u64, Result<Answer, CallError>)> {
        std::mem::take(&mut self.answers)
    }

    pub(super) fn assert_idle(&self) {
        let status = self.gateway.status();
        assert_eq!((status.calls, status.bytes), (0, 0), "something is still held");
    }
}

pub(super) fn tag(request: &Request) -> SessionTag {
    match &request.body {
        RequestBody::Write { session, .. } => *session,
        other => panic!("not a write: {other:?}"),
    }
}

pub(super) fn put_done() -> OpResult {
    OpResult::Put { prev_kv: None }
}

pub(super) fn answer(revision: u64, result: OpResult) -> Result<Answer, CallError> {
    Ok(Answer { revision: Revision(revision), body: AnswerBody::Op(result) })
}

pub(super) fn is_refresh(request: &Request) -> bool {
    request.group == SHARDMASTER_GROUP
}

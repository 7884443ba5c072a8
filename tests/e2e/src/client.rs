//! One connection, and the translation between the checkers' operations and the etcd v3 API.

use bytes::Bytes;
use checkers::{Answer, Guard, Key, KeyState, Operation, Outcome, ReadMode, Revision, Seen, Time, Value};
use proto::etcdserverpb as pb;
use proto::mvccpb::KeyValue;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// After this long without an answer an outcome is unknown.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a probe waits.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A lazy connection: it is made, and made again, when a request needs it.
pub fn channel(endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("endpoints are built from port numbers");
    endpoint.connect_timeout(PROBE_LIMIT).tcp_nodelay(true).connect_lazy()
}

/// A client of the key-value service, without a limit on the size of answers.
pub fn kv(channel: Channel) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// Whether a member answers a linearizable read.
pub async fn answers(endpoint: &str) -> bool {
    let mut kv = kv(channel(endpoint));
    let probe = kv.range(pb::RangeRequest { key: Bytes::from_static(b"\0probe"), ..Default::default() });
    matches!(tokio::time::timeout(PROBE_LIMIT, probe).await, Ok(Ok(_)))
}

/// Whether a member says that it leads.
pub async fn is_leader(endpoint: &str) -> bool {
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel(endpoint));
    match tokio::time::timeout(PROBE_LIMIT, maintenance.status(pb::StatusRequest {})).await {
        Ok(Ok(answer)) => {
            let status = answer.into_inner();
            status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader)
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

/// A revision from the wire.
pub fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}

fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn header(header: Option<pb::ResponseHeader>) -> Revision {
    header.map_or(Revision(0), |header| revision(header.revision))
}

fn seen(kv: KeyValue) -> Seen {
    Seen {
        value: Value(kv.value),
        mod_revision: revision(kv.mod_revision),
        create_revision: revision(kv.create_revision),
        version: u64::try_from(kv.version).unwrap_or_default(),
    }
}

fn states(kvs: Vec<KeyValue>) -> Vec<KeyState> {
    kvs.into_iter().map(|kv| KeyState { key: Key(kv.key.clone()), seen: Some(seen(kv)) }).collect()
}

/// A client that does one operation at a time over one connection.
#[derive(Clone)]
pub struct Client {
    kv: pb::kv_client::KvClient<Channel>,
}

impl Client {
    /// A client of one member.
    pub fn new(endpoint: &str) -> Client {
        Client { kv: kv(channel(endpoint)) }
    }

    /// Does an operation; what came of it, with the time since `epoch`.
    pub async fn execute(&mut self, operation: &Operation, epoch: Instant) -> Outcome {
        let result = tokio::time::timeout(REQUEST_LIMIT, self.call(operation)).await;
        let at = since(epoch);
        match result {
            Ok(Ok((header, answer))) => Outcome::Answered { at, header, answer },
            Ok(Err(status)) if certainly_refused(&status) => Outcome::Refused,
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        }
    }

    async fn call(&mut self, operation: &Operation) -> Result<(Revision, Answer), Status> {
        match operation {
            Operation::Put { key, value } => {
                let request = pb::PutRequest { key: key.0.clone(), value: value.0.clone(), ..Default::default() };
                let answer = self.kv.put(request).await?.into_inner();
                Ok((header(answer.header), Answer::Put))
            }
            Operation::Delete { key } => {
                let request = pb::DeleteRangeRequest { key: key.0.clone(), prev_kv: true, ..Default::default() };
                let mut answer = self.kv.delete_range(request).await?.into_inner();
                Ok((header(answer.header), Answer::Delete { previous: answer.prev_kvs.pop().map(seen) }))
            }
            Operation::DeleteRange { start, end } => {
                let (key, range_end) = (start.0.clone(), end.0.clone());
                let request = pb::DeleteRangeRequest { key, range_end, prev_kv: true };
                let answer = self.kv.delete_range(request).await?.into_inner();
                Ok((header(answer.header), Answer::DeletedRange { previous: states(answer.prev_kvs) }))
            }
            Operation::Get { key, mode } => self.range(key.0.clone(), Bytes::new(), *mode).await,
            Operation::Range { start, end, mode } => self.range(start.0.clone(), end.0.clone(), *mode).await,
            Operation::Txn { guards, puts } => self.txn(guards, puts).await,
        }
    }

    async fn range(&mut self, key: Bytes, range_end: Bytes, mode: ReadMode) -> Result<(Revision, Answer), Status> {
        let revision = match mode {
            ReadMode::At(revision) => number(revision),
            ReadMode::Linearizable | ReadMode::Serializable => 0,
        };
        let serializable = mode == ReadMode::Serializable;
        let request = pb::RangeRequest { key, range_end, revision, serializable, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        Ok((header(answer.header), Answer::Read { kvs: states(answer.kvs) }))
    }

    async fn txn(&mut self, guards: &[Guard], puts: &[(Key, Value)]) -> Result<(Revision, Answer), Status> {
        let answer = self.kv.txn(txn_request(guards, puts)).await?.into_inner();
        let header = header(answer.header);
        if answer.succeeded {
            return Ok((header, Answer::TxnDone));
        }
        let read = |(guard, response): (&Guard, pb::ResponseOp)| {
            let found = match response.response {
                Some(pb::response_op::Response::ResponseRange(mut range)) => range.kvs.pop(),
                _ => None,
            };
            KeyState { key: guard.key.clone(), seen: found.map(seen) }
        };
        let kvs = guards.iter().zip(answer.responses).map(read).collect();
        Ok((header, Answer::TxnRefused { kvs }))
    }
}

fn txn_request(guards: &[Guard], puts: &[(Key, Value)]) -> pb::TxnRequest {
    let compare = |guard: &Guard| pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key: guard.key.0.clone(),
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(number(guard.mod_revision))),
    };
    let put = |(key, value): &(Key, Value)| {
        let request = pb::PutRequest { key: key.0.clone(), value: value.0.clone(), ..Default::default() };
        pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(request)) }
    };
    let get = |guard: &Guard| {
        let request = pb::RangeRequest { key: guard.key.0.clone(), ..Default::default() };
        pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(request)) }
    };
    pb::TxnRequest {
        compare: guards.iter().map(compare).collect(),
        success: puts.iter().map(put).collect(),
        failure: guards.iter().map(get).collect(),
    }
}

/// The time since the start of the run.
pub fn since(epoch: Instant) -> Time {
    Time(u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Whether the server promises that the request never takes effect. Everything else (a lost
/// connection, a change of leader, a timeout) leaves it open.
fn certainly_refused(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated
    )
}

/// How long a process may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(20);

/// A page of a port that speaks HTTP without TLS, with its head; empty where nobody answers.
pub async fn page(port: u16, path: &str) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        std::io::Result::Ok(page)
    };
    asking.await.unwrap_or_default()
}

/// Waits until the process at a port says that it is ready.
///
/// # Panics
/// If it does not in time.
pub async fn wait_ready(port: u16) {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let said = page(port, "/readyz").await;
        if said.starts_with("HTTP/1.1 200") {
            return;
        }
        assert!(Instant::now() < deadline, "not ready: {said}");
        tokio::time::sleep(READY_POLL).await;
    }
}

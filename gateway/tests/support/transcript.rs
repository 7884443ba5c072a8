//! Performs requests and writes down, in words that do not depend on absolute revisions, what was
//! asked and what was answered.
//!
//! The revision of the n-th request that wrote is called `w<n>`. etcd counts by one and CloudPaxos
//! leaves gaps, so the header of a request that wrote nothing is only checked to be no older than
//! the newest `w`.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response;
use proto::mvccpb::KeyValue;
use std::fmt::Write;
use tonic::Status;
use tonic::transport::Channel;

/// One conversation with a server.
pub struct Transcript {
    client: KvClient<Channel>,
    /// The revisions of `w1`, `w2`, …
    writes: Vec<i64>,
    text: String,
}

fn show(bytes: &[u8]) -> String {
    if bytes.len() > 40 { format!("<{} bytes>", bytes.len()) } else { format!("\"{}\"", bytes.escape_ascii()) }
}

fn keys(key: &[u8], end: &[u8]) -> String {
    if end.is_empty() { show(key) } else { format!("{}..{}", show(key), show(end)) }
}

impl Transcript {
    pub fn new(client: KvClient<Channel>) -> Transcript {
        Transcript { client, writes: Vec::new(), text: String::new() }
    }

    /// A remark.
    pub fn say(&mut self, text: &str) {
        let _ = writeln!(self.text, "# {text}");
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// The revision of the n-th write, from 1.
    pub fn w(&self, n: usize) -> i64 {
        self.writes[n - 1]
    }

    /// A revision that was not handed out.
    pub fn future(&self) -> i64 {
        self.newest() + 1_000_000
    }

    fn newest(&self) -> i64 {
        self.writes.last().copied().unwrap_or(1)
    }

    fn name(&self, revision: i64) -> String {
        match self.writes.iter().position(|write| *write == revision) {
            Some(index) => format!("w{}", index + 1),
            None if revision > self.newest() => "future".into(),
            None => format!("{revision}?"),
        }
    }

    fn asked(&mut self, request: &str) {
        let _ = writeln!(self.text, "{request}");
    }

    fn answered(&mut self, answer: &str) {
        let _ = writeln!(self.text, "  {answer}");
    }

    fn failed(&mut self, status: &Status) {
        let line = format!("error {:?}: {}", status.code(), status.message());
        self.answered(&line);
    }

    /// Names the revision of a request that wrote, or checks that of one that did not.
    fn header(&mut self, header: Option<pb::ResponseHeader>, wrote: bool) -> String {
        let header = header.expect("every answer has a header");
        assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0, "{header:?}");
        if wrote {
            assert!(header.revision > self.newest(), "{} does not rise above {}", header.revision, self.newest());
            self.writes.push(header.revision);
            return format!("ok {}", self.name(header.revision));
        }
        assert!(header.revision >= self.newest(), "{} lies below {}", header.revision, self.newest());
        "ok".into()
    }

    fn pair(&self, pair: &KeyValue) -> String {
        let (create, modified) = (self.name(pair.create_revision), self.name(pair.mod_revision));
        let mut text = format!(
            "{}={} create={create} mod={modified} version={}",
            show(&pair.key),
            show(&pair.value),
            pair.version
        );
        if pair.lease != 0 {
            let _ = write!(text, " lease={}", pair.lease);
        }
        text
    }

    pub async fn range(&mut self, request: pb::RangeRequest) {
        let line = self.range_text(&request);
        self.asked(&line);
        let may_be_stale = request.serializable;
        match self.client.range(request).await {
            Ok(response) => {
                let response = response.into_inner();
                let header = if may_be_stale { "ok".into() } else { self.header(response.header, false) };
                let rest = range_summary(&response);
                self.answered(&format!("{header} {rest}"));
                for pair in &response.kvs {
                    let line = format!("  {}", self.pair(pair));
                    self.answered(&line);
                }
            }
            Err(status) => self.failed(&status),
        }
    }

    pub async fn put(&mut self, request: pb::PutRequest) {
        self.asked(&put_text(&request));
        match self.client.put(request).await {
            Ok(response) => {
                let response = response.into_inner();
                let mut line = self.header(response.header, true);
                if let Some(prev) = &response.prev_kv {
                    let _ = write!(line, " prev {}", self.pair(prev));
                }
                self.answered(&line);
            }
            Err(status) => self.failed(&status),
        }
    }

    pub async fn delete(&mut self, request: pb::DeleteRangeRequest) {
        self.asked(&delete_text(&request));
        match self.client.delete_range(request).await {
            Ok(response) => {
                let response = response.into_inner();
                let header = self.header(response.header, response.deleted > 0);
                self.answered(&format!("{header} deleted={}", response.deleted));
                for pair in &response.prev_kvs {
                    let line = format!("  prev {}", self.pair(pair));
                    self.answered(&line);
                }
            }
            Err(status) => self.failed(&status),
        }
    }

    pub async fn txn(&mut self, request: pb::TxnRequest) {
        self.asked("txn");
        let lines = self.txn_text(&request, 1);
        self.text.push_str(&lines);
        match self.client.txn(request).await {
            Ok(response) => {
                let response = response.into_inner();
                let header = self.header(response.header, response.responses.iter().any(wrote));
                self.answered(&format!("{header} succeeded={}", response.succeeded));
                let own = response.header.expect("it was there a moment ago").revision;
                let lines = self.responses_text(&response.responses, own, 2);
                self.text.push_str(&lines);
            }
            Err(status) => self.failed(&status),
        }
    }

    pub async fn compact(&mut self, revision: i64, physical: bool) {
        let name = if revision <= 0 { revision.to_string() } else { self.name(revision) };
        self.asked(&format!("compact {name} physical={physical}"));
        match self.client.compact(pb::CompactionRequest { revision, physical }).await {
            Ok(response) => {
                let header = self.header(response.into_inner().header, false);
                self.answered(&header);
            }
            Err(status) => self.failed(&status),
        }
    }

    fn range_text(&self, request: &pb::RangeRequest) -> String {
        let mut text = format!("range {}", keys(&request.key, &request.range_end));
        let mut field = |name: &str, value: String| {
            let _ = write!(text, " {name}={value}");
        };
        if request.limit != 0 {
            field("limit", request.limit.to_string());
        }
        if request.revision != 0 {
            field(
                "revision",
                if request.revision < 0 { request.revision.to_string() } else { self.name(request.revision) },
            );
        }
        if request.sort_order != 0 || request.sort_target != 0 {
            field("sort", format!("{:?}/{:?}", request.sort_order(), request.sort_target()));
        }
        for (name, bound) in [
            ("min_mod", request.min_mod_revision),
            ("max_mod", request.max_mod_revision),
            ("min_create", request.min_create_revision),
            ("max_create", request.max_create_revision),
        ] {
            if bound != 0 {
                field(name, if bound < 0 { bound.to_string() } else { self.name(bound) });
            }
        }
        for (name, set) in [
            ("serializable", request.serializable),
            ("keys_only", request.keys_only),
            ("count_only", request.count_only),
        ] {
            if set {
                let _ = write!(text, " {name}");
            }
        }
        text
    }

    fn txn_text(&self, request: &pb::TxnRequest, depth: usize) -> String {
        let indent = "  ".repeat(depth);
        let mut text = String::new();
        for compare in &request.compare {
            let operand = match &compare.target_union {
                None => "nothing".into(),
                Some(pb::compare::TargetUnion::Version(number)) => format!("version {number}"),
                Some(pb::compare::TargetUnion::CreateRevision(revision)) => {
                    format!("create {}", self.operand(*revision))
                }
                Some(pb::compare::TargetUnion::ModRevision(revision)) => format!("mod {}", self.operand(*revision)),
                Some(pb::compare::TargetUnion::Value(value)) => format!("value {}", show(value)),
                Some(pb::compare::TargetUnion::Lease(lease)) => format!("lease {lease}"),
            };
            let (target, result) = (compare.target(), compare.result());
            let keys = keys(&compare.key, &compare.range_end);
            let _ = writeln!(text, "{indent}if {keys} {target:?} {result:?} {operand}");
        }
        // A transaction near the limit of operations would fill pages.
        for (branch, ops) in [("then", &request.success), ("else", &request.failure)] {
            if ops.len() > 12 {
                let _ = writeln!(text, "{indent}{branch} <{} operations>", ops.len());
                continue;
            }
            for op in ops {
                let line = match &op.request {
                    None => "nothing".into(),
                    Some(Op::RequestRange(request)) => self.range_text(request),
                    Some(Op::RequestPut(request)) => put_text(request),
                    Some(Op::RequestDeleteRange(request)) => delete_text(request),
                    Some(Op::RequestTxn(_)) => "txn".into(),
                };
                let _ = writeln!(text, "{indent}{branch} {line}");
                if let Some(Op::RequestTxn(nested)) = &op.request {
                    text.push_str(&self.txn_text(nested, depth + 1));
                }
            }
        }
        text
    }

    fn operand(&self, revision: i64) -> String {
        if revision <= 0 { revision.to_string() } else { self.name(revision) }
    }

    fn responses_text(&self, responses: &[pb::ResponseOp], own: i64, depth: usize) -> String {
        let indent = "  ".repeat(depth);
        let mut text = String::new();
        let at = |header: &Option<pb::ResponseHeader>| match header.map(|header| header.revision) {
            None => "no header",
            Some(0) => "no revision",
            Some(revision) if revision == own => "own",
            Some(revision) if revision < own => "before",
            Some(_) => "after",
        };
        for response in responses {
            match &response.response {
                None => {
                    let _ = writeln!(text, "{indent}nothing");
                }
                Some(Response::ResponseRange(response)) => {
                    let _ = writeln!(text, "{indent}range ({}) {}", at(&response.header), range_summary(response));
                    for pair in &response.kvs {
                        let _ = writeln!(text, "{indent}  {}", self.pair(pair));
                    }
                }
                Some(Response::ResponsePut(response)) => {
                    let prev = response.prev_kv.as_ref().map(|prev| format!(" prev {}", self.pair(prev)));
                    let _ = writeln!(text, "{indent}put ({}){}", at(&response.header), prev.unwrap_or_default());
                }
                Some(Response::ResponseDeleteRange(response)) => {
                    let _ = writeln!(text, "{indent}delete ({}) deleted={}", at(&response.header), response.deleted);
                    for pair in &response.prev_kvs {
                        let _ = writeln!(text, "{indent}  prev {}", self.pair(pair));
                    }
                }
                Some(Response::ResponseTxn(response)) => {
                    let _ = writeln!(text, "{indent}txn ({}) succeeded={}", at(&response.header), response.succeeded);
                    text.push_str(&self.responses_text(&response.responses, own, depth + 1));
                }
            }
        }
        text
    }
}

fn range_summary(response: &pb::RangeResponse) -> String {
    format!("count={}{}", response.count, if response.more { " more" } else { "" })
}

fn put_text(request: &pb::PutRequest) -> String {
    let mut text = format!("put {}={}", show(&request.key), show(&request.value));
    if request.lease != 0 {
        let _ = write!(text, " lease={}", request.lease);
    }
    for (name, set) in
        [("prev_kv", request.prev_kv), ("ignore_value", request.ignore_value), ("ignore_lease", request.ignore_lease)]
    {
        if set {
            let _ = write!(text, " {name}");
        }
    }
    text
}

fn delete_text(request: &pb::DeleteRangeRequest) -> String {
    let prev = if request.prev_kv { " prev_kv" } else { "" };
    format!("delete {}{prev}", keys(&request.key, &request.range_end))
}

fn wrote(response: &pb::ResponseOp) -> bool {
    match &response.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(response)) => response.deleted > 0,
        Some(Response::ResponseTxn(response)) => response.responses.iter().any(wrote),
        Some(Response::ResponseRange(_)) | None => false,
    }
}

/// Deletes everything, so that the next conversation begins with an empty store.
pub async fn empty(client: &mut KvClient<Channel>) {
    let all = Bytes::from_static(b"\0");
    let request = pb::DeleteRangeRequest { key: all.clone(), range_end: all, prev_kv: false };
    client.delete_range(request).await.expect("a server that answers");
}

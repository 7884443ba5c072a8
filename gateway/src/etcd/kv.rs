//! The KV service.

use super::errors::{LEASE_NOT_FOUND, REQUEST_TOO_LARGE};
use super::{Context, Terms, check, translate};
use crate::call::{Answer, AnswerBody, Call};
use futures_util::stream::{self, BoxStream};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::kv_server;
use shardkv::ops::{Op, OpResult, Range, Sort};
use shardkv::types::Revision;
use tonic::{Request, Response, Status};

/// Bytes of one piece of a streamed range, more or less.
const PIECE_BYTES: usize = 512 << 10;

pub(super) struct Kv(pub(super) Context);

impl Kv {
    /// Performs an operation; the result is of the operation's kind.
    async fn op(&self, op: Op, serializable: bool, terms: Terms) -> Result<(Revision, OpResult), Status> {
        match self.0.handle.call_traced(Call::Op { op, serializable }, terms.budget, terms.trace).await? {
            Answer { revision, body: AnswerBody::Op(result) } => Ok((revision, result)),
            Answer { body, .. } => Err(mismatch(&body)),
        }
    }

    /// What etcd checks of a request that goes into its log.
    fn check_write(&self, bytes: usize, op: &Op) -> Result<(), Status> {
        if bytes > self.0.info.limits.request_bytes_max {
            return Err(REQUEST_TOO_LARGE.into());
        }
        // No lease exists, see `unserved::Lease`.
        if translate::names_lease(op) { Err(LEASE_NOT_FOUND.into()) } else { Ok(()) }
    }

    async fn read_range(&self, request: pb::RangeRequest, terms: Terms) -> Result<pb::RangeResponse, Status> {
        check::range(&request)?;
        let serializable = request.serializable;
        let range = Range { uncounted: terms.uncounted, ..translate::range(request) };
        match self.op(Op::Range(range), serializable, terms).await? {
            (revision, OpResult::Range(result)) => Ok(translate::range_response(self.0.header(revision), result)),
            (_, result) => Err(mismatch(&result)),
        }
    }
}

/// The machine lets no answer of another kind pass.
fn mismatch(answer: &dyn std::fmt::Debug) -> Status {
    tracing::error!(?answer, "an answer of another kind than its request");
    Status::internal("cloudpaxos: an answer of another kind than its request")
}

#[tonic::async_trait]
impl kv_server::Kv for Kv {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let terms = self.0.terms(&request);
        self.read_range(request.into_inner(), terms).await.map(Response::new)
    }

    type RangeStreamStream = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let terms = self.0.terms(&request);
        let request = request.into_inner();
        check::range(&request)?;
        let range = translate::range(request.clone());
        let bounds =
            [range.mod_revision_min, range.mod_revision_max, range.create_revision_min, range.create_revision_max];
        if range.sort != Sort::default() || bounds != [Revision(0); 4] {
            return Err(Status::unimplemented(
                "etcdserver: RangeStream takes neither sort options nor revision filters",
            ));
        }
        let pieces = pieces(self.read_range(request, terms).await?);
        Ok(Response::new(Box::pin(stream::iter(pieces.into_iter().map(Ok)))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let terms = self.0.terms(&request);
        let request = request.into_inner();
        check::put(&request)?;
        let bytes = request.encoded_len();
        let op = Op::Put(translate::put(request));
        self.check_write(bytes, &op)?;
        match self.op(op, false, terms).await? {
            (revision, OpResult::Put { prev_kv }) => {
                Ok(Response::new(translate::put_response(self.0.header(revision), prev_kv)))
            }
            (_, result) => Err(mismatch(&result)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let terms = self.0.terms(&request);
        let request = request.into_inner();
        check::delete(&request)?;
        let bytes = request.encoded_len();
        let op = Op::Delete(translate::delete(request));
        self.check_write(bytes, &op)?;
        match self.op(op, false, terms).await? {
            (revision, OpResult::Delete { deleted, prev_kvs }) => {
                Ok(Response::new(translate::delete_response(self.0.header(revision), deleted, prev_kvs)))
            }
            (_, result) => Err(mismatch(&result)),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let terms = self.0.terms(&request);
        let request = request.into_inner();
        check::txn(&request, self.0.info.limits.txn_ops_max)?;
        let (bytes, serializable) = (request.encoded_len(), translate::is_serializable(&request));
        let op = Op::Txn(translate::txn(request));
        if !op.is_read_only() {
            self.check_write(bytes, &op)?;
        }
        match self.op(op, serializable, terms).await? {
            (revision, OpResult::Txn { succeeded, results }) => {
                Ok(Response::new(translate::txn_response(self.0.header(revision), succeeded, results)))
            }
            (_, result) => Err(mismatch(&result)),
        }
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let terms = self.0.terms(&request);
        let pb::CompactionRequest { revision, physical } = request.into_inner();
        // 0 is below every compaction that ever was, and is answered as such.
        let revision = Revision(u64::try_from(revision).unwrap_or(0));
        let answer = self.0.handle.call_traced(Call::Compact { revision, physical }, terms.budget, terms.trace).await?;
        Ok(Response::new(pb::CompactionResponse { header: Some(self.0.header(answer.revision)) }))
    }
}

/// Cuts an answer into pieces; header, more and count come with the last.
fn pieces(mut response: pb::RangeResponse) -> Vec<pb::RangeStreamResponse> {
    let piece = |response| pb::RangeStreamResponse { range_response: Some(response) };
    let (mut pieces, mut kvs, mut bytes) = (Vec::new(), Vec::new(), 0);
    for pair in std::mem::take(&mut response.kvs) {
        if bytes >= PIECE_BYTES {
            let kvs = std::mem::take(&mut kvs);
            pieces.push(piece(pb::RangeResponse { kvs, ..Default::default() }));
            bytes = 0;
        }
        bytes += pair.encoded_len();
        kvs.push(pair);
    }
    response.kvs = kvs;
    pieces.push(piece(response));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::mvccpb::KeyValue;

    #[test]
    fn the_pieces_of_a_stream_merge_into_the_answer() {
        let kvs: Vec<KeyValue> = (0..2500u32)
            .map(|i| KeyValue {
                key: i.to_be_bytes().to_vec().into(),
                value: vec![0; 1000].into(),
                ..Default::default()
            })
            .collect();
        let whole = pb::RangeResponse { header: Some(pb::ResponseHeader::default()), kvs, more: true, count: 9 };
        let pieces = pieces(whole.clone());
        assert!(pieces.len() > 3);
        assert!(pieces.iter().all(|piece| piece.encoded_len() < 2 * PIECE_BYTES));
        let mut merged = pb::RangeStreamResponse::default();
        pieces.iter().for_each(|piece| merged.merge(&piece.encode_to_vec()[..]).expect("it was just encoded"));
        assert_eq!(merged.range_response, Some(whole));
    }
}

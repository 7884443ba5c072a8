//! The peer port: the streams of other nodes and of gateways.

use super::known::{Handshake, KnownPeers};
use super::mailbox::Mailbox;
use super::peers;
use super::replies::Sinks;
use crate::core::Input;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::dial::ByteStream;
use proto::internal::data_server::{Data, DataServer};
use proto::internal::peer_server::{Peer, PeerServer};
use proto::internal::{PeerBatch, ReplyBatch, RequestBatch};
use shardkv::codec;
use shardkv::request::{OpError, Reply, ReplyBody, Request as GroupRequest};
use shardkv::types::Revision;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// Batches of replies queued to one gateway; one that does not read loses its stream.
const REPLY_BATCHES_MAX: usize = 4096;
/// Largest message of either stream.
const MESSAGE_BYTES_MAX: usize = 512 << 20;
const WINDOW_BYTES: u32 = 8 << 20;

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct PeerService {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) known: Arc<KnownPeers>,
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ExchangeStream = Boxed<PeerBatch>;

    async fn exchange(&self, request: Request<Streaming<PeerBatch>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let admitted = self.known.admit(Handshake::read(request.metadata()))?;
        let from = admitted.node;
        let mut batches = request.into_inner();
        let (mailbox, known) = (self.mailbox.clone(), self.known.clone());
        let (ended, end) = mpsc::channel::<Result<PeerBatch, Status>>(1);
        tokio::spawn(async move {
            while let Some(batch) = batches.next().await {
                let Ok(batch) = batch else { break };
                if !known.is_welcome(&admitted) {
                    // It was removed, or is not who it was: it is told so when it comes again.
                    break;
                }
                if let Err(status) = peers::receive(&mailbox, from, batch) {
                    tracing::warn!(node = %from, %status, "dropped what a peer sent");
                }
            }
            drop(ended);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(end))))
    }
}

pub(super) struct DataService {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) sinks: Arc<Sinks>,
}

#[tonic::async_trait]
impl Data for DataService {
    type ExchangeStream = Boxed<ReplyBatch>;

    async fn exchange(
        &self,
        request: Request<Streaming<RequestBatch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut batches = request.into_inner();
        let (sender, replies) = mpsc::channel::<Result<ReplyBatch, Status>>(REPLY_BATCHES_MAX);
        let answer = sender.clone();
        let token = self.sinks.add(Arc::new(move |replies| {
            let replies = replies.iter().map(codec::encode).collect();
            if answer.try_send(Ok(ReplyBatch { replies })).is_err() {
                tracing::debug!("replies to a gateway that does not read are dropped");
            }
        }));
        let (mailbox, sinks) = (self.mailbox.clone(), self.sinks.clone());
        tokio::spawn(async move {
            while let Some(Ok(batch)) = batches.next().await {
                match requests(token, batch.requests) {
                    Ok(inputs) => refuse(&mailbox.push_outside(inputs), &sender),
                    Err(status) => {
                        // The gateway speaks another language; the stream ends with the reason.
                        drop(sender.send(Err(status)).await);
                        break;
                    }
                }
            }
            sinks.remove(token);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}

fn requests(token: u64, encoded: Vec<Bytes>) -> Result<Vec<Input>, Status> {
    let decode = |bytes: Bytes| {
        let request: GroupRequest =
            codec::decode(&bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Input::Request { token, request })
    };
    encoded.into_iter().map(decode).collect()
}

/// Requests that the mailbox did not take.
fn refuse(refused: &[Input], sender: &mpsc::Sender<Result<ReplyBatch, Status>>) {
    if refused.is_empty() {
        return;
    }
    let replies = refused.iter().filter_map(|input| match input {
        Input::Request { request, .. } => Some(codec::encode(&overloaded(request.id))),
        _ => None,
    });
    // A gateway whose replies do not fit either learns it by its own timeout.
    drop(sender.try_send(Ok(ReplyBatch { replies: replies.collect() })));
}

pub(super) fn overloaded(id: u64) -> Reply {
    Reply { id, known: Revision(0), map_version: 0, body: ReplyBody::Failed(OpError::Overloaded) }
}

/// Serves the peer port on these connections until there are no more. `more` services may be added to it.
pub async fn serve<C>(
    connections: impl Stream<Item = std::io::Result<C>>,
    port: PeerPort,
    more: tonic::service::Routes,
) -> Result<(), tonic::transport::Error>
where
    C: ByteStream + Connected + 'static,
{
    let PeerPort { peer, data } = port;
    let routes = more
        .add_service(
            PeerServer::new(peer)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            DataServer::new(data)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        );
    tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .max_concurrent_streams(1024)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .add_routes(routes)
        .serve_with_incoming(connections)
        .await
}

/// The services of the peer port.
pub struct PeerPort {
    pub(super) peer: PeerService,
    pub(super) data: DataService,
}

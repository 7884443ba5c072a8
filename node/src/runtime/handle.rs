//! The way to a running node: what gateways, reporters and whoever stops it hold.

use super::figures::Sources;
use super::known::KnownPeers;
use super::mailbox::Mailbox;
use super::open::NodeStore;
use super::replies::{ReplySink, Sinks};
use super::service::{DataService, PeerPort, PeerService, overloaded};
use super::turn_loop::Stop;
use crate::core::{CoreStatus, GroupStatus, Input};
use paxos::NodeId;
use shardkv::request::Request;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How often a node that retires is asked whether it has.
const RETIRE_POLL: Duration = Duration::from_millis(5);

/// The way to a running node. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    pub(super) node: NodeId,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) sinks: Arc<Sinks>,
    pub(super) questions: mpsc::Sender<oneshot::Sender<CoreStatus>>,
    pub(super) stop: mpsc::Sender<Stop>,
    pub(super) known: Arc<KnownPeers>,
    pub(super) store: Arc<NodeStore>,
    pub(super) removed: watch::Sender<Option<String>>,
    pub(super) sources: Sources,
}

impl NodeHandle {
    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Registers a gateway in this process: its replies go to `sink`, and the returned function takes
    /// its requests.
    pub fn gateway(&self, sink: ReplySink) -> Arc<dyn Fn(Vec<Request>) + Send + Sync> {
        let token = self.sinks.add(sink.clone());
        let mailbox = self.mailbox.clone();
        Arc::new(move |requests| {
            let inputs = requests.into_iter().map(|request| Input::Request { token, request });
            let refused = mailbox.push_outside(inputs);
            let ids = refused.into_iter().filter_map(|input| match input {
                Input::Request { request, .. } => Some(overloaded(request.id)),
                _ => None,
            });
            let replies: Vec<_> = ids.collect();
            if !replies.is_empty() {
                sink(replies);
            }
        })
    }

    /// What the node tells about itself; `None` when it has stopped.
    pub async fn status(&self) -> Option<CoreStatus> {
        let (sender, receiver) = oneshot::channel();
        self.questions.send(sender).await.ok()?;
        receiver.await.ok()
    }

    /// Stops the node.
    pub async fn stop(&self) {
        // It may have stopped already.
        drop(self.stop.send(Stop::Asked).await);
    }

    /// Returns why, once the node was removed from the cluster: it holds nothing, and has nothing more to do.
    pub async fn removed(&self) -> String {
        let mut removed = self.removed.subscribe();
        let reason = removed.wait_for(Option::is_some).await.map(|reason| reason.clone().unwrap_or_default());
        match reason {
            Ok(reason) => reason,
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands over all leaderships, so that the node can stop without anybody noticing; returns when it leads
    /// nothing any more, or after `limit`. Whether it was done.
    pub async fn retire(&self, limit: Duration) -> bool {
        self.mailbox.push(Input::Retire);
        let leads = |group: &GroupStatus| group.leader.node == self.node && group.replicas.len() > 1;
        let handed_over = async {
            while let Some(status) = self.status().await {
                if !status.groups.iter().any(leads) {
                    return;
                }
                tokio::time::sleep(RETIRE_POLL).await;
            }
        };
        tokio::time::timeout(limit, handed_over).await.is_ok()
    }

    /// The services of its peer port, for [`super::serve`].
    pub fn peer_port(&self) -> PeerPort {
        PeerPort {
            peer: PeerService { mailbox: self.mailbox.clone(), known: self.known.clone() },
            data: DataService { mailbox: self.mailbox.clone(), sinks: self.sinks.clone() },
        }
    }

    /// Bytes that the store takes on disk, about.
    pub fn store_bytes(&self) -> u64 {
        self.store.inner().inner().size_bytes().unwrap_or(0)
    }
}

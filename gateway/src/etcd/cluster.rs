//! The Cluster service: clients find the gateways by it.

use super::{Context, Tls};
use crate::call::{AnswerBody, Call};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::cluster_server;
use shardkv::map::{NodeInfo, ShardMap};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(super) struct Cluster(pub(super) Context);

fn url(tls: bool, address: &str) -> Vec<String> {
    let scheme = if tls { "https" } else { "http" };
    if address.is_empty() { Vec::new() } else { vec![format!("{scheme}://{address}")] }
}

/// A node; the others speak TLS where this process does.
fn member(tls: Tls, node: &NodeInfo) -> pb::Member {
    pb::Member {
        id: node.id.0,
        name: node.name.clone(),
        peer_ur_ls: url(tls.peers, &node.peer_address),
        client_ur_ls: url(tls.clients, &node.client_address),
        is_learner: false,
    }
}

/// A node hosts replicas of many groups: adding one is more than one vote.
fn not_by_this_api() -> Status {
    Status::unimplemented("cloudpaxos: the nodes of a cluster are those of its first start; they cannot be changed")
}

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let budget = self.0.budget(request.metadata());
        let known = self.0.handle.map().filter(|_| !request.get_ref().linearizable);
        let map: Arc<ShardMap> = match known {
            Some(map) => map,
            None => match self.0.handle.call(Call::Map, budget).await?.body {
                AnswerBody::Map(map) => map,
                _ => {
                    return Err(Status::internal("cloudpaxos: an answer of another kind than its request"));
                }
            },
        };
        let header = Some(self.0.header_without_revision());
        let members = map.nodes.iter().map(|node| member(self.0.info.tls, node)).collect();
        Ok(Response::new(pb::MemberListResponse { header, members }))
    }

    async fn member_add(&self, _: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(not_by_this_api())
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(not_by_this_api())
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(not_by_this_api())
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(not_by_this_api())
    }
}

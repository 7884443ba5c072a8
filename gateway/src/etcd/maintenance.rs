//! The Maintenance service: what has a meaning here, and no-ops for what has none.

use super::{API_VERSION, Context, translate};
use futures_util::stream::BoxStream;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::maintenance_server;
use tonic::{Request, Response, Status};

pub(super) struct Maintenance(pub(super) Context);

#[tonic::async_trait]
impl maintenance_server::Maintenance for Maintenance {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let gateway = self.0.handle.status();
        let node = (self.0.info.node)();
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.0.header_now()),
            version: API_VERSION.to_string(),
            db_size: translate::to_i64(node.db_size_bytes),
            // A replica knows; the gateway by itself has only a guess, which may be old.
            leader: if node.leader != 0 {
                node.leader
            } else {
                gateway.shardmaster_leader.map_or(0, |leader| leader.0)
            },
            raft_index: node.decided_slot,
            raft_term: self.0.header_now().raft_term,
            raft_applied_index: node.applied_slot,
            errors: node.errors,
            db_size_in_use: translate::to_i64(node.db_size_in_use_bytes),
            is_learner: false,
            storage_version: String::new(),
            db_size_quota: 0,
            downgrade_info: None,
        }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        match AlarmAction::try_from(request.get_ref().action) {
            // No alarm outlives its cause here: a full disk refuses writes and recovers by itself.
            Ok(AlarmAction::Get | AlarmAction::Deactivate) => {
                let header = Some(self.0.header_now());
                Ok(Response::new(pb::AlarmResponse { header, alarms: Vec::new() }))
            }
            Ok(AlarmAction::Activate) => {
                Err(Status::unimplemented("cloudpaxos: alarms are raised by the nodes themselves, not by request"))
            }
            Err(_) => Err(Status::invalid_argument("etcdserver: unknown alarm action")),
        }
    }

    async fn defragment(&self, _: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        // Freed space is returned in the background, always.
        Ok(Response::new(pb::DefragmentResponse { header: Some(self.0.header_now()) }))
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(Status::unimplemented(
            "cloudpaxos: Hash is not served: there is no database file whose bytes replicas share",
        ))
    }

    async fn hash_kv(&self, _: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Err(Status::unimplemented("cloudpaxos: HashKV is not served: keys lie in several replica groups"))
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("cloudpaxos: there is no single database file to send"))
    }

    async fn move_leader(&self, _: Request<pb::MoveLeaderRequest>) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Err(Status::unimplemented("cloudpaxos: every replica group has its own leader, and none is moved by request"))
    }

    async fn downgrade(&self, _: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented("cloudpaxos: Downgrade is not served"))
    }
}

//! gRPC's health service: the server as a whole, and each service by its name.

use super::Context;
use futures_util::stream::{self, BoxStream};
use proto::health::health_check_response::ServingStatus;
use proto::health::{HealthCheckRequest, HealthCheckResponse, health_server};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How often a watch looks for a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

const SERVICES: [&str; 8] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "grpc.health.v1.Health",
];

pub(super) struct Health(pub(super) Context);

fn state(context: &Context, service: &str) -> ServingStatus {
    if !SERVICES.contains(&service) {
        return ServingStatus::ServiceUnknown;
    }
    let can_route = context.handle.map().is_some();
    if can_route && (context.info.node)().is_ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match state(&self.0, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let start = (self.0.clone(), service, None);
        let changes = stream::unfold(start, |(context, service, last)| async move {
            loop {
                let status = state(&context, &service);
                if last != Some(status) {
                    return Some((Ok(response(status)), (context, service, Some(status))));
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

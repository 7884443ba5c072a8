//! gRPC's health service: the server as a whole, and each service by its name.

use super::{Context, Readiness};
use futures_util::stream::{self, BoxStream};
use proto::health::health_check_response::ServingStatus;
use proto::health::{HealthCheckRequest, HealthCheckResponse, health_server};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// How often a watch looks for a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Streams that watch at the same time; what more there were would cost memory, and say the same.
const WATCHES_MAX: usize = 1024;

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

pub(super) struct Health {
    context: Context,
    watches: Arc<Semaphore>,
}

impl Health {
    pub(super) fn new(context: Context) -> Health {
        Health { context, watches: Arc::new(Semaphore::new(WATCHES_MAX)) }
    }
}

fn state(context: &Context, service: &str) -> ServingStatus {
    if !SERVICES.contains(&service) {
        return ServingStatus::ServiceUnknown;
    }
    match (context.info.readiness)() {
        Readiness::Ready => ServingStatus::Serving,
        Readiness::Unready | Readiness::Stopping => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match state(&self.context, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let watch = self.watches.clone().try_acquire_owned();
        let watch = watch.map_err(|_| Status::resource_exhausted(format!("{WATCHES_MAX} watches are open already")))?;
        let start = (self.context.clone(), service, None, watch);
        let changes = stream::unfold(start, |(context, service, last, watch)| async move {
            loop {
                // A stream that stays would keep a process that stops: this one has said all there is to say.
                if last == Some(ServingStatus::NotServing) && (context.info.readiness)() == Readiness::Stopping {
                    return None;
                }
                let status = state(&context, &service);
                if last != Some(status) {
                    return Some((Ok(response(status)), (context, service, Some(status), watch)));
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

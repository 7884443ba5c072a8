//! The pages beside the API: `/metrics`, `/livez`, `/readyz`, and `/health` as etcd has it.
//!
//! *Alive* says that the process works: its turns go on. One that is not should be restarted. *Ready* says
//! that requests are well sent here: every replica follows a leader and has caught up with it, and the
//! gateway can route. A process that is about to stop is alive, and no longer ready.

use super::Observed;
use ::node::core::CoreStatus;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// So old may be what a probe is told: probes are free for all, and a turn of the node is not.
const STATUS_AGE: Duration = Duration::from_millis(100);
/// The turn loop answers within microseconds, or it hangs.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What Prometheus is told: OpenMetrics.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the process is alive and ready.
pub struct Health {
    observed: Arc<Observed>,
    draining: AtomicBool,
    /// The last answer of the turn loop. Who finds it too old holds the lock while he asks: others wait for
    /// the same answer.
    latest: Mutex<Option<(Instant, StatusAnswer)>>,
}

/// `None` of a gateway alone; an error of a node that hangs or has stopped.
type StatusAnswer = Result<Option<Arc<CoreStatus>>, String>;

impl Health {
    /// Of what is observed.
    pub fn new(observed: Arc<Observed>) -> Arc<Health> {
        Arc::new(Health { observed, draining: AtomicBool::new(false), latest: Mutex::default() })
    }

    /// From now on requests had better go elsewhere.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether requests had better go elsewhere because the process is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    async fn status(&self) -> StatusAnswer {
        let Some(node) = &self.observed.node else { return Ok(None) };
        let mut latest = self.latest.lock().await;
        if let Some((at, answer)) = &*latest
            && at.elapsed() < STATUS_AGE
        {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(ALIVE_TIMEOUT, node.status()).await {
            Ok(Some(status)) => Ok(Some(Arc::new(status))),
            Ok(None) => Err("the node has stopped".into()),
            Err(_) => Err(format!("no turn of the node within {} s", ALIVE_TIMEOUT.as_secs())),
        };
        *latest = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Why it is not alive, if so.
    pub async fn alive(&self) -> Result<(), String> {
        self.status().await.map(drop)
    }

    /// Why requests had better go elsewhere, if so.
    pub async fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push("it is about to stop".into());
        }
        match self.status().await {
            Ok(status) => reasons.extend(status.iter().flat_map(|status| unready(status))),
            Err(reason) => reasons.push(reason),
        }
        if let Some((gateway, _)) = &self.observed.gateway
            && gateway.map().is_none()
        {
            reasons.push("the gateway has no shard map yet: no shardmaster replica has answered".into());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

/// What keeps replicas from being of use.
fn unready(status: &CoreStatus) -> Vec<String> {
    let mut reasons = Vec::new();
    for group in &status.groups {
        let id = group.group;
        if group.fenced {
            reasons.push(format!("{id}: its state is not what the others have; it waits for the leader's"));
        } else if group.suspect {
            reasons.push(format!("{id}: a part of the log is lost and being repaired"));
        } else if group.leader.node.0 == 0 {
            reasons.push(format!("{id}: no leader is known"));
        } else if group.accepted != group.leader {
            reasons.push(format!("{id}: has not caught up with its leader, {}", group.leader.node));
        } else if status.reaches.contains(&(group.leader.node, false)) {
            reasons.push(format!("{id}: its leader, {}, does not answer", group.leader.node));
        } else if group.leader.node == status.node && !group.serves {
            reasons.push(format!("{id}: begins to lead"));
        } else if group.leader.node == status.node && !group.leased {
            reasons.push(format!("{id}: leads, but no majority answers"));
        }
    }
    reasons
}

/// The pages.
pub fn pages(observed: Arc<Observed>, health: Arc<Health>) -> Router {
    let live = async |State(health): State<Arc<Health>>| answer(health.alive().await.map_err(|reason| vec![reason]));
    let ready = async |State(health): State<Arc<Health>>| answer(health.ready().await);
    let etcd_health = async |State(health): State<Arc<Health>>| {
        let (healthy, reason) = match health.ready().await {
            Ok(()) => ("true", String::new()),
            Err(reasons) => ("false", reasons.join("; ")),
        };
        let status = if healthy == "true" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let page = serde_json::json!({ "health": healthy, "reason": reason }).to_string();
        (status, [(header::CONTENT_TYPE, "application/json")], page)
    };
    let metrics = async |State(observed): State<Arc<Observed>>| match observed.metrics().await {
        Ok(page) => ([(header::CONTENT_TYPE, METRICS_TYPE)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/health", get(etcd_health))
        .with_state(health)
        .merge(Router::new().route("/metrics", get(metrics)).with_state(observed))
}

fn answer(judgement: Result<(), Vec<String>>) -> (StatusCode, String) {
    match judgement {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))),
    }
}

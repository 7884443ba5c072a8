//! A node joins a cluster that it did not form: it asks the shardmaster for its id, once in its life.

use super::described_addresses;
use super::security::Secured;
use crate::config::{Address, Role, Roles};
use crate::failure::Failure;
use crate::identity::{self, DataDir};
use gateway::remote::{Remote, RemoteConfig};
use gateway::{AnswerBody, Call, CallError, GatewayConfig, driver};
use std::time::{Duration, Instant};

/// How long one question may take, and how long all of them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(300);

/// Asks until there is an answer. The directory has its random number already, by which the shardmaster knows
/// it again: a crash in the middle joins nobody twice.
pub(super) fn join(
    directory: &mut DataDir,
    peer_address: Option<&Address>,
    roles: &Roles,
    secured: &Secured,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { action: "start a runtime".into(), error })?;
    let identity = directory.identity.clone();
    let addresses = described_addresses(&identity.genesis);
    let nodes: Vec<String> = addresses.values().cloned().collect();
    let call = Call::AddNode {
        cluster: identity.cluster_id,
        name: identity.name.to_string(),
        incarnation: identity.incarnation,
        peer_address: peer_address.map(Address::to_string).unwrap_or_default(),
        keeps: (roles.has(Role::Shardmaster), roles.has(Role::Shardkv)),
    };
    let node = runtime.block_on(async {
        let config = GatewayConfig {
            seed: [rand::random(), rand::random()],
            nodes: addresses.keys().copied().collect(),
            ..GatewayConfig::default()
        };
        let dialer = secured.dialer();
        let gateway =
            driver::start(config, |replies| Remote::new(RemoteConfig::default(), dialer, None, addresses, replies));
        let began = Instant::now();
        loop {
            let problem = match gateway.call(call.clone(), ANSWER_TIMEOUT).await {
                Ok(answer) => match answer.body {
                    AnswerBody::Node(node) => return Ok(node),
                    other => format!("a strange answer: {other:?}"),
                },
                Err(CallError::Failed(error)) => return Err(Failure::Run(format!("cannot join: {error}"))),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > PATIENCE {
                return Err(Failure::Run(format!(
                    "cannot join: no shardmaster answers at {} ({problem}); are these nodes up, and is --peer-tls-dir \
                     of their CA?",
                    nodes.join(", ")
                )));
            }
            tracing::warn!("not joined yet, trying on: {problem}");
        }
    })?;
    runtime.shutdown_background();
    tracing::info!(%node, "joined the cluster");
    identity::assign(&directory.path, &mut directory.identity, node)?;
    Ok(())
}

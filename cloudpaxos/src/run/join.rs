//! A node joins a cluster that it did not form: it asks the shardmaster for its id, once in its life.

use super::map::addresses_to_ask;
use super::security::Secured;
use crate::config::{Address, Role, StartConfig};
use crate::failure::Failure;
use crate::identity::{self, DataDir};
use gateway::remote::{Remote, RemoteConfig};
use gateway::{AnswerBody, Call, CallError, GatewayConfig, driver};
use node::runtime;
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::request::OpError;
use std::time::{Duration, Instant};

/// How long one question may take, and how long all of them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(300);

/// Asks until there is an answer. The directory has its random number already, by which the shardmaster knows
/// it again: a crash in the middle joins nobody twice.
pub(super) fn join(directory: &mut DataDir, site: &StartConfig, secured: &Secured) -> Result<(), Failure> {
    let tokio_runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio_runtime = tokio_runtime.map_err(|error| Failure::Io { action: "start a runtime".into(), error })?;
    let identity = directory.identity.clone();
    let addresses = addresses_to_ask(&identity.genesis, &site.known_nodes);
    let asked: Vec<String> = addresses.values().cloned().collect();
    let call = Call::AddNode {
        cluster: identity.cluster_id,
        name: identity.name.to_string(),
        incarnation: identity.incarnation,
        peer_address: site.advertise_peer.as_ref().map(Address::to_string).unwrap_or_default(),
        keeps: (site.roles.has(Role::Shardmaster), site.roles.has(Role::Shardkv)),
    };
    let (node, nodes) = tokio_runtime.block_on(async {
        let config = GatewayConfig {
            seed: [rand::random(), rand::random()],
            nodes: addresses.keys().copied().collect(),
            ..GatewayConfig::default()
        };
        let dialer = secured.dialer();
        let gateway =
            driver::start(config, |replies| Remote::new(RemoteConfig::default(), dialer, None, addresses, replies));
        let began = Instant::now();
        tracing::info!("joining: asking {} for a number", asked.join(", "));
        loop {
            let problem = match gateway.call(call.clone(), ANSWER_TIMEOUT).await {
                Ok(answer) => match (answer.body, gateway.map()) {
                    (AnswerBody::Node(node), Some(map)) => return Ok((node, reached(&map))),
                    (AnswerBody::Node(_), None) => "nobody has told the shard map yet".to_owned(),
                    (other, _) => format!("a strange answer: {other:?}"),
                },
                Err(CallError::Failed(OpError::Malformed(why))) => {
                    return Err(Failure::Run(format!("cannot join: {why}")));
                }
                Err(CallError::Failed(error)) => return Err(Failure::Run(format!("cannot join: {error}"))),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > PATIENCE {
                return Err(Failure::Run(format!(
                    "cannot join: no shardmaster answers at {} ({problem}); are these nodes up, and is --peer-tls-dir \
                     of their CA? (--known-nodes names others that the cluster has)",
                    asked.join(", ")
                )));
            }
            tracing::warn!("not joined yet, trying on: {problem} (--known-nodes names further nodes to ask)");
        }
    })?;
    tokio_runtime.shutdown_background();
    tracing::info!(%node, "joined the cluster");
    runtime::note_nodes(&directory.path, &nodes)
        .map_err(|error| Failure::Io { action: format!("write peers.json in {}", directory.path.display()), error })?;
    identity::assign(&directory.path, &mut directory.identity, node)?;
    Ok(())
}

/// The nodes that the cluster has now, as far as they can be reached.
fn reached(map: &ShardMap) -> Vec<NodeInfo> {
    map.nodes.iter().filter(|node| !node.peer_address.is_empty()).cloned().collect()
}

//! Starts nodes from a validated configuration, and returns when they have stopped.
//!
//! A process with replicas runs one node; one with the gateway role serves clients; a process with
//! both calls its node's groups without a connection. Everything of a node runs on one
//! current-thread runtime, beside the threads that `node` starts.

mod admin;
mod clients;
mod host;
mod join;
mod map;
mod security;

use crate::config::{DevConfig, Limits, ReadMode, Roles, StartConfig, Timing};
use crate::failure::Failure;
use crate::identity::{self, Claim};
use crate::observe::{FollowLayer, Traces};
pub use map::{described_addresses, first_map};

use host::{Ended, Ports, Site};
use node::runtime::SpanSink;
use paxos::NodeId;
use security::Secured;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use tokio::sync::watch;

fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
    let action = what.to_string();
    move |error| Failure::Io { action, error }
}

fn bind(address: &str, option: &str) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).map_err(|error| {
        Failure::Run(format!("cannot listen on {address}: {error}; free the port or change {option}"))
    })?;
    listener.set_nonblocking(true).map_err(failed(format!("listen on {address}")))?;
    Ok(listener)
}

/// Where stages of requests go that nobody wants to hear of.
fn unwatched() -> SpanSink {
    Arc::new(|_| {})
}

/// A panic on any thread ends the process: a node that has lost its apply thread would keep its leases,
/// and others would wait for it.
fn abort_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        std::process::abort();
    }));
}

/// Runs one node of a cluster until it is told to stop.
pub fn start(config: StartConfig, traces: Option<&Traces>) -> Result<(), Failure> {
    abort_on_panic();
    let client =
        config.listen_client.as_ref().map(|address| bind(&address.to_string(), "--listen-client")).transpose()?;
    let peer = config.listen_peer.as_ref().map(|address| bind(&address.to_string(), "--listen-peer")).transpose()?;
    let metrics =
        config.listen_metrics.as_ref().map(|address| bind(&address.to_string(), "--listen-metrics")).transpose()?;
    let secured = Secured::read(&config.security, config.listen_client.iter().chain(&config.listen_metrics))?;
    let directory = match (&config.data_dir, config.roles.hosts_replicas()) {
        (Some(path), true) => {
            let claim = Claim {
                name: &config.name,
                token: config.cluster_token.as_deref(),
                genesis: config.genesis.as_ref(),
                lease_ms: config.timing.lease_ms(),
                joins: config.join,
            };
            let mut directory = identity::open(path, claim)?;
            directory.notes.iter().for_each(|note| tracing::warn!("{note}"));
            if directory.identity.node_id == identity::UNASSIGNED {
                join::join(&mut directory, &config, &secured)?;
            }
            Some(directory)
        }
        _ => None,
    };
    let genesis = directory.as_ref().map(|directory| directory.identity.genesis.clone()).or(config.genesis.clone());
    let Some(genesis) = genesis else { return Err(Failure::Usage("--initial-cluster is missing".into())) };
    let site = Site {
        name: config.name.to_string(),
        zone: config.zone,
        identity: directory.as_ref().map(|directory| (directory.path.clone(), directory.identity.clone())),
        peer_addresses: described_addresses(&genesis),
        known_nodes: config.known_nodes,
        genesis,
        roles: config.roles,
        client_address: config.advertise_client.map(|address| address.to_string()).unwrap_or_default(),
        peer_address: config.advertise_peer.map(|address| address.to_string()).unwrap_or_default(),
        read_mode: config.read_mode,
        timing: config.timing,
        limits: config.limits,
        secured,
        hands_over: true,
        follow: traces.map(Traces::layer).unwrap_or_default(),
        spans: traces.map_or_else(unwatched, Traces::sink),
    };
    let (_stop, stopped) = stop_on_signals()?;
    match host::run(site, Ports { client, peer, metrics }, stopped)? {
        Ended::Asked => Ok(()),
        Ended::Removed(why) => Err(Failure::Run(why)),
    }
}

/// Runs an embedded cluster of three nodes in this process until it is told to stop.
pub fn dev(config: DevConfig) -> Result<(), Failure> {
    abort_on_panic();
    let client = bind(&config.listen.to_string(), "--listen")?;
    let client_port = client.local_addr().map_err(failed("read the client port"))?;
    let mut peers = BTreeMap::new();
    let mut addresses: BTreeMap<NodeId, String> = BTreeMap::new();
    for member in &config.genesis.members {
        let listener = bind("127.0.0.1:0", "--listen")?;
        let address = listener.local_addr().map_err(failed("read a peer port"))?;
        addresses.insert(member.id, address.to_string());
        peers.insert(member.id, listener);
    }
    let (stop, stopped) = stop_on_signals()?;
    let (ended, ends) = mpsc::channel();
    let mut client = Some(client);
    let mut threads = Vec::new();
    for member in &config.genesis.members {
        let path = config.data_dir.join(member.name.as_str());
        std::fs::create_dir_all(&config.data_dir).map_err(failed(format!("create {}", config.data_dir.display())))?;
        let timing = Timing::default();
        let claim = Claim {
            name: &member.name,
            token: Some(&config.genesis.token),
            genesis: Some(&config.genesis),
            lease_ms: timing.lease_ms(),
            joins: false,
        };
        let directory = identity::open(&path, claim)?;
        let site = Site {
            name: member.name.to_string(),
            zone: String::new(),
            identity: Some((directory.path.clone(), directory.identity.clone())),
            genesis: directory.identity.genesis.clone(),
            peer_addresses: addresses.clone(),
            known_nodes: Vec::new(),
            roles: if client.is_some() { Roles::all() } else { member.roles.clone() },
            peer_address: String::new(),
            client_address: if client.is_some() { client_port.to_string() } else { String::new() },
            read_mode: ReadMode::Lease,
            timing,
            limits: Limits::default(),
            secured: Secured::open(),
            hands_over: false,
            follow: FollowLayer::default(),
            spans: unwatched(),
        };
        let serves = client.is_some();
        let ports = Ports { client: client.take(), peer: peers.remove(&member.id), metrics: None };
        let (stopped, ended) = (stopped.clone(), ended.clone());
        let thread = std::thread::Builder::new().name(member.name.to_string()).spawn(move || {
            let _directory = directory;
            // The receiver lives until all have ended.
            drop(ended.send((serves, host::run(site, ports, stopped))));
        });
        threads.push(thread.map_err(failed("start a thread"))?);
    }
    drop(ended);
    print_welcome(&client_port.to_string(), &config.data_dir);
    let mut outcome = Ok(());
    for (serves, end) in ends {
        let end = match end {
            // The others go on without it, unless clients have nobody left to talk to.
            Ok(Ended::Removed(why)) if !serves => {
                tracing::warn!("{why}");
                continue;
            }
            Ok(Ended::Removed(why)) => Err(Failure::Run(why)),
            Ok(Ended::Asked) => Ok(()),
            Err(failure) => Err(failure),
        };
        // One that fails takes the others down: three of three is what was asked for.
        stop.send_replace(true);
        outcome = outcome.and(end);
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
    outcome
}

fn print_welcome(endpoint: &str, data_dir: &Path) {
    println!("CloudPaxos {} serves the etcd v3 API on {endpoint} (data in {})", crate::VERSION, data_dir.display());
    println!("Try:  cloudpaxos kv put hello world --endpoints {endpoint}");
    println!("      cloudpaxos kv get hello --endpoints {endpoint}");
    println!("      cloudpaxos status --endpoints {endpoint}");
    println!("Stop with Ctrl-C; what was acknowledged is on disk.");
}

/// A flag that SIGINT and SIGTERM raise.
fn stop_on_signals() -> Result<(watch::Sender<bool>, watch::Receiver<bool>), Failure> {
    let (stop, stopped) = watch::channel(false);
    let raise = stop.clone();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("start a runtime"))?;
    let wait = move || {
        runtime.block_on(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                tracing::error!("signals cannot be received; stop the process with SIGKILL");
                return;
            };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::info!("stopping; a second signal ends the process at once, and nothing acknowledged is lost");
            raise.send_replace(true);
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::warn!("a second signal: the process ends without handing over");
            std::process::exit(1);
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed("start a thread"))?;
    Ok((stop, stopped))
}

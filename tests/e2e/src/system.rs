//! The two systems that speak the etcd v3 API: how each is started.

use crate::HarnessError;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum System {
    /// The control.
    Etcd,
    /// Ours.
    Cloudpaxos,
}

/// Which processes a cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// Three nodes that do everything.
    AllRoles,
    /// Three nodes that hold data, and two gateways before them.
    Gateways,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds data and serves clients.
    Node,
    /// Holds data only.
    DataNode,
    /// Serves clients only.
    Gateway,
}

impl Role {
    /// Whether clients can talk to it.
    pub fn serves_clients(self) -> bool {
        match self {
            Role::Node | Role::Gateway => true,
            Role::DataNode => false,
        }
    }
}

/// One process of a cluster: everything that its command line needs.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where clients reach it.
    pub client_port: u16,
    /// Where peers reach it.
    pub peer_port: u16,
    /// Where its data lies.
    pub data: PathBuf,
}

impl Layout {
    /// The names and roles of its processes.
    pub fn roles(self) -> Vec<(String, Role)> {
        let nodes = |role| (1..=3).map(move |number| (format!("n{number}"), role));
        match self {
            Layout::AllRoles => nodes(Role::Node).collect(),
            Layout::Gateways => {
                let gateways = (1..=2).map(|number| (format!("gw{number}"), Role::Gateway));
                nodes(Role::DataNode).chain(gateways).collect()
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Layout::AllRoles => "all-roles",
            Layout::Gateways => "gateways",
        }
    }
}

impl System {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            System::Etcd => "etcd",
            System::Cloudpaxos => "cloudpaxos",
        }
    }

    /// Whether it serves watches. Ours does not yet; then what was acknowledged is read back at the
    /// revisions that were answered.
    pub fn serves_watch(self) -> bool {
        match self {
            System::Etcd => true,
            System::Cloudpaxos => false,
        }
    }

    /// Finds the server's binary: the environment names it, or it is where the build put it.
    pub fn binary(self) -> Result<PathBuf, HarnessError> {
        let (variable, tried) = match self {
            System::Etcd => ("ETCD_BIN", in_path("etcd")),
            System::Cloudpaxos => ("CLOUDPAXOS_BIN", beside_us("cloudpaxos")),
        };
        let tried = env::var_os(variable).map_or(tried, |path| vec![PathBuf::from(path)]);
        let found = tried.iter().find(|path| path.is_file()).cloned();
        found.ok_or(HarnessError::NoBinary { name: self.name(), tried, variable })
    }

    /// Refuses layouts that the system does not have.
    pub fn check_layout(self, layout: Layout) -> Result<(), HarnessError> {
        match (self, layout) {
            (System::Cloudpaxos, _) | (System::Etcd, Layout::AllRoles) => Ok(()),
            (System::Etcd, Layout::Gateways) => {
                Err(HarnessError::NoSuchLayout { system: self.name(), layout: layout.name() })
            }
        }
    }

    /// The command line of one member.
    pub fn arguments(self, member: &Member, members: &[Member]) -> Vec<OsString> {
        match self {
            System::Etcd => etcd_arguments(member, members),
            System::Cloudpaxos => cloudpaxos_arguments(member, members),
        }
    }
}

/// Chosen so that two runs on one machine never take each other's nodes for their own.
fn token(member: &Member) -> String {
    format!("e2e-{}", member.data.parent().unwrap_or(Path::new("")).display())
}

fn options(pairs: Vec<(&str, OsString)>) -> Vec<OsString> {
    pairs.into_iter().flat_map(|(name, value)| [OsString::from(format!("--{name}")), value]).collect()
}

fn etcd_arguments(member: &Member, members: &[Member]) -> Vec<OsString> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let cluster: Vec<String> = members.iter().map(|m| format!("{}={}", m.name, url(m.peer_port))).collect();
    options(vec![
        ("name", member.name.clone().into()),
        ("data-dir", member.data.clone().into()),
        ("listen-client-urls", url(member.client_port).into()),
        ("advertise-client-urls", url(member.client_port).into()),
        ("listen-peer-urls", url(member.peer_port).into()),
        ("initial-advertise-peer-urls", url(member.peer_port).into()),
        ("initial-cluster", cluster.join(",").into()),
        ("initial-cluster-token", token(member).into()),
        ("quota-backend-bytes", "8589934592".into()),
        ("log-level", "warn".into()),
    ])
}

fn cloudpaxos_arguments(member: &Member, members: &[Member]) -> Vec<OsString> {
    let address = |port: u16| OsString::from(format!("127.0.0.1:{port}"));
    let cluster: Vec<String> = members
        .iter()
        .filter(|m| m.role != Role::Gateway)
        .map(|m| format!("{}=127.0.0.1:{}", m.name, m.peer_port))
        .collect();
    let mut pairs = vec![
        ("name", OsString::from(member.name.clone())),
        ("data-dir", member.data.clone().into()),
        ("initial-cluster", cluster.join(",").into()),
        ("cluster-token", token(member).into()),
    ];
    match member.role {
        Role::Node => {
            pairs.push(("listen-client", address(member.client_port)));
            pairs.push(("listen-peer", address(member.peer_port)));
        }
        Role::DataNode => {
            pairs.push(("roles", "shardmaster,shardkv".into()));
            pairs.push(("listen-peer", address(member.peer_port)));
        }
        Role::Gateway => {
            pairs.push(("roles", "gateway".into()));
            pairs.push(("listen-client", address(member.client_port)));
        }
    }
    [OsString::from("start")].into_iter().chain(options(pairs)).collect()
}

fn in_path(name: &str) -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).map(|dir| dir.join(name)).collect()).unwrap_or_default()
}

/// The profile directory that our own executable is in (or below, for a test), then the other
/// profile's.
fn beside_us(name: &str) -> Vec<PathBuf> {
    let Ok(own) = env::current_exe() else { return Vec::new() };
    let Some(mut profile) = own.parent() else { return Vec::new() };
    if profile.ends_with("deps")
        && let Some(above) = profile.parent()
    {
        profile = above;
    }
    let mut tried = vec![profile.join(name)];
    if let Some(target) = profile.parent() {
        tried.extend(["release", "debug"].map(|profile| target.join(profile).join(name)));
    }
    tried
}

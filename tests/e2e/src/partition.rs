//! Hosts that are cut off from one another while clients append: for how long nobody can write, and whether anything
//! fails, gets lost, is done twice, or is read stale.

use crate::HarnessError;
use crate::append::append;
use crate::client::{answers, channel};
use crate::hosts::{Host, Hosts};
use crate::mover::keep_moving;
use crate::process::Process;
use crate::system::System;
use proto::admin::StatusRequest;
use proto::admin::admin_client::AdminClient;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nodes of the cluster: with five, one can have a majority that no other one has.
pub const NODES: usize = 5;
const CLIENTS: u64 = 11;
/// The data group whose leader is cut off; every node has a replica of it.
const GROUP: u64 = 2;
/// How often the count of answers is looked at: the resolution of what is measured.
const LOOK: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(60);
const GATEWAY: &str = "http://127.0.0.1:2379";

/// Which links are cut, as seen from the node that leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// The leader is cut off from all other nodes.
    Alone,
    /// Nothing reaches the leader; what it sends arrives.
    Deaf,
    /// Nothing of what the leader sends arrives; it hears the others.
    Mute,
    /// The leader and one more are cut off from the rest.
    Minority,
    /// All are in a line with the leader at its end: each hears its neighbours.
    Chain,
    /// One node hears all, the leader and the others hear that one only.
    Constrained,
}

/// All of them.
pub const SHAPES: [Shape; 6] =
    [Shape::Alone, Shape::Deaf, Shape::Mute, Shape::Minority, Shape::Chain, Shape::Constrained];

impl Shape {
    /// What is cut, from and to whom, `order` being all nodes with the leader first.
    fn cuts(self, order: &[Host]) -> Vec<(Host, Host)> {
        let place = |host: &Host| order.iter().position(|it| it == host).unwrap_or_default();
        let connected = |from: usize, to: usize| match self {
            Shape::Alone => from != 0 && to != 0,
            Shape::Deaf => to != 0,
            Shape::Mute => from != 0,
            Shape::Minority => (from < 2) == (to < 2),
            Shape::Chain => from.abs_diff(to) == 1,
            Shape::Constrained => from == 1 || to == 1,
        };
        let pairs = order.iter().flat_map(|from| order.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| from != to && !connected(place(from), place(to))).collect()
    }
}

/// What clients saw of one cut.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which.
    pub shape: Shape,
    /// The longest time without an answer, while it lasted.
    pub cut: Duration,
    /// The same after it was mended.
    pub mended: Duration,
    /// Whether another node led in the end.
    pub moved: bool,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { shape, cut, mended, moved } = self;
        let (name, leader) = (format!("{shape:?}"), if *moved { "another leader" } else { "the same leader" });
        let (cut, mended) = (cut.as_millis(), mended.as_millis());
        write!(f, "{name:<12} nobody could write for {cut} ms, {mended} ms when mended; {leader}")
    }
}

/// What clients saw of all of them.
#[derive(Clone, Debug, Default)]
pub struct Partitions {
    /// One after the other.
    pub seen: Vec<Seen>,
    /// How many appends there were; each was read back.
    pub appends: u64,
    /// How many moves, splits and merges were planned meanwhile.
    pub changes: u64,
    /// How long one of them took at most.
    pub longest: Duration,
}

/// A cluster on hosts of its own: nodes on the first ones, a gateway on the last, where this thread is, too.
struct Site {
    // Dropped first: what runs on hosts ends before these go.
    processes: Vec<Process>,
    hosts: Hosts,
}

fn start(hosts: &Hosts, groups: u64, directory: &Path) -> Result<Vec<Process>, HarnessError> {
    let binary = System::Cloudpaxos.binary()?;
    let cluster: Vec<String> = (0..NODES).map(|host| format!("n{host}={}:2380", hosts.address(host))).collect();
    let launch = |name: String, host: Host, own: &[(&str, String)]| {
        let mut words = hosts.wrapper(host);
        words.extend([binary.clone().into(), "start".into()]);
        let cluster = cluster.join(",");
        let common = [("--initial-cluster", cluster), ("--data-groups", groups.to_string()), ("--name", name.clone())];
        let options = common.iter().chain(own).flat_map(|(option, value)| [option.into(), OsString::from(value)]);
        words.extend(options);
        words.push("--insecure-plaintext".into());
        let program = words.remove(0);
        Process::start(&name, Path::new(&program), &words, &directory.join(format!("{name}.log")))
    };
    let mut processes = Vec::new();
    for host in 0..NODES {
        let (name, at) = (format!("n{host}"), format!("{}:2380", hosts.address(host)));
        let data = directory.join(&name).display().to_string();
        let own = [("--roles", "shardmaster,shardkv".into()), ("--listen-peer", at), ("--data-dir", data)];
        processes.push(launch(name, host, &own)?);
    }
    let own = [("--roles", "gateway".to_owned()), ("--listen-client", "127.0.0.1:2379".to_owned())];
    processes.push(launch("gateway".to_owned(), NODES, &own)?);
    Ok(processes)
}

impl Site {
    async fn wait_ready(&mut self) -> Result<(), HarnessError> {
        let deadline = Instant::now() + LIMIT;
        while !answers(GATEWAY).await {
            self.processes.iter_mut().try_for_each(Process::check_alive)?;
            if Instant::now() > deadline {
                let what = "an answer of the gateway".to_owned();
                return Err(HarnessError::Timeout {
                    what,
                    seconds: LIMIT.as_secs(),
                    logs: "the run's directory".into(),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// All nodes, the data group's leader first.
    async fn leader_first(&self) -> Result<Vec<Host>, HarnessError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = AdminClient::new(channel(GATEWAY)).status(StatusRequest::default()).await;
            let groups = status.map(|status| status.into_inner().groups).unwrap_or_default();
            let leader = groups.iter().find(|group| group.id == GROUP).map_or(0, |group| group.leader);
            if let Some(leader) = usize::try_from(leader).ok().and_then(|id| id.checked_sub(1)) {
                return Ok((0..NODES).map(|offset| (leader + offset) % NODES).collect());
            }
            if Instant::now() > deadline {
                let what = "a leader that the status shows".to_owned();
                return Err(HarnessError::Timeout {
                    what,
                    seconds: LIMIT.as_secs(),
                    logs: "the run's directory".into(),
                });
            }
            tokio::time::sleep(10 * LOOK).await;
        }
    }
}

/// The longest time without an answer, from now on for so long, or until answers have come again.
async fn longest_gap(done: &AtomicU64, length: Duration) -> Duration {
    let begun = Instant::now();
    let (mut count, mut last, mut longest) = (done.load(Ordering::Relaxed), begun, Duration::ZERO);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = done.load(Ordering::Relaxed);
        longest = longest.max(last.elapsed());
        if now != count {
            (count, last) = (now, Instant::now());
        }
        let silent = last.elapsed() > length / 2 && begun.elapsed() < LIMIT;
        if begun.elapsed() >= length && !silent {
            return longest;
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Cuts {
    /// In which shapes links are cut, one after the other.
    pub shapes: Vec<Shape>,
    /// How often all of them.
    pub rounds: u32,
    /// How long a cut lasts, and its mending.
    pub length: Duration,
    /// Whether shards of two data groups are moved, split and merged at random meanwhile. Without, there is one group:
    /// only then nobody else answers while its leader is gone.
    pub moving: bool,
}

/// Cuts links, and mends them. `None` where this machine cannot make hosts. Logs of a run that failed stay.
pub async fn run(cuts: &Cuts, parent: &Path) -> Result<Option<Partitions>, HarnessError> {
    let Cuts { ref shapes, rounds, length, moving } = *cuts;
    let groups = if moving { 2 } else { 1 };
    let Some(hosts) = Hosts::new(NODES + 1)? else { return Ok(None) };
    let directory = tempfile::Builder::new().prefix("e2e-partition-").tempdir_in(parent);
    let mut directory = directory.map_err(HarnessError::io("creating a directory"))?;
    directory.disable_cleanup(true);
    hosts.enter(NODES)?;
    let processes = start(&hosts, groups, directory.path())?;
    let mut site = Site { processes, hosts };
    site.wait_ready().await?;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(append(vec![GATEWAY.to_owned()], number, stop.clone(), done.clone())))
        .collect();
    let admin = AdminClient::new(channel(GATEWAY));
    let mover = moving.then(|| tokio::spawn(keep_moving(admin, groups, stop.clone())));
    let mut partitions = Partitions::default();
    for shape in (0..rounds).flat_map(|_| shapes.iter().copied()) {
        longest_gap(&done, length / 2).await;
        let order = site.leader_first().await?;
        site.hosts.cut(&shape.cuts(&order))?;
        let cut = longest_gap(&done, length).await;
        let moved = site.leader_first().await?[0] != order[0];
        site.hosts.cut(&[])?;
        let mended = longest_gap(&done, length).await;
        let seen = Seen { shape, cut, mended, moved };
        println!("{seen}");
        partitions.seen.push(seen);
    }
    stop.store(true, Ordering::Relaxed);
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: tokio::task::JoinError| HarnessError::Wrong { what, detail: error.to_string() }
    };
    for client in clients {
        partitions.longest = partitions.longest.max(client.await.map_err(failed("an append to a key of its own"))?);
    }
    if let Some(mover) = mover {
        partitions.changes = mover.await.map_err(failed("a wish for another place of a shard"))?;
    }
    partitions.appends = done.load(Ordering::Relaxed);
    site.processes.clear();
    directory.disable_cleanup(false);
    Ok(Some(partitions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_are_what_they_are_called() {
        let order = [2, 0, 1];
        assert_eq!(Shape::Alone.cuts(&order), [(2, 0), (2, 1), (0, 2), (1, 2)]);
        assert_eq!(Shape::Deaf.cuts(&order), [(0, 2), (1, 2)]);
        assert_eq!(Shape::Mute.cuts(&order), [(2, 0), (2, 1)]);
        assert_eq!(Shape::Chain.cuts(&order), [(2, 1), (1, 2)]);
        assert_eq!(Shape::Constrained.cuts(&order), [(2, 1), (1, 2)]);
        let five: Vec<Host> = (0..5).collect();
        let majorities = |shape: Shape| {
            let cuts = shape.cuts(&five);
            let linked = |a: Host, b: Host| a == b || (!cuts.contains(&(a, b)) && !cuts.contains(&(b, a)));
            five.iter().copied().filter(|a| five.iter().filter(|b| linked(*a, **b)).count() >= 3).collect::<Vec<_>>()
        };
        assert_eq!(majorities(Shape::Constrained), [1], "one node alone can lead");
        assert_eq!(majorities(Shape::Chain), [1, 2, 3], "the ends cannot");
        assert_eq!(majorities(Shape::Minority), [2, 3, 4]);
    }
}

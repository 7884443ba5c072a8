//! A cluster of real processes on this machine: start, kill, pause, restart.

use crate::HarnessError;
use crate::client;
use crate::process::Process;
use crate::system::{Layout, Member, System};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How long a cluster may take to answer after a start. Generous: recovery of a big log counts.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// A member by position.
pub type Number = usize;

/// How a process is started, beside its usual arguments.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// A program and its arguments that start the server, whose command line follows.
    pub wrapper: Vec<OsString>,
    /// Options of the server with their values: in place of the usual ones of that name, or beside them.
    pub options: Vec<(&'static str, OsString)>,
}

impl Start {
    /// The whole command line.
    fn words(&self, binary: &Path, usual: Vec<OsString>) -> Vec<OsString> {
        let mut server = usual;
        for (option, value) in &self.options {
            match server.iter().position(|word| word == option) {
                Some(at) => server[at + 1].clone_from(value),
                None => server.extend([option.into(), value.clone()]),
            }
        }
        self.wrapper.iter().cloned().chain([binary.into()]).chain(server).collect()
    }
}

/// A running cluster; dropping it kills every process and deletes its directory, unless kept.
pub struct Cluster {
    system: System,
    binary: PathBuf,
    members: Vec<Member>,
    processes: Vec<Option<Process>>,
    directory: PathBuf,
    kept: bool,
}

impl Cluster {
    /// Lays out a cluster below `parent` (which must exist), starts it and waits until it answers.
    pub async fn start(system: System, layout: Layout, parent: &Path) -> Result<Cluster, HarnessError> {
        Cluster::start_as(system, layout, parent, |_| Start::default()).await
    }

    /// The same, each member in the way that `how` says.
    pub async fn start_as(
        system: System,
        layout: Layout,
        parent: &Path,
        how: impl Fn(&Member) -> Start,
    ) -> Result<Cluster, HarnessError> {
        system.check_layout(layout)?;
        let binary = system.binary()?;
        let directory = tempfile::Builder::new()
            .prefix(&format!("e2e-{}-", system.name()))
            .tempdir_in(parent)
            .map_err(HarnessError::io(format!("creating a directory in {}", parent.display())))?
            .keep();
        let roles = layout.roles();
        let mut ports = free_ports(roles.len() * 2)?.into_iter();
        let mut next_port = || ports.next().expect("two ports were taken per member");
        let members: Vec<Member> = roles
            .into_iter()
            .map(|(name, role)| Member {
                client_port: next_port(),
                peer_port: next_port(),
                data: directory.join(&name),
                name,
                role,
            })
            .collect();
        let processes = members.iter().map(|_| None).collect();
        let mut cluster = Cluster { system, binary, members, processes, directory, kept: false };
        for number in cluster.numbers() {
            let start = how(cluster.member(number));
            cluster.launch_as(number, &start)?;
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// The system that it is of.
    pub fn system(&self) -> System {
        self.system
    }

    /// All members.
    pub fn numbers(&self) -> Vec<Number> {
        (0..self.members.len()).collect()
    }

    /// One member's names and places.
    pub fn member(&self, number: Number) -> &Member {
        &self.members[number]
    }

    /// Whether a member's process runs.
    pub fn is_running(&self, number: Number) -> bool {
        self.processes[number].is_some()
    }

    /// The URLs of all members that serve clients, running or not.
    pub fn endpoints(&self) -> Vec<String> {
        let serving = self.members.iter().filter(|member| member.role.serves_clients());
        serving.map(|member| endpoint(member.client_port)).collect()
    }

    /// The URL of one member, if it serves clients.
    pub fn endpoint(&self, number: Number) -> Option<String> {
        let member = self.member(number);
        member.role.serves_clients().then(|| endpoint(member.client_port))
    }

    /// The ids of all running processes.
    pub fn process_ids(&self) -> Vec<u32> {
        self.processes.iter().flatten().map(Process::id).collect()
    }

    /// Starts a member's process, on its old data if there is any.
    pub fn launch(&mut self, number: Number) -> Result<(), HarnessError> {
        self.launch_as(number, &Start::default())
    }

    /// The same, in a special way.
    pub fn launch_as(&mut self, number: Number, start: &Start) -> Result<(), HarnessError> {
        assert!(!self.is_running(number), "{} runs already", self.members[number].name);
        let member = &self.members[number];
        let mut words = start.words(&self.binary, self.system.arguments(member, &self.members));
        let program = PathBuf::from(words.remove(0));
        let log = self.log(number);
        self.processes[number] = Some(Process::start(&member.name, &program, &words, &log)?);
        Ok(())
    }

    /// Waits until a member's process ends by itself: its status, and what it wrote last.
    pub fn wait_exit(&mut self, number: Number) -> Result<(ExitStatus, String), HarnessError> {
        let log = self.log(number);
        match self.processes[number].take() {
            Some(process) => process.wait_exit(STOP_LIMIT),
            None => Err(HarnessError::Wrong { what: format!("{} runs", log.display()), detail: "it does not".into() }),
        }
    }

    /// Where a member's output goes.
    pub fn log(&self, number: Number) -> PathBuf {
        self.directory.join(format!("{}.log", self.members[number].name))
    }

    /// The id of a member's process.
    pub fn process_id(&self, number: Number) -> Option<u32> {
        self.processes[number].as_ref().map(Process::id)
    }

    /// kill -9.
    pub fn kill(&mut self, number: Number) -> Result<(), HarnessError> {
        self.processes[number].take().map_or(Ok(()), Process::kill)
    }

    /// Kills several at one moment: first all signals, then the waiting.
    pub fn kill_all(&mut self) -> Result<(), HarnessError> {
        for process in self.processes.iter().flatten() {
            process.signal(Signal::KILL);
        }
        self.numbers().into_iter().try_for_each(|number| self.kill(number))
    }

    /// An orderly end of one process; an error if it ends badly.
    pub fn stop(&mut self, number: Number) -> Result<(), HarnessError> {
        let Some(process) = self.processes[number].take() else { return Ok(()) };
        match process.stop(STOP_LIMIT)? {
            status if status.success() => Ok(()),
            status => Err(HarnessError::Wrong {
                what: format!("the end of {}", self.members[number].name),
                detail: format!("{status}; see {}", self.log(number).display()),
            }),
        }
    }

    /// An orderly end of every process.
    pub fn stop_all(&mut self) -> Result<(), HarnessError> {
        for process in self.processes.iter().flatten() {
            process.signal(Signal::TERM);
        }
        for process in &mut self.processes {
            if let Some(process) = process.take() {
                process.stop(STOP_LIMIT)?;
            }
        }
        Ok(())
    }

    /// Freezes a process (SIGSTOP), as a long scheduling pause would.
    pub fn pause(&self, number: Number) {
        if let Some(process) = &self.processes[number] {
            process.signal(Signal::STOP);
        }
    }

    /// Lets a frozen process go on.
    pub fn resume(&self, number: Number) {
        if let Some(process) = &self.processes[number] {
            process.signal(Signal::CONT);
        }
    }

    /// Fails if a process ended by itself.
    pub fn check_alive(&mut self) -> Result<(), HarnessError> {
        self.processes.iter_mut().flatten().try_for_each(Process::check_alive)
    }

    /// Waits until every running member that serves clients answers a linearizable read.
    pub async fn wait_ready(&mut self) -> Result<(), HarnessError> {
        let deadline = Instant::now() + READY_LIMIT;
        for number in self.numbers() {
            let Some(endpoint) = self.endpoint(number).filter(|_| self.is_running(number)) else { continue };
            while !client::answers(&endpoint).await {
                self.check_alive()?;
                if Instant::now() >= deadline {
                    self.kept = true;
                    return Err(HarnessError::Timeout {
                        what: format!("an answer of {} to a read", self.members[number].name),
                        seconds: READY_LIMIT.as_secs(),
                        logs: self.directory.clone(),
                    });
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
        self.check_alive()
    }

    /// The running member that says of itself that it leads, if one does.
    pub async fn leader(&self) -> Option<Number> {
        for number in self.numbers() {
            if let Some(endpoint) = self.endpoint(number).filter(|_| self.is_running(number))
                && client::is_leader(&endpoint).await
            {
                return Some(number);
            }
        }
        None
    }

    /// Where data and logs lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps data and logs for inspection when the cluster is dropped; says where they are.
    pub fn keep(&mut self) -> &Path {
        self.kept = true;
        &self.directory
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.processes.clear();
        if !self.kept && !std::thread::panicking() {
            let _left_behind = fs::remove_dir_all(&self.directory);
        }
    }
}

fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Below those that the system gives to outgoing connections: one of these could take a port between our
/// look and the server's start.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Ports that were free a moment ago. All are held until all are known, so they differ.
pub fn free_ports(count: usize) -> Result<Vec<u16>, HarnessError> {
    let mut held = Vec::new();
    for _ in 0..PORTS.len() {
        if held.len() == count {
            break;
        }
        held.extend(TcpListener::bind(("127.0.0.1", rand::random_range(PORTS))));
    }
    let what = "looking for free ports";
    if held.len() < count {
        return Err(HarnessError::Wrong { what: what.into(), detail: format!("only {} of {count}", held.len()) });
    }
    held.iter().map(|l| l.local_addr().map(|a| a.port()).map_err(HarnessError::io(what))).collect()
}

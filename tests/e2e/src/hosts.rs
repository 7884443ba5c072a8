//! Hosts on this machine: network namespaces, each with an address of its own behind one switch. Links between them
//! are cut in one direction at a time, as a firewall or a broken cable would.

use crate::HarnessError;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A host, by position.
pub type Host = usize;

/// Some hosts; dropping them takes their network away. What runs there should have ended before.
pub struct Hosts {
    prefix: String,
    count: usize,
}

/// All namespaces of these tests begin so, with the id of the process that made them behind it.
const PREFIX: &str = "cpx-";

impl Hosts {
    /// So many hosts. `None` where no network namespaces can be made (a container without the right to); said aloud. With
    /// CLOUDPAXOS_TESTS_COMPLETE set, as ./ci/acceptance does, that is an error.
    pub fn new(count: usize) -> Result<Option<Hosts>, HarnessError> {
        sweep();
        let hosts = Hosts { prefix: format!("{PREFIX}{}", std::process::id()), count };
        match hosts.wire() {
            Ok(()) => Ok(Some(hosts)),
            Err(error) if std::env::var_os("CLOUDPAXOS_TESTS_COMPLETE").is_some() => Err(error),
            Err(error) => {
                eprintln!("SKIPPED: no network of hosts can be made here: {error}");
                Ok(None)
            }
        }
    }

    fn wire(&self) -> Result<(), HarnessError> {
        let switch = self.switch();
        let mut script =
            format!("ip netns add {switch}\nip -n {switch} link add br0 type bridge\nip -n {switch} link set br0 up\n");
        for host in 0..self.count {
            let (name, address) = (self.name(host), self.address(host));
            script.push_str(&format!(
                "ip netns add {name}\nip -n {switch} link add v{host} type veth peer name eth0 netns {name}\n\
                 ip -n {switch} link set v{host} master br0 up\nip -n {name} address add {address}/24 dev eth0\n\
                 ip -n {name} link set eth0 up\nip -n {name} link set lo up\n"
            ));
        }
        // Before anything runs there it is known whether links can be cut.
        script.push_str(&format!("ip netns exec {switch} nft list ruleset\n"));
        said("making network namespaces", Command::new("sh").args(["-ec", &script]).output())
    }

    fn name(&self, host: Host) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    /// A host's address.
    pub fn address(&self, host: Host) -> String {
        format!("198.18.0.{}", host + 1)
    }

    /// A program and its arguments that run what follows on a host.
    pub fn wrapper(&self, host: Host) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.name(host)].map(OsString::from).to_vec()
    }

    /// Moves this thread, and what it starts from now on, to a host.
    pub fn enter(&self, host: Host) -> Result<(), HarnessError> {
        let path = Path::new("/run/netns").join(self.name(host));
        let what = || format!("entering {}", path.display());
        let namespace = File::open(&path).map_err(HarnessError::io(what()))?;
        let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        entered.map_err(|error| HarnessError::io(what())(error.into()))
    }

    /// From now on nothing of what the first host of a pair sends reaches the second one; all other links work.
    pub fn cut(&self, links: &[(Host, Host)]) -> Result<(), HarnessError> {
        for to in 0..self.count {
            let sources: Vec<String> =
                links.iter().filter(|(_, end)| *end == to).map(|(from, _)| self.address(*from)).collect();
            let drop = match sources.is_empty() {
                true => String::new(),
                false => format!("ip saddr {{ {} }} drop", sources.join(", ")),
            };
            // One transaction: what was cut before and still is passes nothing in between.
            let rules = format!(
                "table inet cut {{}}\ndelete table inet cut\n\
                 table inet cut {{\nchain input {{\ntype filter hook input priority 0\n{drop}\n}}\n}}\n"
            );
            self.filter(to, &rules)?;
        }
        Ok(())
    }

    fn filter(&self, host: Host, rules: &str) -> Result<(), HarnessError> {
        let what = "setting a packet filter";
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host), "nft", "-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(HarnessError::io(what))?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(rules.as_bytes()).map_err(HarnessError::io(what))?;
        }
        said(what, child.wait_with_output())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        (0..self.count).map(|host| self.name(host)).chain([self.switch()]).for_each(|name| delete(&name));
    }
}

fn delete(namespace: &str) {
    let command = Command::new("ip").args(["netns", "delete", namespace]).stderr(Stdio::null()).status();
    drop(command);
}

/// Deletes what runs that were killed have left.
fn sweep() {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            delete(name);
        }
    }
}

fn said(what: &str, output: std::io::Result<Output>) -> Result<(), HarnessError> {
    let output = output.map_err(HarnessError::io(what))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(HarnessError::Wrong {
            what: what.to_owned(),
            detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

//! One server process, killed with all its children when dropped.

use crate::HarnessError;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often an exit is looked for.
const POLL: Duration = Duration::from_millis(5);
/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 2000;

/// A running process, leader of its own process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; both output streams are appended to `log`.
    pub fn start(name: &str, program: &Path, arguments: &[OsString], log: &Path) -> Result<Process, HarnessError> {
        let what = || format!("starting {name} ({})", program.display());
        let output = OpenOptions::new().create(true).append(true).open(log).map_err(HarnessError::io(what()))?;
        let errors = output.try_clone().map_err(HarnessError::io(what()))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(HarnessError::io(what()))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process's id, which is its group's too.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the whole group. A group that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _gone = kill_process_group(pid, signal);
        }
    }

    /// Fails if the process ended without being told to.
    pub fn check_alive(&mut self) -> Result<(), HarnessError> {
        let status = self.child.try_wait().map_err(HarnessError::io(format!("waiting for {}", self.name)))?;
        match status {
            None => Ok(()),
            Some(status) => Err(HarnessError::Exited {
                name: self.name.clone(),
                status: status.to_string(),
                log: self.log.clone(),
                tail: tail(&self.log),
            }),
        }
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) -> Result<(), HarnessError> {
        self.signal(Signal::KILL);
        self.child.wait().map_err(HarnessError::io(format!("waiting for {}", self.name)))?;
        Ok(())
    }

    /// Asks it to stop (SIGTERM) and waits for the exit; an error if it takes longer than `limit`.
    pub fn stop(self, limit: Duration) -> Result<ExitStatus, HarnessError> {
        self.signal(Signal::TERM);
        self.wait_exit(limit).map(|(status, _)| status)
    }

    /// Waits until it ends: its status and the end of its output; an error if that takes longer than
    /// `limit`.
    pub fn wait_exit(mut self, limit: Duration) -> Result<(ExitStatus, String), HarnessError> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.child.try_wait().map_err(HarnessError::io(format!("waiting for {}", self.name)))?;
            if let Some(status) = status {
                return Ok((status, tail(&self.log)));
            }
            if Instant::now() >= deadline {
                let (what, logs) = (format!("the end of {}", self.name), self.log.clone());
                return Err(HarnessError::Timeout { what, seconds: limit.as_secs(), logs });
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _reaped = self.child.wait();
    }
}

fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
}

//! The harness leaves nothing behind.

use e2e::process::Process;
use std::path::Path;

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A shell with a child of its own, whose id it writes to a file.
fn shell(child: &Path, log: &Path) -> Process {
    let script = format!("sleep 1000 & echo $! > {}; wait", child.display());
    Process::start("shell", Path::new("/bin/sh"), &["-c".into(), script.into()], log).expect("a shell starts")
}

#[test]
fn dropping_a_process_kills_its_children() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("child");
    let process = shell(&file, &directory.path().join("log"));
    let child = loop {
        // The file exists before its content does.
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<u32>() {
            break pid;
        }
        std::thread::yield_now();
    };
    let shell = process.id();
    assert!(exists(shell) && exists(child));
    drop(process);
    assert!(!exists(shell), "the shell was reaped");
    // The orphan is reaped by init, in its own time; a zombie is dead, too.
    let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    while exists(child) && !state().contains(") Z ") {
        std::thread::yield_now();
    }
}

#[test]
fn a_process_that_ends_by_itself_is_noticed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let arguments = ["-c", "echo the reason >&2; exit 3"].map(Into::into);
    let log = directory.path().join("log");
    let mut process = Process::start("n1", Path::new("/bin/sh"), &arguments, &log).expect("a shell starts");
    let error = loop {
        if let Err(error) = process.check_alive() {
            break error.to_string();
        }
        std::thread::yield_now();
    };
    assert!(error.contains("n1") && error.contains("exit status: 3") && error.contains("the reason"), "{error}");
}

//! Style that a machine can judge: the size of files, and what deterministic code must not name.

use std::fs;
use std::path::{Path, PathBuf};

/// A longer file holds a second thing that wants a file of its own.
const LINES_MAX: usize = 600;

/// What makes two runs differ. (In `paxos`, `shardkv` and `shardmaster` clippy watches by itself: see
/// their clippy.toml. `gateway` and `node` hold both kinds of code, so their machines are read here.)
const NONDETERMINISTIC: [&str; 8] =
    ["HashMap", "HashSet", "RandomState", "Instant::now", "SystemTime", "tokio::", "rand::", "thread::sleep"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files with this extension below `directory`, without build output.
fn files(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the source tree is readable") {
        let path = entry.expect("the source tree is readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && (!name.starts_with('.') || name == ".ci") {
            files(&path, extension, found);
        } else if path.is_file() && path.extension().and_then(|e| e.to_str()).unwrap_or_default() == extension {
            found.push(path);
        }
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn no_file_is_too_long() {
    let mut sources = Vec::new();
    files(&root(), "rs", &mut sources);
    assert!(sources.len() > 50, "only {} source files found: the test looks in the wrong place", sources.len());
    let lines = |path: &PathBuf| text(path).lines().count();
    let long: Vec<_> = sources.iter().map(|path| (path, lines(path))).filter(|(_, lines)| *lines > LINES_MAX).collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines: {long:#?}");
}

#[test]
fn deterministic_crates_have_clippy_watch_their_clocks_and_maps() {
    for package in ["paxos", "shardkv", "shardmaster"] {
        let rules = text(&root().join(package).join("clippy.toml"));
        for forbidden in ["HashMap", "HashSet", "Instant::now", "SystemTime::now"] {
            assert!(rules.contains(forbidden), "{package}/clippy.toml does not disallow {forbidden}");
        }
    }
}

#[test]
fn the_machines_of_gateway_and_node_are_deterministic() {
    for package in ["gateway", "node"] {
        let machines = machines(&root().join(package).join("src"));
        for path in &machines {
            let text = text(path);
            // Tests may do what they like.
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
                let found = NONDETERMINISTIC.iter().find(|word| line.contains(*word));
                assert!(found.is_none(), "{}:{}: {found:?} in deterministic code", path.display(), number + 1);
            }
        }
    }
}

/// The sources of a crate that are compiled without any feature: those of `lib.rs`'s modules that no
/// `#[cfg(feature …)]` precedes.
fn machines(src: &Path) -> Vec<PathBuf> {
    let library = text(&src.join("lib.rs"));
    let mut found = Vec::new();
    let mut behind_feature = false;
    for line in library.lines().map(str::trim) {
        let declaration = line.strip_prefix("pub ").or(line.strip_prefix("pub(crate) ")).unwrap_or(line);
        if line.starts_with("#[cfg(") {
            behind_feature = true;
        } else if let Some(name) = declaration.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            if !behind_feature {
                let (file, directory) = (src.join(format!("{name}.rs")), src.join(name));
                found.extend(Some(file).filter(|file| file.is_file()));
                if directory.is_dir() {
                    files(&directory, "rs", &mut found);
                }
            }
            behind_feature = false;
        } else if !line.is_empty() && !line.starts_with("#[") && !line.starts_with("//") {
            behind_feature = false;
        }
    }
    found.retain(|path| !path.ends_with("tests.rs") && !path.components().any(|part| part.as_os_str() == "tests"));
    found
}

#[test]
fn scripts_stop_at_the_first_failure() {
    for directory in ["ci", ".ci"] {
        for entry in fs::read_dir(root().join(directory)).expect("the scripts are readable") {
            let path = entry.expect("the scripts are readable").path();
            let is_bash = path.is_file() && text(&path).starts_with("#!/usr/bin/env bash");
            assert!(!is_bash || text(&path).contains("\nset -euo pipefail\n"), "{}", path.display());
        }
    }
}

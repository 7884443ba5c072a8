//! A node starts on its own data only; whatever else lies there, it says what to do and ends.

use e2e::cluster::{Cluster, Number, Start};
use e2e::system::{Layout, System};
use std::ffi::OsStr;
use std::fs;

const N3: Number = 2;

async fn cluster(directory: &tempfile::TempDir) -> Cluster {
    Cluster::start(System::Cloudpaxos, Layout::AllRoles, directory.path()).await.expect("a cluster starts")
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn with(options: &[(&'static str, &OsStr)]) -> Start {
    let options = options.iter().map(|&(name, value)| (name, value.to_owned())).collect();
    Start { options, ..Start::default() }
}

/// Starts n3 so and expects it to end by itself, with one line that holds all of `words`.
fn is_refused(cluster: &mut Cluster, start: &Start, words: &[&str]) {
    // What it wrote before is not at issue.
    fs::write(cluster.log(N3), "").expect("the log can be emptied");
    cluster.launch_as(N3, start).expect("a process starts");
    let (status, said) = cluster.wait_exit(N3).expect("it ends by itself");
    assert!(!status.success(), "{status}: {said}");
    let last = said.trim_end().lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "the last line should say {word:?}: {last:?}\nall: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Ends n3 and gives back where its data lies.
fn take_down(cluster: &mut Cluster) -> std::path::PathBuf {
    cluster.kill(N3).expect("n3 is killed");
    cluster.member(N3).data.clone()
}

#[tokio::test]
async fn an_empty_directory_under_a_known_name_is_refused_and_the_old_one_serves_again() {
    let directory = directory();
    let mut cluster = cluster(&directory).await;
    let data = take_down(&mut cluster);
    let aside = data.with_extension("aside");
    fs::rename(&data, &aside).expect("the data is set aside");
    is_refused(&mut cluster, &Start::default(), &["n3", "data"]);
    // Refused once is refused for ever: what the first attempt left behind opens no door.
    is_refused(&mut cluster, &Start::default(), &["n3", "data"]);
    fs::remove_dir_all(&data).expect("what the attempts left goes away");
    fs::rename(&aside, &data).expect("the data comes back");
    cluster.launch(N3).expect("n3 starts");
    cluster.wait_ready().await.expect("n3 serves again");
}

#[tokio::test]
async fn a_lost_log_is_no_empty_log() {
    let directory = directory();
    let mut cluster = cluster(&directory).await;
    let data = take_down(&mut cluster);
    let (log, aside) = (data.join("log"), data.with_extension("aside"));
    fs::rename(&log, &aside).expect("the log is set aside");
    is_refused(&mut cluster, &Start::default(), &["log", "is gone", &log.display().to_string()]);
    // What the attempt may have made in its place opens no door either.
    is_refused(&mut cluster, &Start::default(), &["log", "is gone"]);
    fs::remove_dir_all(&log).expect("what the attempts left goes away");
    fs::rename(&aside, &log).expect("the log comes back");
    cluster.launch(N3).expect("n3 starts");
    cluster.wait_ready().await.expect("n3 serves again");
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_refused() {
    let directory = directory();
    let mut cluster = cluster(&directory).await;
    let data = take_down(&mut cluster);
    let start = with(&[("--cluster-token", "another".as_ref())]);
    is_refused(&mut cluster, &start, &[&data.display().to_string(), "another"]);
}

#[tokio::test]
async fn a_directory_of_another_node_is_refused() {
    let directory = directory();
    let mut cluster = cluster(&directory).await;
    let data = take_down(&mut cluster);
    let start = with(&[("--name", "n2".as_ref())]);
    is_refused(&mut cluster, &start, &[&data.display().to_string(), "n2", "n3"]);
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let directory = directory();
    let mut cluster = cluster(&directory).await;
    take_down(&mut cluster);
    let used = cluster.member(0).data.clone();
    let start = with(&[("--data-dir", used.as_ref()), ("--name", "n1".as_ref())]);
    is_refused(&mut cluster, &start, &[&used.display().to_string()]);
}

#[tokio::test]
async fn a_directory_with_something_else_in_it_is_refused() {
    let directory = directory();
    let mut cluster = cluster(&directory).await;
    let data = take_down(&mut cluster);
    fs::remove_dir_all(&data).expect("the data goes away");
    fs::create_dir(&data).expect("a directory");
    fs::write(data.join("thesis.tex"), "years of work").expect("a file");
    is_refused(&mut cluster, &Start::default(), &[&data.display().to_string()]);
    assert_eq!(fs::read_to_string(data.join("thesis.tex")).expect("it is still there"), "years of work");
}

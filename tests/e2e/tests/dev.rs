//! The embedded cluster: its data survives its end, however it ends, and it serves again at once. Its nodes
//! find free ports at every start, so their addresses in the shard map are always those of the last time.

use bytes::Bytes;
use e2e::client::{channel, kv};
use e2e::process::Process;
use e2e::system::System;
use proto::admin::StatusRequest;
use proto::admin::admin_client::AdminClient;
use proto::etcdserverpb as pb;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

/// In which it serves; a second is usual.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Each start elects leaders anew, on any of the nodes.
const STARTS: u8 = 6;
const KEY: Bytes = Bytes::from_static(b"dev/key");

/// Starts it, and waits for the address that it prints.
async fn start(directory: &Path, number: u8) -> (Process, String) {
    let log = directory.join(format!("{number}.log"));
    let words = ["dev", "--listen", "127.0.0.1:0", "--data-dir"].map(OsString::from);
    let arguments: Vec<OsString> = words.into_iter().chain([directory.join("data").into()]).collect();
    let binary = System::Cloudpaxos.binary().expect("the binary is built");
    let mut process = Process::start("dev", &binary, &arguments, &log).expect("it starts");
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let address =
            said.lines().next().and_then(|line| line.split_whitespace().find(|word| word.contains("127.0.0.1:")));
        if let Some(address) = address.filter(|_| said.contains('\n')) {
            return (process, format!("http://{address}"));
        }
        process.check_alive().expect("it runs");
        assert!(Instant::now() < deadline, "no address within {READY_LIMIT:?}: {said}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn data_survives_and_is_served_at_once_whatever_leads_after_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut last = None;
    for number in 0..STARTS {
        let (process, endpoint) = start(directory.path(), number).await;
        let mut client = kv(channel(&endpoint));
        let mut read = tonic::Request::new(pb::RangeRequest { key: KEY, ..Default::default() });
        read.set_timeout(READY_LIMIT);
        let answer = client.range(read).await.expect("it serves within its time").into_inner();
        assert_eq!(answer.kvs.first().map(|pair| pair.value.clone()), last, "start {number}");
        let value = Bytes::from(vec![number]);
        let put = pb::PutRequest { key: KEY, value: value.clone(), ..Default::default() };
        let revision = client.put(put).await.expect("it takes a write").into_inner().header.expect("a header").revision;
        // What an operator asks next has seen it: reports were of up to 200 ms ago, in which nobody led.
        let status =
            AdminClient::new(channel(&endpoint)).status(StatusRequest {}).await.expect("a status").into_inner();
        let handed_out = status.sequencer.as_ref().map(|sequencer| sequencer.handed_out);
        assert!(handed_out >= Some(revision as u64), "start {number}: {revision} was given, {status:?}");
        last = Some(value);
        if number % 2 == 0 {
            process.kill().expect("kill -9");
        } else {
            let status = process.stop(READY_LIMIT).expect("it ends when asked");
            assert!(status.success(), "{status}");
        }
    }
}

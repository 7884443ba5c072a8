//! What many groups cost where nobody asks for anything.

use crate::HarnessError;
use crate::cluster::{Cluster, Start};
use crate::system::{Layout, System};
use std::path::Path;
use std::time::Duration;

/// Leaders gather, logs grow quiet and caches are filled within this.
const SETTLE: Duration = Duration::from_secs(40);
/// Of a process's times in `/proc` (`sysconf(_SC_CLK_TCK)` on Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// Each node's share of one core, over `length`, in a cluster of so many data groups.
pub async fn run(groups: u64, length: Duration, parent: &Path) -> Result<Vec<f64>, HarnessError> {
    let how = |_: &_| Start { options: vec![("--data-groups", groups.to_string().into())], ..Start::default() };
    let mut cluster = Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, parent, how).await?;
    tokio::time::sleep(SETTLE).await;
    let before = ticks(&cluster)?;
    tokio::time::sleep(length).await;
    cluster.check_alive()?;
    let shares = ticks(&cluster)?.into_iter().zip(before).map(|(after, before)| (after - before) as f64);
    Ok(shares.map(|ticks| ticks / TICKS_PER_SECOND / length.as_secs_f64()).collect())
}

/// Processor time that each node has taken.
fn ticks(cluster: &Cluster) -> Result<Vec<u64>, HarnessError> {
    let one = |process: u32| {
        let path = format!("/proc/{process}/stat");
        let text = std::fs::read_to_string(&path).map_err(HarnessError::io(format!("reading {path}")))?;
        // The name, in brackets, may hold anything; user and system time are fields 14 and 15.
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        Ok(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
    };
    cluster.process_ids().into_iter().map(one).collect()
}

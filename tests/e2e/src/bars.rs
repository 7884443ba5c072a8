//! What the cluster is judged by, and what a measurement misses of it.

use crate::balancing::Balanced;
use crate::failover::Outages;
use crate::moving::Moving;
use crate::partition::Partitions;
use crate::phase::Phase;
use std::time::Duration;

/// Writes may be impossible for so long when a leader is lost, in any partition that leaves a majority.
const OUTAGE_MAX: Duration = Duration::from_secs(2);
/// A shard that moves answers again before that, under half the load that the cluster can bear. Time in which the disk
/// finishes nothing is not the move's, and not counted.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// And before that whatever the disk does, to which the move adds its own work.
const WHOLE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Throughput while a shard moves under half the load that the cluster can bear, compared with before.
const RATE_MIN: f64 = 0.6;
/// A hot range is spread within this.
const SPREAD_MAX: Duration = Duration::from_secs(60);
/// Of one core, what each node takes where nobody asks for anything.
const IDLE_MAX: f64 = 0.05;

fn missed(bad: bool, what: String) -> Option<String> {
    bad.then_some(what)
}

/// Of fail-over.
pub fn failover(outages: &Outages) -> Vec<String> {
    let longest = outages.longest();
    missed(longest >= OUTAGE_MAX, format!("writes were impossible for {longest:.0?}")).into_iter().collect()
}

/// Of partitions; `None` where hosts cannot be cut off here.
pub fn partitions(seen: Option<&Partitions>) -> Vec<String> {
    let Some(seen) = seen else { return vec!["nothing was measured: network namespaces need root".to_owned()] };
    let long = seen.seen.iter().filter(|seen| seen.cut >= OUTAGE_MAX);
    long.map(|seen| format!("{:?}: no write was answered for {:.0?}", seen.shape, seen.cut)).collect()
}

/// Of moves.
pub fn moves(seen: &Moving) -> Vec<String> {
    let failed =
        |phase: &Phase| missed(phase.failed > 0, format!("{} puts failed while the shard moved", phase.failed));
    let slow = |phase: &Phase, before: &Phase| {
        let share = phase.rate() / before.rate();
        missed(share < RATE_MIN, format!("the rate fell to {:.0} % of that before", share * 100.0))
    };
    let pause = |phase: &Phase| {
        let ((own, with_disk), whole) = (phase.own_pause(), phase.pause());
        missed(
            own >= PAUSE_MAX || whole >= WHOLE_PAUSE_MAX,
            format!(
                "no put to the shard was answered for {own:.0?} while the disk worked ({with_disk:.0?} in all), and for \
                 {whole:.0?} whatever the disk did"
            ),
        )
    };
    let halves = seen.moves.iter().flat_map(|phase| [failed(phase), slow(phase, &seen.half), pause(phase)]);
    // At saturation a move takes its share from the writers: the bar is about half the load.
    halves.chain([failed(&seen.saturated_move)]).flatten().collect()
}

/// Of a hot range.
pub fn balance(seen: &Balanced) -> Vec<String> {
    let late = seen.after.is_none_or(|after| after >= SPREAD_MAX);
    let late = missed(late, format!("it took {:?} to spread the load", seen.after));
    let failed = missed(seen.failed > 0, format!("{} requests failed", seen.failed));
    late.into_iter().chain(failed).collect()
}

/// Of idle groups: each node's share of a core.
pub fn idle(shares: &[f64]) -> Vec<String> {
    let busy = shares.iter().filter(|share| **share >= IDLE_MAX);
    busy.map(|share| format!("a node took {:.2} % of a core", share * 100.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_bar_that_is_missed_is_named() {
        let outages = |millis| Outages(vec![Duration::from_millis(500), Duration::from_millis(millis)]);
        assert_eq!(failover(&outages(1_999)), Vec::<String>::new());
        assert_eq!(failover(&outages(2_000)), ["writes were impossible for 2s"]);
        assert_eq!(partitions(None).len(), 1);
        assert_eq!(idle(&[0.049, 0.05]), ["a node took 5.00 % of a core"]);
        let seen = |after, failed| Balanced {
            after,
            looks: Vec::new(),
            answered: 9,
            failed,
            shards: 9,
            longest: Duration::ZERO,
        };
        assert_eq!(balance(&seen(Some(Duration::from_secs(59)), 0)), Vec::<String>::new());
        assert_eq!(balance(&seen(None, 1)).len(), 2);
        let phase = |puts, failed, millis| Phase {
            length: Duration::from_secs(1),
            puts,
            failed,
            latencies: vec![Duration::from_millis(millis)],
            ..Phase::default()
        };
        let moving = |worst: Phase| Moving {
            saturated: phase(1_000, 0, 1),
            half: phase(500, 0, 1),
            moves: vec![phase(500, 0, 1), worst],
            saturated_move: phase(600, 0, 1),
        };
        assert_eq!(moves(&moving(phase(300, 0, 1))), Vec::<String>::new());
        assert_eq!(moves(&moving(phase(299, 1, 1))).len(), 2);
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let paused = |millis, standstill: Option<(u64, u64)>| Phase {
            answers: vec![at(0), at(millis)],
            standstills: standstill.map(|(from, to)| vec![(at(from), at(to))]),
            ..phase(500, 0, 1)
        };
        let missed = |millis, standstill| moves(&moving(paused(millis, standstill))).len();
        assert_eq!(missed(250, None), 1, "nobody could see the disk");
        assert_eq!(missed(350, Some((30, 150))), 1, "230 ms are ours");
        assert_eq!(missed(350, Some((30, 190))), 0);
        assert_eq!(missed(350, Some((400, 900))), 1, "it stood still afterwards");
        assert_eq!(missed(1_000, Some((0, 990))), 1, "too long for anything");
    }
}

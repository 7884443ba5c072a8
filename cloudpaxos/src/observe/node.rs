//! A node's figures: replicas, sequencer, log, store, queues.

use super::page::{Labels, Page};
use ::node::core::GroupStatus;
use ::node::runtime::NodeFigures;
use paxos::GroupId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::collections::BTreeMap;
use std::fmt;

/// As of one moment.
#[derive(Debug)]
pub(super) struct NodeCollector(pub(super) NodeFigures);

fn one(value: impl Into<f64>) -> [(Labels, f64); 1] {
    [(Vec::new(), value.into())]
}

fn count(value: u64) -> [(Labels, f64); 1] {
    one(value as f64)
}

fn group_label(group: &GroupStatus) -> Labels {
    vec![("group", group.group.0.to_string())]
}

impl Collector for NodeCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.replicas(&mut page)?;
        self.leaders(&mut page)?;
        self.cluster(&mut page)?;
        self.queues(&mut page)?;
        self.log(&mut page)?;
        self.store(&mut page)
    }
}

impl NodeCollector {
    fn each(&self, value: impl Fn(&GroupStatus) -> f64) -> impl Iterator<Item = (Labels, f64)> {
        self.0.core.groups.iter().map(move |group| (group_label(group), value(group)))
    }

    /// What every replica has.
    fn replicas(&self, page: &mut Page<'_>) -> fmt::Result {
        let flag = |flag: bool| f64::from(u8::from(flag));
        page.gauge(
            "group_leader_node",
            "The id of the node that leads the group, as this replica knows; 0 for none",
            self.each(|group| group.leader.node.0 as f64),
        )?;
        page.gauge("group_leads", "1 where this replica leads and serves", self.each(|group| flag(group.serves)))?;
        page.gauge("group_lease_held", "1 where it holds the leader's lease", self.each(|group| flag(group.leased)))?;
        page.gauge(
            "group_suspect",
            "1 where the replica cannot prove its log and waits for repair",
            self.each(|group| flag(group.suspect)),
        )?;
        page.gauge(
            "group_fenced",
            "1 where the replica's state is not what a majority has, until the leader's image has taken its place",
            self.each(|group| flag(group.fenced)),
        )?;
        page.gauge(
            "group_differing_replicas",
            "How many replicas of the group have another state than this one, at the newest slot that was compared",
            self.each(|group| group.differing.len() as f64),
        )?;
        page.gauge("group_ballot_round", "The promised ballot's round", self.each(|g| g.promised.round as f64))?;
        page.gauge("group_length_slot", "The last slot of its log", self.each(|group| group.length.0 as f64))?;
        page.gauge("group_decided_slot", "The last decided slot", self.each(|group| group.decided.0 as f64))?;
        page.gauge("group_applied_slot", "The last applied slot", self.each(|group| group.applied.0 as f64))?;
        page.gauge(
            "group_first_kept_slot",
            "The first slot kept for peers that lag",
            self.each(|group| group.first_kept.0 as f64),
        )?;
        page.gauge(
            "group_apply_lag_bytes",
            "Bytes decided and not yet applied",
            self.each(|group| group.applying_bytes as f64),
        )?;
        page.counter(
            "group_leader_changes",
            "Times that another node became leader, as this replica saw it",
            self.each(|group| group.tally.leader_changes as f64),
        )?;
        page.counter(
            "group_fences",
            "Times that this replica's state was found not to be what a majority has",
            self.each(|group| group.tally.fences as f64),
        )?;
        page.counter(
            "group_applied_entries",
            "Log entries applied",
            self.each(|group| group.tally.applied_entries as f64),
        )?;
        page.counter("group_applied_bytes", "Bytes applied", self.each(|group| group.tally.applied_bytes as f64))
    }

    /// What leaders have.
    fn leaders(&self, page: &mut Page<'_>) -> fmt::Result {
        let groups = &self.0.core.groups;
        let lags = groups.iter().flat_map(|group| {
            group.matched.iter().filter_map(move |(peer, matched)| {
                let lag = group.length.0.saturating_sub((*matched)?.0);
                Some((vec![("group", group.group.0.to_string()), ("peer", peer.0.to_string())], lag as f64))
            })
        });
        page.gauge("group_peer_lag_slots", "How far a peer's log is behind its leader's", lags)?;
        page.gauge("group_waiting_writes", "Writes waiting for a revision", self.each(|group| group.waiting.0 as f64))?;
        page.gauge(
            "group_waiting_writes_bytes",
            "Bytes of writes waiting for a revision",
            self.each(|group| group.waiting.1 as f64),
        )?;
        page.gauge(
            "group_waiting_reads",
            "Reads waiting for a write before them",
            self.each(|group| group.reads_waiting as f64),
        )?;
        page.counter(
            "group_writes_refused",
            "Writes refused because a limit was reached or the disk is full",
            self.each(|group| group.tally.refused as f64),
        )?;
        page.counter(
            "group_terms_led",
            "Times that this replica became leader",
            self.each(|group| group.tally.terms_led as f64),
        )?;
        let each = || groups.iter().map(|group| (group_label(group), &group.tally));
        page.sizes(
            "group_batch_commands",
            "Commands per log entry proposed here",
            0..=10,
            each().map(|(label, tally)| (label, &tally.batch_commands)),
        )?;
        page.sizes(
            "group_batch_bytes",
            "Bytes per log entry proposed here",
            8..=24,
            each().map(|(label, tally)| (label, &tally.batch_bytes)),
        )?;
        page.durations(
            "group_commit_duration_seconds",
            "From an entry's proposal until a quorum had it and it was applied here",
            each().map(|(label, tally)| (label, &tally.commit_micros)),
        )?;
        page.durations(
            "group_stamp_duration_seconds",
            "From a batch's request for revisions to their arrival",
            each().map(|(label, tally)| (label, &tally.stamp_micros)),
        )
    }

    /// What concerns the whole cluster, as this node knows it.
    fn cluster(&self, page: &mut Page<'_>) -> fmt::Result {
        let core = &self.0.core;
        // Elsewhere nodes are numbers; here is whose number it is.
        page.gauge("node_info", "This node's id, as a label", [(vec![("id", core.node.0.to_string())], 1.0)])?;
        page.gauge("known_revision", "The largest revision known here", count(core.known.0))?;
        page.gauge(
            "sequencer_revision",
            "The newest revision handed out; only on the sequencer's node",
            core.sequencer.map(|revision| (Vec::new(), revision.0 as f64)),
        )?;
        page.gauge(
            "sequencer_reserved_revision",
            "Revisions up to here are reserved in the shardmaster's log",
            count(core.reserved_up_to.0),
        )?;
        page.gauge("shard_map_version", "The newest shard map known here", count(core.map.version))?;
        let shards = core.map.groups.iter().map(|group| {
            let shards = core.map.shards.iter().filter(|shard| shard.group == group.id).count();
            (vec![("group", group.id.0.to_string())], shards as f64)
        });
        page.gauge("group_shards", "Shards that the shard map gives to a group", shards)?;
        self.changes(page)?;
        let reaches = core
            .reaches
            .iter()
            .map(|(peer, reached)| (vec![("peer", peer.0.to_string())], f64::from(u8::from(*reached))));
        page.gauge("peer_reachable", "1 where a heartbeat's round trip to a node succeeded lately", reaches)
    }

    /// What changes in the map, and what the balancer goes by.
    fn changes(&self, page: &mut Page<'_>) -> fmt::Result {
        let core = &self.0.core;
        let map = &core.map;
        page.gauge("shards", "Shards of the shard map", count(map.shards.len() as u64))?;
        let kinds = [("move", map.moves.len()), ("split_or_merge", map.reshapes.len())];
        page.gauge(
            "shard_changes_under_way",
            "Shards that move, and splits and merges that are not carried out yet",
            kinds.map(|(kind, under_way)| (vec![("kind", kind.to_owned())], under_way as f64)),
        )?;
        let planned = map.moves.iter().map(|planned| planned.id).chain(map.reshapes.iter().map(|planned| planned.id));
        page.gauge(
            "shard_change_oldest",
            "The number of the oldest change of shards under way; 0 where there is none",
            count(planned.min().map_or(0, |id| id.0)),
        )?;
        page.counter("shard_changes", "Moves, splits and merges planned so far", count(map.last_move.0))?;
        page.gauge("balancer_paused", "1 while the balancer is paused", one(u8::from(map.balance.paused)))?;
        let changing = map.all_groups().map(|group| {
            let changing = !group.next.is_empty() || !group.sealed.is_empty();
            (vec![("group", group.id.0.to_string())], f64::from(u8::from(changing)))
        });
        page.gauge("group_members_change", "1 while a group is to have other members", changing)?;
        page.gauge(
            "shard_move_copied_bytes",
            "Bytes that have arrived of shards on their way to groups led here",
            count(core.moves.iter().map(|arriving| arriving.bytes).sum()),
        )?;
        self.loads(page)
    }

    /// How busy the groups are that are served here, by their shards. A label for each shard would be too many.
    fn loads(&self, page: &mut Page<'_>) -> fmt::Result {
        let core = &self.0.core;
        let mut loads: BTreeMap<GroupId, [u64; 4]> = BTreeMap::new();
        for load in &core.loads {
            let Some(shard) = core.map.shard(load.shard) else { continue };
            let [reads, writes, busiest, bytes] = loads.entry(shard.group).or_default();
            (*reads, *writes) = (*reads + load.reads, *writes + load.writes);
            *busiest = (*busiest).max(load.reads + load.writes);
            *bytes += load.stored.map_or(0, |stored| stored.bytes);
        }
        let each = |value: fn(&[u64; 4]) -> u64| {
            loads.iter().map(move |(group, load)| (vec![("group", group.0.to_string())], value(load) as f64))
        };
        page.gauge("group_reads_per_second", "Reads of its shards here, lately", each(|load| load[0]))?;
        page.gauge("group_writes_per_second", "Writes to its shards here, lately", each(|load| load[1]))?;
        page.gauge("group_busiest_shard_per_second", "Requests to its busiest shard here", each(|load| load[2]))?;
        page.gauge("group_stored_bytes", "Bytes that its shards hold, about; on its leader", each(|load| load[3]))
    }

    fn queues(&self, page: &mut Page<'_>) -> fmt::Result {
        let peers = &self.0.peers;
        let each = |value: fn(&::node::runtime::PeerFigures) -> f64| {
            peers.iter().map(move |peer| (vec![("peer", peer.node.0.to_string())], value(peer)))
        };
        page.gauge("peer_connected", "1 where the stream to a node is up", each(|p| f64::from(u8::from(p.connected))))?;
        page.gauge("peer_queued_bytes", "Bytes waiting to be sent to a node", each(|peer| peer.queued_bytes as f64))?;
        page.counter(
            "peer_dropped_messages",
            "Messages to a node that its queue had no room for",
            each(|peer| peer.dropped as f64),
        )?;
        page.counter("peer_streams", "Streams to a node that came about", each(|peer| peer.streams as f64))?;
        let mailbox = &self.0.mailbox;
        let kinds = [("requests", mailbox.requests), ("messages", mailbox.messages)];
        page.gauge(
            "mailbox_waiting",
            "Requests and peers' messages waiting for the node's next turn",
            kinds.map(|(kind, waiting)| (vec![("kind", kind.to_owned())], waiting as f64)),
        )?;
        page.counter("mailbox_refused", "Requests and messages refused at the mailbox", count(mailbox.refused))?;
        page.gauge("range_scans", "Reads of ranges under way", count(self.0.core.scans as u64))
    }

    fn log(&self, page: &mut Page<'_>) -> fmt::Result {
        let (wal, syncs) = (&self.0.wal, &self.0.syncs);
        page.durations(
            "wal_sync_duration_seconds",
            "One group commit: write and fdatasync",
            [(Vec::new(), &syncs.micros)],
        )?;
        page.sizes("wal_records_per_sync", "Records of one group commit", 0..=12, [(Vec::new(), &syncs.records)])?;
        page.counter("wal_payload_bytes", "Bytes of records logged", count(wal.payload_bytes))?;
        page.gauge("wal_queued_bytes", "Bytes waiting for the log's thread", count(wal.queued_bytes))?;
        page.gauge("wal_live_bytes", "Size of the segments in use", count(wal.live_bytes))?;
        let segments = wal.head_segment + 1 - wal.first_segment;
        page.gauge("wal_segments", "Segments in use", count(segments))?;
        page.gauge("disk_full", "1 while writes are refused for want of room", one(u8::from(self.0.core.no_space)))
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        let (store, cache) = (&self.0.store, &self.0.cache);
        page.gauge("rocksdb_files_bytes", "Bytes of live files", count(store.files_bytes))?;
        page.gauge("rocksdb_memtables_bytes", "Bytes of memtables", count(store.memtables_bytes))?;
        page.gauge("rocksdb_level_0_files", "Files of level 0", count(store.level_0_files))?;
        page.gauge("rocksdb_estimated_rows", "Rows, history included, about", count(store.rows))?;
        page.gauge(
            "rocksdb_compaction_pending_bytes",
            "Bytes that compactions still have to rewrite, about",
            count(store.compaction_pending_bytes),
        )?;
        page.gauge("rocksdb_compactions_running", "Compactions under way", count(store.compactions))?;
        page.gauge("rocksdb_flushes_running", "Flushes under way", count(store.flushes))?;
        page.gauge(
            "rocksdb_delayed_write_bytes_per_second",
            "What writes are slowed down to; 0 where they are not",
            count(store.delayed_write_bytes_per_second),
        )?;
        page.gauge("rocksdb_writes_stopped", "1 while writes wait for flushes", one(u8::from(store.stopped)))?;
        page.gauge("rocksdb_block_cache_bytes", "Bytes of blocks cached", count(store.block_cache_bytes))?;
        page.counter("rocksdb_background_errors", "Failed flushes and compactions", count(store.background_errors))?;
        let lookups = [("hit", cache.hits), ("miss", cache.misses)];
        page.counter(
            "row_cache_lookups",
            "Lookups of single rows, by whether the cache had them",
            lookups.map(|(result, lookups)| (vec![("result", result.to_owned())], lookups as f64)),
        )?;
        page.gauge("row_cache_bytes", "Bytes of rows cached", count(cache.bytes as u64))
    }
}

//! The metadata group: nodes, groups, the shard map, the sequencer's reservation, compactions.
//!
//! All of it is a small state machine over the group's log ([`state`]); what must be fast, handing
//! out revisions, happens in the leader's memory within what the log has reserved ([`sequencer`]).
//!
//! Invariants:
//! - `reserved_up_to` and the compaction floor never fall; the map's version rises with each change.
//! - No clock, no randomness, no I/O but the store that the state machine writes itself to.

pub mod balance;
mod group;
mod groups;
pub mod load;
mod moves;
mod pins;
mod placement;
mod reshapes;
mod sequencer;
mod state;

pub use group::MasterGroup;
pub use groups::REPLICAS;
pub use placement::{replacements, spread};
pub use reshapes::SPLIT_KEY_BYTES_MAX;
pub use sequencer::{Sequencer, WINDOW};
pub use state::{MasterCommand, MasterOutcome, MasterState};

/// A first map: `boundaries` cut the keyspace into one shard more than there are boundaries, dealt
/// out over the groups in turn.
pub fn initial_shards(boundaries: &[bytes::Bytes], groups: &[paxos::GroupId]) -> Vec<shardkv::map::ShardInfo> {
    use shardkv::types::{Bounds, Epoch, MoveId, ShardId};
    let starts = std::iter::once(bytes::Bytes::new()).chain(boundaries.iter().cloned());
    let ends = boundaries.iter().cloned().map(Some).chain(std::iter::once(None));
    let owners = groups.iter().copied().cycle();
    let shards = starts.zip(ends).zip(owners).enumerate();
    shards
        .map(|(index, ((start, end), group))| shardkv::map::ShardInfo {
            id: ShardId(index as u64 + 1),
            bounds: Bounds { start, end },
            group,
            epoch: Epoch(1),
            by: MoveId(0),
        })
        .collect()
}

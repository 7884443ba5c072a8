//! What a call asks: the request to one group.

use crate::call::Call;
use crate::core::Core;
use crate::routing::GroupShare;
use crate::session::Tag;
use paxos::GroupId;
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::{Op, SortTarget};
use shardkv::request::{ReadMode, RequestBody};
use shardkv::types::Revision;

/// Builds the request of one part.
pub(super) struct Question<'a> {
    pub(super) call: &'a Call,
    pub(super) tag: Option<Tag>,
    /// The revision of a read over several groups.
    pub(super) revision: Option<Revision>,
    /// Several groups answer, and the answers are merged here.
    pub(super) is_merged: bool,
    pub(super) logged: bool,
}

impl Question<'_> {
    pub(super) fn body(self, core: &mut Core, share: &GroupShare) -> RequestBody {
        match self.call {
            Call::Op { op, serializable } => match (self.tag, share.shards.split_first()) {
                (Some(tag), Some(((shard, epoch), also))) => RequestBody::Write {
                    shard: *shard,
                    epoch: *epoch,
                    also: also.to_vec(),
                    session: core.sessions.stamp(tag),
                    op: op.clone(),
                },
                _ => {
                    let mode = self.mode(op, *serializable);
                    let mut op = op.clone();
                    if let Op::Range(range) = &mut op
                        && self.is_merged
                        && range.sort.target == SortTarget::Value
                    {
                        // Merging by value needs the values.
                        range.keys_only = false;
                    }
                    RequestBody::Read { shards: share.shards.clone(), op, mode }
                }
            },
            Call::Compact { revision, .. } if self.logged => RequestBody::Compact { revision: *revision },
            Call::Compact { revision, .. } => RequestBody::LogCompaction { revision: *revision },
            Call::Middle { .. } => match share.shards.first() {
                Some(&(shard, epoch)) => RequestBody::Middle { shard, epoch },
                None => RequestBody::CurrentRevision,
            },
            call => call.master_request().unwrap_or(RequestBody::CurrentRevision),
        }
    }

    fn mode(&self, op: &Op, serializable: bool) -> ReadMode {
        match (self.revision, op) {
            _ if serializable => ReadMode::Serializable,
            // The header takes the sequencer's number, the pairs are read where the client said.
            (Some(_), Op::Range(range)) if range.revision > Revision(0) => ReadMode::At(range.revision),
            (Some(revision), _) => ReadMode::At(revision),
            (None, _) => ReadMode::Linearizable,
        }
    }
}

/// A compaction is first logged by the shardmaster, then carried out by every group.
pub(super) fn compaction_shares(logged: bool, core: &Core) -> Vec<GroupShare> {
    let share = |group: GroupId| GroupShare { group, shards: Vec::new() };
    match core.router.map() {
        Some(map) if logged => map.groups.iter().map(|group| share(group.id)).collect(),
        _ => vec![share(SHARDMASTER_GROUP)],
    }
}

/// The newest revision that any range in an operation asks for; 0 where none does.
pub(super) fn newest_named(op: &Op) -> Revision {
    match op {
        Op::Range(range) => range.revision,
        Op::Put(_) | Op::Delete(_) => Revision(0),
        Op::Txn(txn) => txn.success.iter().chain(&txn.failure).map(newest_named).max().unwrap_or(Revision(0)),
    }
}

pub(super) fn over_groups(shares: &[GroupShare]) -> String {
    let groups: Vec<String> = shares.iter().map(|share| share.group.to_string()).collect();
    let groups = groups.join(", ");
    format!(
        "cloudpaxos: the keys of this transaction or deletion lie in several replica groups ({groups}); \
         only reads of one range may span groups, keep the keys in one shard or split the request"
    )
}

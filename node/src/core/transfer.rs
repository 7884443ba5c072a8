//! Images of state machines on their way to replicas that lag behind the log.
//!
//! One piece is in flight per transfer; it is sent again until acknowledged. The state machines'
//! host reads and installs the pieces ([`SnapshotJob`], [`SnapshotEvent`]); here is who sends what
//! to whom.

use super::{Core, Machine};
use crate::wire::NodeMessage;
use bytes::Bytes;
use paxos::{GroupId, NodeId, Slot, Time};
use shardkv::store::Store;
use std::collections::BTreeMap;

/// Bytes of one piece, about.
pub const PIECE_BYTES: usize = 1 << 20;
/// An unacknowledged piece is sent again after this.
const RESEND_MICROS: u64 = 500_000;
/// A transfer without progress for this long is given up.
const GIVE_UP_MICROS: u64 = 20_000_000;

/// Work for the host of the state machines, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotJob {
    /// Open an image of the group's state, or go on reading it, and report the next piece.
    Read {
        /// The group.
        group: GroupId,
        /// The transfer; sequence 0 opens the image.
        transfer: u64,
        /// The piece wanted.
        sequence: u64,
    },
    /// Forget an image.
    Close {
        /// The transfer.
        transfer: u64,
    },
    /// Store a piece; the last one makes the image the state.
    Install {
        /// The group.
        group: GroupId,
        /// The transfer; sequence 0 begins anew.
        transfer: u64,
        /// The piece's number.
        sequence: u64,
        /// The piece.
        piece: Bytes,
        /// Whether it is the last.
        last: bool,
    },
}

/// What a [`SnapshotJob`] led to.
#[derive(Clone, Debug)]
pub enum SnapshotEvent {
    /// A piece was read; empty and last behind the end, `None` if the image is gone.
    Read {
        /// The transfer.
        transfer: u64,
        /// The piece's number.
        sequence: u64,
        /// The image's slot.
        slot: Slot,
        /// The piece and whether it is the last.
        piece: Option<(Bytes, bool)>,
    },
    /// A piece was stored.
    Stored {
        /// The group.
        group: GroupId,
        /// The transfer.
        transfer: u64,
        /// The piece's number.
        sequence: u64,
        /// With the last piece: the slot of the state now.
        installed: Option<Slot>,
        /// Whether the piece could not be used; the transfer is over.
        failed: bool,
    },
}

#[derive(Debug)]
struct Sending {
    group: GroupId,
    to: NodeId,
    sequence: u64,
    /// The piece in flight; `None` while the host reads it.
    piece: Option<(Slot, Bytes, bool)>,
    sent_at: Time,
    moved_at: Time,
}

#[derive(Debug)]
struct Receiving {
    from: NodeId,
    transfer: u64,
    /// The next piece wanted, and whether the host is storing one.
    next: u64,
    storing: bool,
    moved_at: Time,
}

/// All transfers of a node.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    count: u64,
    sending: BTreeMap<u64, Sending>,
    receiving: BTreeMap<GroupId, Receiving>,
}

impl<S: Store> Core<S> {
    /// A peer lacks more than the log holds. One transfer per group and peer.
    pub(super) fn start_transfer(&mut self, now: Time, group: GroupId, to: NodeId) {
        let transfers = &mut self.transfers;
        if transfers.sending.values().any(|sending| sending.group == group && sending.to == to) {
            return;
        }
        transfers.count += 1;
        // Unique across restarts, so that a receiver never mixes two.
        let transfer = self.config.boot << 32 | transfers.count;
        transfers
            .sending
            .insert(transfer, Sending { group, to, sequence: 0, piece: None, sent_at: now, moved_at: now });
        self.out.snapshots.push(SnapshotJob::Read { group, transfer, sequence: 0 });
    }

    pub(super) fn snapshot_message(&mut self, now: Time, from: NodeId, message: NodeMessage) {
        match message {
            NodeMessage::SnapshotPiece { group, transfer, sequence, piece, last, .. } => {
                self.piece_arrived(now, from, group, transfer, sequence, piece, last);
            }
            NodeMessage::SnapshotAck { transfer, sequence, .. } => {
                let Some(sending) = self.transfers.sending.get_mut(&transfer) else { return };
                let Some((_, _, last)) = sending.piece.take_if(|_| sending.to == from && sending.sequence == sequence)
                else {
                    return;
                };
                sending.moved_at = now;
                if last {
                    self.end_transfer(transfer);
                    return;
                }
                sending.sequence += 1;
                let (group, sequence) = (sending.group, sending.sequence);
                self.out.snapshots.push(SnapshotJob::Read { group, transfer, sequence });
            }
            _ => {}
        }
    }

    fn end_transfer(&mut self, transfer: u64) {
        if self.transfers.sending.remove(&transfer).is_some() {
            self.out.snapshots.push(SnapshotJob::Close { transfer });
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn piece_arrived(
        &mut self,
        now: Time,
        from: NodeId,
        group: GroupId,
        transfer: u64,
        sequence: u64,
        piece: Bytes,
        last: bool,
    ) {
        if !self.groups.contains_key(&group) {
            return;
        }
        let receiving = &mut self.transfers.receiving;
        let stale = receiving.get(&group).is_none_or(|current| now.since(current.moved_at) > GIVE_UP_MICROS);
        if sequence == 0
            && (stale
                || receiving.get(&group).is_some_and(|current| current.transfer < transfer && current.from == from))
        {
            receiving.insert(group, Receiving { from, transfer, next: 0, storing: false, moved_at: now });
        }
        let Some(current) =
            receiving.get_mut(&group).filter(|current| current.transfer == transfer && current.from == from)
        else {
            return;
        };
        if sequence < current.next {
            self.out.send.push((from, NodeMessage::SnapshotAck { group, transfer, sequence }));
        } else if sequence == current.next && !current.storing {
            current.storing = true;
            current.moved_at = now;
            self.out.snapshots.push(SnapshotJob::Install { group, transfer, sequence, piece, last });
        }
    }

    pub(super) fn snapshot_event(&mut self, now: Time, event: SnapshotEvent) {
        match event {
            SnapshotEvent::Read { transfer, sequence, slot, piece } => {
                let Some(sending) =
                    self.transfers.sending.get_mut(&transfer).filter(|sending| sending.sequence == sequence)
                else {
                    return;
                };
                let Some((piece, last)) = piece else {
                    self.end_transfer(transfer);
                    return;
                };
                sending.piece = Some((slot, piece, last));
                sending.sent_at = now;
                self.send_piece(transfer);
            }
            SnapshotEvent::Stored { group, transfer, sequence, installed, failed } => {
                if let Some(slot) = installed {
                    // Also where the transfer was given up meanwhile: the state is the image's now.
                    if let Some(group) = self.groups.get_mut(&group) {
                        group.applied = group.applied.max(slot);
                    }
                    self.step(now, group, paxos::Input::Installed(slot));
                }
                let Some(current) = self.transfers.receiving.get_mut(&group).filter(|it| it.transfer == transfer)
                else {
                    return;
                };
                let from = current.from;
                if failed {
                    self.transfers.receiving.remove(&group);
                    return;
                }
                current.storing = false;
                current.next = sequence + 1;
                current.moved_at = now;
                self.out.send.push((from, NodeMessage::SnapshotAck { group, transfer, sequence }));
                if installed.is_some() {
                    self.transfers.receiving.remove(&group);
                }
            }
        }
    }

    fn send_piece(&mut self, transfer: u64) {
        let Some(sending) = self.transfers.sending.get(&transfer) else { return };
        let Some((slot, piece, last)) = &sending.piece else { return };
        let (group, sequence, piece) = (sending.group, sending.sequence, piece.clone());
        let message = NodeMessage::SnapshotPiece { group, transfer, sequence, slot: *slot, piece, last: *last };
        self.out.send.push((sending.to, message));
    }

    pub(super) fn tick_transfers(&mut self, now: Time) {
        let over = |sending: &Sending| now.since(sending.moved_at) > GIVE_UP_MICROS;
        let ended: Vec<u64> = self.transfers.sending.iter().filter(|(_, it)| over(it)).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|transfer| self.end_transfer(transfer));
        let due = |sending: &Sending| sending.piece.is_some() && now.since(sending.sent_at) > RESEND_MICROS;
        let again: Vec<u64> = self.transfers.sending.iter().filter(|(_, it)| due(it)).map(|(id, _)| *id).collect();
        for transfer in again {
            if let Some(sending) = self.transfers.sending.get_mut(&transfer) {
                sending.sent_at = now;
            }
            self.send_piece(transfer);
        }
    }

    /// A shardmaster's state was replaced by an image.
    pub fn replace_machine(&mut self, group: GroupId, machine: Machine<S>) {
        if let Machine::Master(state) = &machine {
            self.learn_map(std::sync::Arc::new(state.map.clone()));
        }
        if let Some(group) = self.groups.get_mut(&group) {
            group.machine = machine;
        }
    }
}

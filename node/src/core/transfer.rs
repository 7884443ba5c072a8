//! Images of state machines on their way to replicas that lag behind the log.
//!
//! One piece is in flight per transfer; it is sent again until acknowledged. The state machines'
//! host reads and installs the pieces ([`SnapshotJob`], [`SnapshotEvent`]); here is who sends what
//! to whom.

use super::{Core, Machine};
use crate::wire::NodeMessage;
use bytes::Bytes;
use paxos::{Configuration, GroupId, NodeId, Slot, Time};
use shardkv::store::Store;
use std::collections::BTreeMap;

/// Bytes of one piece, about.
pub const PIECE_BYTES: usize = 1 << 20;
/// An unacknowledged piece is sent again after this.
const RESEND_MICROS: u64 = 500_000;
/// How long the log behind an image that has arrived is kept, until its receiver has said so.
const KEPT_BEHIND_MICROS: u64 = 5_000_000;
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
        /// With the last piece: the slot of the state now, and the configuration of the last stop-sign
        /// below.
        installed: Option<(Slot, Option<Configuration>)>,
        /// Whether the piece could not be used; the transfer is over.
        failed: bool,
    },
}

#[derive(Debug)]
struct Sending {
    group: GroupId,
    to: NodeId,
    sequence: u64,
    /// The image's slot, once the host has opened it.
    slot: Option<Slot>,
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
    /// Images that have arrived lately: their slots, and when.
    arrived: BTreeMap<GroupId, (Slot, Time)>,
    receiving: BTreeMap<GroupId, Receiving>,
}

impl Transfers {
    /// The oldest image of a group that is on its way, or has just arrived: its receiver will want the
    /// log from there on.
    pub(super) fn oldest_image(&self, now: Time, group: GroupId) -> Option<Slot> {
        let sending = self.sending.values().filter(|sending| sending.group == group).filter_map(|it| it.slot);
        let arrived = self.arrived.get(&group).filter(|(_, at)| now.since(*at) < KEPT_BEHIND_MICROS);
        sending.chain(arrived.map(|(slot, _)| *slot)).min()
    }
}

impl<S: Store> Core<S> {
    /// A peer lacks more than the log holds. One transfer per group and peer.
    pub(super) fn start_transfer(&mut self, now: Time, group: GroupId, to: NodeId) {
        if self.is_disputed(now, group) {
            // What may be wrong must not be copied, or it gets a majority.
            return;
        }
        let transfers = &mut self.transfers;
        if transfers.sending.values().any(|sending| sending.group == group && sending.to == to) {
            return;
        }
        transfers.count += 1;
        // Unique across restarts, so that a receiver never mixes two.
        let transfer = self.config.boot << 32 | transfers.count;
        transfers
            .sending
            .insert(transfer, Sending { group, to, sequence: 0, slot: None, piece: None, sent_at: now, moved_at: now });
        self.out.snapshots.push(SnapshotJob::Read { group, transfer, sequence: 0 });
    }

    pub(super) fn snapshot_message(&mut self, now: Time, from: NodeId, message: NodeMessage) {
        match message {
            NodeMessage::SnapshotPiece { group, transfer, slot, .. } if self.has_applied_more(group, slot) => {
                self.out.send.push((from, NodeMessage::SnapshotRefused { group, transfer }));
            }
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
                    if let Some(slot) = sending.slot {
                        self.transfers.arrived.insert(sending.group, (slot, now));
                    }
                    self.end_transfer(transfer);
                    return;
                }
                sending.sequence += 1;
                let (group, sequence) = (sending.group, sending.sequence);
                self.out.snapshots.push(SnapshotJob::Read { group, transfer, sequence });
            }
            NodeMessage::SnapshotRefused { group, transfer }
                if self.transfers.sending.get(&transfer).is_some_and(|sending| sending.to == from) =>
            {
                self.end_transfer(transfer);
                self.mend_again(now, group, from);
            }
            _ => {}
        }
    }

    /// Whether an image is older than what this replica has.
    fn has_applied_more(&self, group: GroupId, slot: Slot) -> bool {
        self.groups.get(&group).is_some_and(|group| slot < group.applied)
    }

    /// The group's replica has ended.
    pub(super) fn end_transfers(&mut self, group: GroupId) {
        self.end_sending(group);
        self.transfers.receiving.remove(&group);
        self.transfers.arrived.remove(&group);
    }

    /// Images of this node's replica are sent no further.
    pub(super) fn end_sending(&mut self, group: GroupId) {
        let sending = self.transfers.sending.iter().filter(|(_, it)| it.group == group);
        let ended: Vec<u64> = sending.map(|(transfer, _)| *transfer).collect();
        ended.into_iter().for_each(|transfer| self.end_transfer(transfer));
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
        // The present leader is whom the replica will follow; an earlier one may be gone in the middle.
        let leads = self.leader_of(group) == Some(from);
        let receiving = &mut self.transfers.receiving;
        let stale = receiving.get(&group).is_none_or(|current| now.since(current.moved_at) > GIVE_UP_MICROS);
        if sequence == 0
            && (stale
                || receiving
                    .get(&group)
                    .is_some_and(|current| if current.from == from { current.transfer < transfer } else { leads }))
        {
            receiving.insert(group, Receiving { from, transfer, next: 0, storing: false, moved_at: now });
        }
        let Some(current) =
            receiving.get_mut(&group).filter(|current| current.transfer == transfer && current.from == from)
        else {
            if sequence > 0 {
                self.out.send.push((from, NodeMessage::SnapshotRefused { group, transfer }));
            }
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
                sending.slot = Some(slot);
                sending.piece = Some((slot, piece, last));
                sending.sent_at = now;
                self.send_piece(transfer);
            }
            SnapshotEvent::Stored { group, transfer, sequence, installed, failed } => {
                let complete = installed.is_some();
                if let Some((slot, configuration)) = installed {
                    // Also where the transfer was given up meanwhile: the state is the image's now.
                    if let Some(group) = self.groups.get_mut(&group) {
                        group.applied = group.applied.max(slot);
                    }
                    self.step(now, group, paxos::Input::Installed { slot, configuration });
                    self.state_replaced(now, group);
                }
                let Some(current) = self.transfers.receiving.get_mut(&group).filter(|it| it.transfer == transfer)
                else {
                    return;
                };
                let from = current.from;
                if failed {
                    self.transfers.receiving.remove(&group);
                    self.out.send.push((from, NodeMessage::SnapshotRefused { group, transfer }));
                    return;
                }
                current.storing = false;
                current.next = sequence + 1;
                current.moved_at = now;
                self.out.send.push((from, NodeMessage::SnapshotAck { group, transfer, sequence }));
                if complete {
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

    /// A group's state was replaced by an image.
    pub fn replace_machine(&mut self, group: GroupId, machine: Machine<S>) {
        if let Machine::Master(state) = &machine {
            self.learn_map(std::sync::Arc::new(state.map.clone()));
        }
        if let Some(group) = self.groups.get_mut(&group) {
            group.machine = machine;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{CoreConfig, Hosted, Input, Limits};
    use crate::host::Machines;
    use paxos::Recovered;
    use shardkv::{MemoryStore, SessionLimits};
    use std::sync::Arc;

    const GROUP: GroupId = GroupId(2);
    const N2: NodeId = NodeId(2);
    const SECOND: u64 = 1_000_000;

    /// A follower of a group with 100 small entries, all applied, that would rather keep none of them.
    fn core(now: Time) -> Core<MemoryStore> {
        let limits = Limits { kept_bytes_max: 0, kept_behind_image_bytes_max: 1000, ..Limits::default() };
        let config = CoreConfig { limits, ..CoreConfig::among(&[1, 2, 3]) };
        let (store, sessions) = (Arc::new(MemoryStore::new()), SessionLimits::default());
        let machines = Machines::open(store, &[GROUP], 1, sessions).expect("an empty store opens");
        let machine = machines.machine(GROUP).expect("it was just opened");
        let recovered = Recovered {
            first_kept: Slot(1),
            length: Slot(100),
            decided: Slot(100),
            entries: vec![Bytes::from_static(&[0; 10]); 100],
            ..Recovered::default()
        };
        let applied = Slot(100);
        let configuration = paxos::Configuration::first(config.nodes.clone());
        Core::new(config, vec![Hosted { group: GROUP, configuration, recovered, applied, fenced: false, machine }], now)
    }

    fn flush(core: &mut Core<MemoryStore>, now: Time) -> Slot {
        core.begin_reclaim();
        let number = core.turn(now).flush.expect("a flush is asked for");
        core.input(now, Input::Flushed(number));
        let ticket = core.turn(now).ticket;
        core.input(now, Input::Durable { ticket, segment: 1 });
        core.turn(now);
        core.replica(GROUP).expect("it is hosted").acceptor().log().first_kept()
    }

    #[test]
    fn the_log_behind_an_image_is_kept_until_its_receiver_can_ask_for_it() {
        let now = Time(SECOND);
        let mut core = core(now);
        core.start_transfer(now, GROUP, N2);
        let [SnapshotJob::Read { transfer, .. }] = core.turn(now).snapshots[..] else { panic!("an image is opened") };
        let piece = Some((Bytes::from_static(b"all of it"), true));
        let read = SnapshotEvent::Read { transfer, sequence: 0, slot: Slot(40), piece };
        core.input(now, Input::Snapshot(read));
        assert_eq!(flush(&mut core, now), Slot(41), "the image is on its way");
        let message = NodeMessage::SnapshotAck { group: GROUP, transfer, sequence: 0 };
        core.input(now, Input::Message { from: N2, message });
        assert_eq!(flush(&mut core, now), Slot(41), "it has just arrived");
        let later = now.plus(KEPT_BEHIND_MICROS);
        assert_eq!(flush(&mut core, later), Slot(101));
    }

    #[test]
    fn what_is_kept_behind_an_image_is_bounded() {
        let now = Time(SECOND);
        let mut core = core(now);
        core.config.limits.kept_behind_image_bytes_max = 300;
        core.start_transfer(now, GROUP, N2);
        let [SnapshotJob::Read { transfer, .. }] = core.turn(now).snapshots[..] else { panic!("an image is opened") };
        let read = SnapshotEvent::Read { transfer, sequence: 0, slot: Slot(40), piece: Some((Bytes::new(), true)) };
        core.input(now, Input::Snapshot(read));
        assert_eq!(flush(&mut core, now), Slot(71), "300 bytes are 30 entries");
    }

    #[test]
    fn a_transfer_that_its_receiver_does_not_know_ends_at_once() {
        let now = Time(SECOND);
        let (mut receiver, mut sender) = (core(now), core(now));
        let piece = |sequence| NodeMessage::SnapshotPiece {
            group: GROUP,
            transfer: 1 << 32 | 1,
            sequence,
            slot: Slot(40),
            piece: Bytes::new(),
            last: false,
        };
        receiver.input(now, Input::Message { from: N2, message: piece(3) });
        let sent = receiver.turn(now).send;
        let [(N2, refused @ NodeMessage::SnapshotRefused { .. })] = &sent[..] else { panic!("{sent:?}") };
        sender.start_transfer(now, GROUP, N2);
        sender.turn(now);
        sender.input(now, Input::Message { from: N2, message: refused.clone() });
        let closed = sender.turn(now).snapshots;
        assert_eq!(closed, [SnapshotJob::Close { transfer: 1 << 32 | 1 }]);
        sender.start_transfer(now, GROUP, N2);
        assert_eq!(sender.turn(now).snapshots.len(), 1, "another one may begin");
    }
}

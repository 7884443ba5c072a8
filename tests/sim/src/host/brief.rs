//! Messages in a trace.

use node::wire::NodeMessage;
use paxos::{Message, Wire};
use std::fmt;

/// A message in a few words.
pub(super) struct Brief<'a>(pub(super) &'a NodeMessage);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            NodeMessage::Paxos(Wire::Group(group, message)) => match message {
                Message::Accept { ballot, start, entries, decided } => {
                    write!(f, "{group} Accept {ballot} from {start}, {} entries, decided {decided}", entries.len())
                }
                Message::AcceptSync { ballot, cut, start, end, entries, decided } => write!(
                    f,
                    "{group} AcceptSync {ballot} cut {cut}, from {start}, {} entries, end {end}, decided {decided}",
                    entries.len()
                ),
                Message::Fetched { ballot, start, entries } => {
                    write!(f, "{group} Fetched {ballot} from {start}, {} entries", entries.len())
                }
                Message::Promise(promise) => write!(
                    f,
                    "{group} Promise {} accepted {} length {} decided {} kept {} suspect {}",
                    promise.ballot,
                    promise.accepted,
                    promise.length,
                    promise.decided,
                    promise.first_kept,
                    promise.suspect
                ),
                other => write!(f, "{group} {other:?}"),
            },
            NodeMessage::Paxos(Wire::Heartbeat(beat)) => match beat {
                paxos::heartbeat::Heartbeat::Ping { sequence, .. } => write!(f, "Ping {sequence}"),
                paxos::heartbeat::Heartbeat::Pong { sequence, .. } => write!(f, "Pong {sequence}"),
            },
            NodeMessage::SnapshotPiece { group, transfer, sequence, slot, piece, last } => {
                write!(f, "{group} SnapshotPiece {transfer:x}/{sequence} of {slot}, {} bytes, last {last}", piece.len())
            }
            NodeMessage::MapReply(map) => write!(f, "MapReply version {}", map.version),
            other => write!(f, "{other:?}"),
        }
    }
}

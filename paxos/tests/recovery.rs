//! What a replica makes of its records after a restart, where that is more than reading them.

#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use paxos::acceptor::Acceptor;
use paxos::{Ballot, ConfigId, NodeId, Record, Recovered, Slot, recover};

fn ballot(round: u64, node: u64) -> Ballot {
    Ballot { config: Default::default(), round, node: NodeId(node), boot: 1 }
}

fn entries(numbers: std::ops::RangeInclusive<u64>) -> Vec<Bytes> {
    numbers.map(|number| Bytes::from(number.to_string())).collect()
}

fn accepted(ballot: Ballot, slots: std::ops::RangeInclusive<u64>) -> Record {
    Record::Accepted { ballot, start: Slot(*slots.start()), entries: entries(slots), decided: Slot(5) }
}

fn held(recovered: &Recovered) -> (Slot, Slot) {
    (recovered.first_kept, recovered.length)
}

#[test]
fn an_image_stands_for_what_lies_below_it_also_after_a_restart() {
    // Slots 6 to 8 are of a ballot that lost; served to another replica they would be applied there.
    let records = [accepted(ballot(1, 1), 1..=10), Record::Installed(Slot(8))];
    assert_eq!(held(&recover(records.iter(), Slot(8), Slot(8), ConfigId(0)).unwrap()), (Slot(9), Slot(10)));
    // The crash came between the image and its record.
    assert_eq!(held(&recover(records[..1].iter(), Slot(8), Slot(8), ConfigId(0)).unwrap()), (Slot(9), Slot(10)));
    // Applied entry by entry, they are what was decided, and peers may want them.
    assert_eq!(held(&recover(records[..1].iter(), Slot(8), Slot(0), ConfigId(0)).unwrap()), (Slot(1), Slot(10)));
}

#[test]
fn what_was_unproven_stays_so_when_the_rest_was_adopted() {
    let adopted = Record::Adopted {
        ballot: ballot(2, 2),
        cut: Slot(5),
        start: Slot(6),
        entries: entries(6..=7),
        decided: Slot(5),
    };
    let records = [accepted(ballot(1, 1), 1..=10), Record::Suspect, adopted];
    let recovered = recover(records.iter(), Slot(5), Slot(0), ConfigId(0)).unwrap();
    assert_eq!(held(&recovered), (Slot(6), Slot(7)));
    assert!(!recovered.suspect);
}

#[test]
fn a_leader_records_a_long_log_that_it_adopts_in_pieces() {
    const PIECE: usize = 1000;
    let old = ballot(1, 2);
    let new = ballot(2, 1);
    let mut records = vec![Record::Accepted { ballot: old, start: Slot(1), entries: entries(1..=2), decided: Slot(1) }];
    let mut acceptor = Acceptor::new(recover(records.iter(), Slot(1), Slot(0), ConfigId(0)).unwrap());
    assert!(acceptor.prepare(new, true, &mut records).is_some());
    let long: Vec<Bytes> = (0..30u8).map(|number| Bytes::from(vec![number; 300])).collect();
    acceptor.adopt_as_leader(new, Slot(2), long.clone(), PIECE, &mut records);
    let bytes = |record: &Record| match record {
        Record::Staged { entries, .. } | Record::Adopted { entries, .. } => entries.iter().map(Bytes::len).sum(),
        _ => 0usize,
    };
    assert!(records.iter().all(|record| bytes(record) <= PIECE), "{records:?}");
    let recovered = recover(records.iter(), Slot(1), Slot(0), ConfigId(0)).unwrap();
    assert_eq!((held(&recovered), recovered.accepted), ((Slot(1), Slot(32)), new));
    assert_eq!(recovered.entries[2..], long[..]);
    // Without the last record the old log stands.
    let recovered = recover(records[..records.len() - 1].iter(), Slot(1), Slot(0), ConfigId(0)).unwrap();
    assert_eq!((held(&recovered), recovered.accepted), ((Slot(1), Slot(2)), old));
}

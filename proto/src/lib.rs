//! Generated types, clients and servers of every gRPC API that CloudPaxos speaks:
//!
//! - [`etcdserverpb`], [`mvccpb`], [`authpb`]: the data plane. Packages, names and field numbers are
//!   those of etcd 3.5 to 3.7, so that every etcd client talks to us; the words are our own.
//! - [`health`]: the standard health protocol of gRPC.
//! - [`internal`]: the batched streams between CloudPaxos processes.
//! - `admin`: shard map, groups and nodes, for operators.
//!
//! A `bytes` field is a [`bytes::Bytes`] that shares the buffer of the message it came in. That
//! copies nothing on the hot path, but a small key pins the whole message: copy what lives long.
//!
//! [`dial`] is the one way to open a channel to any of them, and [`METHODS`] names them all.
//!
//! Invariant: this crate decides nothing. Translation and validation live in `gateway`, and whom to trust
//! is the host's choice.

pub mod dial;

mod generated {
    #![allow(missing_docs, clippy::all, clippy::wildcard_imports)]
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

// `METHODS`: the path of every method, as in a request, sorted.
include!(concat!(env!("OUT_DIR"), "/methods.rs"));

pub use generated::cloudpaxos::*;
pub use generated::grpc::health::v1 as health;
pub use generated::{authpb, etcdserverpb, mvccpb};

#[cfg(test)]
mod tests {
    use crate::{etcdserverpb as pb, mvccpb};
    use bytes::Bytes;
    use prost::Message;

    #[test]
    fn every_method_is_named_once_in_order() {
        assert!(crate::METHODS.contains(&"/etcdserverpb.KV/Range"));
        assert!(crate::METHODS.contains(&"/grpc.health.v1.Health/Check"));
        assert!(crate::METHODS.is_sorted_by(|a, b| a < b), "{:?}", crate::METHODS);
    }

    /// The encodings were written down from an etcd 3.5 client's: a field number or type that
    /// drifts breaks every client, silently.
    #[test]
    fn field_numbers_and_types_are_those_of_etcd() {
        let range = pb::RangeRequest {
            key: Bytes::from_static(b"a"),
            range_end: Bytes::from_static(b"\0"),
            limit: 1,
            revision: 2,
            sort_order: pb::range_request::SortOrder::Descend as i32,
            sort_target: pb::range_request::SortTarget::Value as i32,
            serializable: true,
            keys_only: true,
            count_only: true,
            min_mod_revision: 3,
            max_mod_revision: 4,
            min_create_revision: 5,
            max_create_revision: 6,
        };
        let expected: &[u8] = b"\x0a\x01a\x12\x01\0\x18\x01\x20\x02\x28\x02\x30\x04\x38\x01\x40\x01\x48\x01\x50\x03\x58\x04\x60\x05\x68\x06";
        assert_eq!(range.encode_to_vec(), expected);

        let pair = mvccpb::KeyValue {
            key: Bytes::from_static(b"k"),
            create_revision: 1,
            mod_revision: 2,
            version: 3,
            value: Bytes::from_static(b"v"),
            lease: 4,
        };
        assert_eq!(pair.encode_to_vec(), b"\x0a\x01k\x10\x01\x18\x02\x20\x03\x2a\x01v\x30\x04");

        let compare = pb::Compare {
            result: pb::compare::CompareResult::NotEqual as i32,
            target: pb::compare::CompareTarget::Lease as i32,
            key: Bytes::from_static(b"k"),
            range_end: Bytes::from_static(b"z"),
            target_union: Some(pb::compare::TargetUnion::Lease(7)),
        };
        assert_eq!(compare.encode_to_vec(), b"\x08\x03\x10\x04\x1a\x01k\x40\x07\x82\x04\x01z");

        let watch = pb::WatchResponse { events: vec![mvccpb::Event::default()], ..Default::default() };
        assert_eq!(watch.encode_to_vec(), b"\x5a\x00", "events are field 11");
    }
}

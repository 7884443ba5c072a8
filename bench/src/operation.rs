//! What clients do.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::transport::Channel;

/// A client of the key-value service.
pub type Kv = pb::kv_client::KvClient<Channel>;

/// Keys in a range read.
const RANGE_LIMIT: i64 = 100;
/// Puts in a transaction.
const TXN_PUTS: usize = 8;
/// One in so many of the mixed operations is a put.
const MIXED_PUT_RATIO: u32 = 10;
/// Keys per transaction while filling; servers allow 128.
pub const FILL_KEYS_PER_TXN: u64 = 100;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A put.
    Put,
    /// A linearizable get.
    Get,
    /// A serializable get.
    GetSerializable,
    /// Nine linearizable gets to one put.
    Mixed,
    /// A transaction of eight puts.
    Txn,
    /// A linearizable get, then a put that compares the revision.
    Cas,
    /// A linearizable range from a random key on, 100 keys at most.
    Range,
}

impl Operation {
    /// For tables.
    pub fn title(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get, linearizable",
            Operation::GetSerializable => "get, serializable",
            Operation::Mixed => "90 % get, 10 % put",
            Operation::Txn => "transaction of 8 puts",
            Operation::Cas => "get + compare-and-swap",
            Operation::Range => "range, limit 100",
        }
    }
}

/// Which keys and values.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Keyspace {
    /// How many keys.
    #[arg(long, default_value_t = 100_000)]
    pub keys: u64,
    /// The size of a value.
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
}

impl Keyspace {
    /// The key of a number.
    pub fn key(&self, number: u64) -> Bytes {
        Bytes::from(format!("bench/{number:010}"))
    }

    /// The first key behind all.
    pub fn end(&self) -> Bytes {
        Bytes::from_static(b"bench0")
    }

    fn random_key(&self, random: &mut StdRng) -> Bytes {
        self.key(random.random_range(0..self.keys))
    }

    /// Random bytes: no storage compresses them away.
    pub fn value(&self, random: &mut StdRng) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        random.fill_bytes(&mut value);
        Bytes::from(value)
    }

    fn put(&self, random: &mut StdRng) -> pb::PutRequest {
        pb::PutRequest { key: self.random_key(random), value: self.value(random), ..Default::default() }
    }

    fn get(&self, random: &mut StdRng) -> pb::RangeRequest {
        pb::RangeRequest { key: self.random_key(random), ..Default::default() }
    }
}

/// A put within a transaction.
pub fn put_op(put: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// Does one operation; an answer of any content is a success.
pub async fn execute(
    operation: Operation,
    keyspace: &Keyspace,
    kv: &mut Kv,
    random: &mut StdRng,
) -> Result<(), Status> {
    match operation {
        Operation::Put => drop(kv.put(keyspace.put(random)).await?),
        Operation::Get => drop(kv.range(keyspace.get(random)).await?),
        Operation::GetSerializable => {
            drop(kv.range(pb::RangeRequest { serializable: true, ..keyspace.get(random) }).await?);
        }
        Operation::Mixed if random.random_ratio(1, MIXED_PUT_RATIO) => drop(kv.put(keyspace.put(random)).await?),
        Operation::Mixed => drop(kv.range(keyspace.get(random)).await?),
        Operation::Txn => {
            // Distinct keys, as the API demands: consecutive ones from a random start.
            let first = random.random_range(0..keyspace.keys);
            let put = |offset| {
                let key = keyspace.key((first + offset) % keyspace.keys);
                put_op(pb::PutRequest { key, value: keyspace.value(random), ..Default::default() })
            };
            let success = (0..TXN_PUTS as u64).map(put).collect();
            drop(kv.txn(pb::TxnRequest { success, ..Default::default() }).await?);
        }
        Operation::Cas => compare_and_swap(keyspace, kv, random).await?,
        Operation::Range => {
            let request = pb::RangeRequest { range_end: keyspace.end(), limit: RANGE_LIMIT, ..keyspace.get(random) };
            drop(kv.range(request).await?);
        }
    }
    Ok(())
}

async fn compare_and_swap(keyspace: &Keyspace, kv: &mut Kv, random: &mut StdRng) -> Result<(), Status> {
    let get = keyspace.get(random);
    let key = get.key.clone();
    let found = kv.range(get).await?.into_inner();
    let mod_revision = found.kvs.first().map_or(0, |kv| kv.mod_revision);
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(mod_revision)),
    };
    let put = pb::PutRequest { key, value: keyspace.value(random), ..Default::default() };
    kv.txn(pb::TxnRequest { compare: vec![compare], success: vec![put_op(put)], failure: Vec::new() }).await?;
    Ok(())
}

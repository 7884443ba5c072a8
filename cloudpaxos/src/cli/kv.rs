//! `cloudpaxos kv`: the key-value service of the etcd v3 API, from a shell.

use super::client::Kind;
use super::output::{self, Format};
use super::{ClientOptions, txn};
use crate::failure::Failure;
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse};
use proto::mvccpb::KeyValue;
use serde_json::{Value, json};
use std::io::Read;

/// Keys fetched at once by `kv list`, so that a big keyspace needs little memory anywhere.
const LIST_PAGE_KEYS: i64 = 1000;

/// The commands about keys.
#[derive(Subcommand, Debug)]
pub enum KvCommand {
    /// Write a key.
    #[command(after_help = "\
Examples:
  cloudpaxos kv put greeting hello
  cloudpaxos kv put settings - < settings.json     the value from standard input")]
    Put {
        /// The key.
        key: String,
        /// The value; `-` reads it from standard input.
        value: String,
        /// Also show what was there before.
        #[arg(long)]
        prev: bool,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Read a key, or a range of keys.
    #[command(after_help = "\
One key prints its value and nothing else; a missing one is an error (exit code 1).

Examples:
  cloudpaxos kv get greeting
  cloudpaxos kv get a c                      keys from a up to, but without, c
  cloudpaxos kv get users/ --prefix --sort-by mod --order descend --limit 10
  cloudpaxos kv get greeting --revision 42   as it was at revision 42")]
    Get(Box<GetOptions>),
    /// Delete a key, or a range of keys.
    #[command(after_help = "\
Examples:
  cloudpaxos kv del greeting
  cloudpaxos kv del sessions/ --prefix")]
    Del {
        #[command(flatten)]
        range: RangeOptions,
        /// Also show what was deleted.
        #[arg(long)]
        prev: bool,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// List keys with their revisions and sizes, as of one revision.
    #[command(after_help = "\
Examples:
  cloudpaxos kv list                 all keys
  cloudpaxos kv list users/          those that begin with users/")]
    List {
        /// Only keys that begin with this.
        #[arg(default_value = "")]
        prefix: String,
        /// At most this many.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
        limit: Option<i64>,
        #[command(flatten)]
        client: ClientOptions,
    },
    /// Compare and change several keys at once, all or nothing.
    #[command(after_help = "\
Compares: value(\"k\") = \"v\", version(\"k\") > 0, create(\"k\") = 0, mod(\"k\") != 7, lease(\"k\") < 9.
Operations: put k v, get k [END] [--prefix], del k [END] [--prefix]; quote what has spaces.
Without --if, --then and --else, three blocks are read from standard input (compares, then, else), each
ended by an empty line, as etcdctl does.

Examples:
  cloudpaxos kv txn --if 'create(\"lock\") = 0' --then 'put lock me' --else 'get lock'
  cloudpaxos kv txn --if 'value(\"a\") = \"1\"' --then 'put a 2' --then 'put b \"two words\"'")]
    Txn {
        /// A compare; all must hold.
        #[arg(long = "if", value_name = "COMPARE")]
        compares: Vec<String>,
        /// An operation if they hold.
        #[arg(long = "then", value_name = "OPERATION")]
        success: Vec<String>,
        /// An operation if they do not.
        #[arg(long = "else", value_name = "OPERATION")]
        failure: Vec<String>,
        #[command(flatten)]
        client: ClientOptions,
    },
}

/// A key, or a range.
#[derive(Args, Debug)]
pub struct RangeOptions {
    /// The key, or the first of a range.
    key: String,
    /// The first key behind the range.
    end: Option<String>,
    /// All keys that begin with KEY.
    #[arg(long, conflicts_with = "end")]
    prefix: bool,
    /// All keys from KEY on.
    #[arg(long, conflicts_with_all = ["end", "prefix"])]
    from_key: bool,
}

/// What `kv get` takes.
#[derive(Args, Debug)]
pub struct GetOptions {
    #[command(flatten)]
    range: RangeOptions,
    /// At most this many keys; 0 means all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: i64,
    /// As of this revision; 0 means now.
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    revision: i64,
    /// Sort by this.
    #[arg(long, value_enum, default_value_t = SortBy::Key)]
    sort_by: SortBy,
    /// Sort this way.
    #[arg(long, value_enum)]
    order: Option<Order>,
    /// Keys without values.
    #[arg(long)]
    keys_only: bool,
    /// Only how many there are.
    #[arg(long, conflicts_with = "keys_only")]
    count_only: bool,
    /// Answer from any replica; fast, but perhaps not the newest.
    #[arg(long)]
    serializable: bool,
    #[command(flatten)]
    client: ClientOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortBy {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Ascend,
    Descend,
}

/// Does a `kv` command.
pub(super) async fn run(command: KvCommand) -> Result<(), Failure> {
    match command {
        KvCommand::Put { key, value, prev, client } => put(key, value, prev, client).await,
        KvCommand::Get(options) => get(*options).await,
        KvCommand::Del { range, prev, client } => del(range, prev, client).await,
        KvCommand::List { prefix, limit, client } => list(prefix, limit, client).await,
        KvCommand::Txn { compares, success, failure, client } => {
            let request = if compares.is_empty() && success.is_empty() && failure.is_empty() {
                txn::from_blocks(&standard_input_text()?)
            } else {
                txn::from_lines(&compares, &success, &failure)
            };
            let request = request.map_err(Failure::Usage)?;
            let answer = client.client()?.kv(Kind::Write, async |kv| kv.txn(request.clone()).await).await?;
            match client.output.output {
                Format::Json => output::json(&txn::json(&answer)),
                Format::Table => output::line(txn::shown(&answer).trim_end()),
            }
        }
    }
}

async fn put(key: String, value: String, prev: bool, client: ClientOptions) -> Result<(), Failure> {
    let value = if value == "-" { standard_input()? } else { value.into_bytes() };
    let request = PutRequest { key: key.into(), value: value.into(), prev_kv: prev, ..Default::default() };
    let answer = client.client()?.kv(Kind::Write, async |kv| kv.put(request.clone()).await).await?;
    let revision = answer.header.map_or(0, |header| header.revision);
    match client.output.output {
        Format::Json => {
            let mut document = json!({ "revision": revision });
            if prev {
                document["prev"] = answer.prev_kv.as_ref().map_or(Value::Null, pair_json);
            }
            output::json(&document)
        }
        Format::Table => {
            output::line(format!("OK, at revision {revision}"))?;
            answer.prev_kv.iter().try_for_each(|pair| output::line(format!("was: {}", output::shown(&pair.value))))
        }
    }
}

async fn get(options: GetOptions) -> Result<(), Failure> {
    let one_key = options.range.end.is_none() && !options.range.prefix && !options.range.from_key;
    let shown_key = options.range.key.clone();
    let (key, range_end) = options.range.bounds();
    let sort_target = match options.sort_by {
        SortBy::Key => SortTarget::Key,
        SortBy::Version => SortTarget::Version,
        SortBy::Create => SortTarget::Create,
        SortBy::Mod => SortTarget::Mod,
        SortBy::Value => SortTarget::Value,
    };
    let sort_order = match options.order {
        None => SortOrder::None,
        Some(Order::Ascend) => SortOrder::Ascend,
        Some(Order::Descend) => SortOrder::Descend,
    };
    let request = RangeRequest {
        key,
        range_end,
        limit: options.limit,
        revision: options.revision,
        sort_order: sort_order.into(),
        sort_target: sort_target.into(),
        serializable: options.serializable,
        keys_only: options.keys_only,
        count_only: options.count_only,
        ..Default::default()
    };
    let client = &options.client;
    let answer = client.client()?.kv(Kind::Read, async |kv| kv.range(request.clone()).await).await?;
    if one_key && !options.count_only && answer.kvs.is_empty() {
        return Err(Failure::NotFound(format!("the key `{shown_key}` does not exist")));
    }
    match (client.output.output, &answer.kvs[..]) {
        (Format::Json, _) => output::json(&range_json(&answer)),
        (Format::Table, _) if options.count_only => output::line(answer.count.to_string()),
        (Format::Table, [pair]) if one_key && !options.keys_only => output::line(&pair.value),
        (Format::Table, pairs) if options.keys_only => {
            pairs.iter().try_for_each(|pair| output::line(output::shown(&pair.key)))
        }
        (Format::Table, pairs) => output::table(
            &["KEY", "VALUE"],
            pairs.iter().map(|pair| vec![output::shown(&pair.key), output::shown(&pair.value)]),
        ),
    }
}

async fn del(range: RangeOptions, prev: bool, client: ClientOptions) -> Result<(), Failure> {
    let (key, range_end) = range.bounds();
    let request = DeleteRangeRequest { key, range_end, prev_kv: prev };
    let answer = client.client()?.kv(Kind::Write, async |kv| kv.delete_range(request.clone()).await).await?;
    match client.output.output {
        Format::Json => {
            let revision = answer.header.map_or(0, |header| header.revision);
            let mut document = json!({ "revision": revision, "deleted": answer.deleted });
            if prev {
                document["prev"] = answer.prev_kvs.iter().map(pair_json).collect();
            }
            output::json(&document)
        }
        Format::Table => {
            output::line(format!("deleted: {}", answer.deleted))?;
            let shown = |pair: &KeyValue| vec![output::shown(&pair.key), output::shown(&pair.value)];
            if prev { output::table(&["KEY", "WAS"], answer.prev_kvs.iter().map(shown)) } else { Ok(()) }
        }
    }
}

/// Pages through the keys at the first page's revision.
async fn list(prefix: String, limit: Option<i64>, options: ClientOptions) -> Result<(), Failure> {
    let client = options.client()?;
    let prefix = prefix.into_bytes();
    let range_end = prefix_end(&prefix);
    let mut next = if prefix.is_empty() { Bytes::from_static(b"\0") } else { Bytes::from(prefix) };
    let mut pairs: Vec<KeyValue> = Vec::new();
    let mut revision = 0;
    loop {
        let left = limit.map_or(LIST_PAGE_KEYS, |limit| LIST_PAGE_KEYS.min(limit - pairs.len() as i64));
        let (key, range_end) = (next.clone(), range_end.clone());
        let request = RangeRequest { key, range_end, limit: left, revision, ..Default::default() };
        let page = client.kv(Kind::Read, async |kv| kv.range(request.clone()).await).await?;
        if revision == 0 {
            revision = page.header.as_ref().map_or(0, |header| header.revision);
        }
        let Some(last) = page.kvs.last() else { break };
        next = last.key.iter().copied().chain([0]).collect();
        pairs.extend(page.kvs);
        if !page.more || limit.is_some_and(|limit| pairs.len() as i64 >= limit) {
            break;
        }
    }
    match options.output.output {
        Format::Json => output::json(&json!({
            "revision": revision,
            "keys": pairs.iter().map(|pair| json!({
                "key": output::value(&pair.key),
                "create_revision": pair.create_revision,
                "mod_revision": pair.mod_revision,
                "version": pair.version,
                "value_bytes": pair.value.len(),
            })).collect::<Vec<_>>(),
        })),
        Format::Table => output::table(
            &["KEY", "CREATED", "MODIFIED", "VERSION", "BYTES"],
            pairs.iter().map(|pair| {
                let numbers = [pair.create_revision, pair.mod_revision, pair.version, pair.value.len() as i64];
                [output::shown(&pair.key)].into_iter().chain(numbers.map(|number| number.to_string())).collect()
            }),
        ),
    }
}

impl RangeOptions {
    /// Key and range end as the API wants them.
    fn bounds(self) -> (Bytes, Bytes) {
        let key = self.key.into_bytes();
        let end = match self.end {
            Some(end) => end.into(),
            None if self.prefix => prefix_end(&key),
            None if self.from_key => Bytes::from_static(b"\0"),
            None => Bytes::new(),
        };
        // An empty key is none; the lowest key is a zero byte.
        let key = if key.is_empty() && !end.is_empty() { Bytes::from_static(b"\0") } else { key.into() };
        (key, end)
    }
}

/// The first key behind all that begin with `prefix`; `\0` ("to the end") where there is none.
pub(super) fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte < u8::MAX) {
        None => Bytes::from_static(b"\0"),
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
    }
}

/// A pair for programs.
pub(super) fn pair_json(pair: &KeyValue) -> Value {
    json!({
        "key": output::value(&pair.key),
        "value": output::value(&pair.value),
        "create_revision": pair.create_revision,
        "mod_revision": pair.mod_revision,
        "version": pair.version,
        "lease": pair.lease,
    })
}

/// A range's answer for programs.
pub(super) fn range_json(answer: &RangeResponse) -> Value {
    json!({
        "revision": answer.header.as_ref().map_or(0, |header| header.revision),
        "count": answer.count,
        "more": answer.more,
        "kvs": answer.kvs.iter().map(pair_json).collect::<Vec<_>>(),
    })
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match std::io::stdin().lock().read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::Io { action: "read standard input".to_owned(), error }),
    }
}

fn standard_input_text() -> Result<String, Failure> {
    String::from_utf8(standard_input()?).map_err(|_| Failure::Usage("standard input is not UTF-8".to_owned()))
}

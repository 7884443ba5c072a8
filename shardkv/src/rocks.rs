//! The store of real nodes: one RocksDB database per node, one column family, shared by all groups.
//!
//! RocksDB's own log is off: our write-ahead log is kept until what it led to is flushed. With one
//! column family, memtables become durable in the order in which they were filled, so what a crash
//! leaves is a prefix of the batches, as [`crate::store`] demands.
//!
//! Tuning, each for a measured reason:
//! - Small memtables: a random insert into 4 MiB costs half of one into 256 MiB. Four are flushed
//!   as one file and eight such files are compacted at once, so that small memtables do not cost
//!   many small files: against 8 MiB, flushed alone and compacted by four, a put at saturation took
//!   12 % less CPU.
//! - Only one thread writes, so inserts need not be safe against one another.
//! - Bloom filters, also for memtables: most lookups are for keys that are not there (every new key
//!   asks for its version before), and the rest should touch one file.
//! - lz4 below level 0: most bytes are written where that is merged into, and syncs of the log wait for them.
//! - Files full of deletions are compacted early: collected history must free its space.
//! - Flushes and compactions run at low CPU priority: the sync and apply threads go first.

use crate::store::{Change, RowRange, Store, StoreError, View, Visit, WriteBatch};
use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DataBlockIndexType, Env, Options, ReadOptions, WriteOptions,
};
use std::path::Path;

/// Uncompressed bytes of one block of a file.
const BLOCK_BYTES: usize = 8 << 10;

/// Full memtables that are flushed as one file.
const MEMTABLES_MERGED: i32 = 4;
/// Memtables in all; beyond, writes wait for a flush.
const MEMTABLES_MAX: i32 = 12;
/// Files of level 0 that start a compaction.
const LEVEL_0_FILES: i32 = 8;

/// What an operator may tune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Memory for blocks of files. Indexes and filters of open files come on top, about 2 bytes per
    /// row.
    pub block_cache_bytes: usize,
    /// Size of one memtable. Four are flushed together, and up to twelve exist while that lags.
    pub memtable_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_threads: u16,
    /// Files kept open; more cost an open per read.
    pub open_files_max: u16,
}

impl RocksOptions {
    /// The same for one of several nodes, by its number: memtables that are smaller by up to 3/16. Replicas write the same, and
    /// with memtables alike all of them compact at the same moment, so that no majority is left whose disks are free.
    #[must_use]
    pub fn staggered(self, node: u64) -> RocksOptions {
        let sixteenth = self.memtable_bytes / 16;
        RocksOptions { memtable_bytes: self.memtable_bytes - sixteenth * (node % 4) as usize, ..self }
    }

    /// Bytes that one flush writes, about.
    pub fn flush_bytes(&self) -> u64 {
        self.memtable_bytes as u64 * u64::from(MEMTABLES_MERGED.unsigned_abs())
    }
}

impl Default for RocksOptions {
    fn default() -> RocksOptions {
        const MIB: usize = 1 << 20;
        RocksOptions {
            block_cache_bytes: 256 * MIB,
            memtable_bytes: 4 * MIB,
            background_threads: 2,
            open_files_max: 1024,
        }
    }
}

/// What RocksDB tells about itself; counts are as of now, not since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RocksFigures {
    /// Bytes of live files.
    pub files_bytes: u64,
    /// Bytes of memtables, those being flushed included.
    pub memtables_bytes: u64,
    /// Files of level 0; many slow reads down, and at last writes.
    pub level_0_files: u64,
    /// Rows, about.
    pub rows: u64,
    /// Bytes that compactions still have to rewrite, about.
    pub compaction_pending_bytes: u64,
    /// Compactions running.
    pub compactions: u64,
    /// Flushes running.
    pub flushes: u64,
    /// Bytes per second that writes are slowed down to; 0 if they are not.
    pub delayed_write_bytes_per_second: u64,
    /// Writes wait for flushes or compactions.
    pub stopped: bool,
    /// Bytes of blocks cached.
    pub block_cache_bytes: u64,
    /// Errors of flushes and compactions since the start.
    pub background_errors: u64,
}

/// A database in a directory.
pub struct RocksStore {
    db: DB,
    unlogged: WriteOptions,
}

fn failed(action: &'static str) -> impl Fn(rocksdb::Error) -> StoreError {
    move |error| {
        let detail = error.into_string();
        // The binding hands out a status' main code only; the text is what RocksDB makes of ENOSPC.
        match detail.starts_with("IO error: No space left on device") {
            true => StoreError::NoSpace { action, detail },
            false => StoreError::Backend { action, detail },
        }
    }
}

impl RocksStore {
    /// Opens the database in `directory`, which is created if missing. A directory can be open
    /// once only.
    pub fn open(directory: &Path, options: RocksOptions) -> Result<RocksStore, StoreError> {
        let mut env = Env::new().map_err(failed("set up its environment"))?;
        env.lower_thread_pool_cpu_priority();
        env.lower_high_priority_thread_pool_cpu_priority();
        env.lower_thread_pool_io_priority();
        let db = DB::open(&database_options(options, &env), directory).map_err(failed("open the database"))?;
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        Ok(RocksStore { db, unlogged })
    }

    /// Stops compactions, which need room before they free some, or lets them go on. Those that run
    /// are not interrupted.
    pub fn pause_compactions(&self, pause: bool) -> Result<(), StoreError> {
        let setting = [("disable_auto_compactions", if pause { "true" } else { "false" })];
        self.db.set_options(&setting).map_err(failed("change its compactions"))
    }

    /// What it tells about itself.
    pub fn figures(&self) -> Result<RocksFigures, StoreError> {
        let property = |name: &str| -> Result<u64, StoreError> {
            Ok(self.db.property_int_value(name).map_err(failed("tell its figures"))?.unwrap_or(0))
        };
        let level_0 = self.db.property_value("rocksdb.num-files-at-level0").map_err(failed("tell its figures"))?;
        Ok(RocksFigures {
            files_bytes: property("rocksdb.live-sst-files-size")?,
            memtables_bytes: property("rocksdb.size-all-mem-tables")?,
            level_0_files: level_0.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            rows: property("rocksdb.estimate-num-keys")?,
            compaction_pending_bytes: property("rocksdb.estimate-pending-compaction-bytes")?,
            compactions: property("rocksdb.num-running-compactions")?,
            flushes: property("rocksdb.num-running-flushes")?,
            delayed_write_bytes_per_second: property("rocksdb.actual-delayed-write-rate")?,
            stopped: property("rocksdb.is-write-stopped")? != 0,
            block_cache_bytes: property("rocksdb.block-cache-usage")?,
            background_errors: property("rocksdb.background-errors")?,
        })
    }

    /// Bytes of live files and memtables, about.
    pub fn size_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for property in ["rocksdb.live-sst-files-size", "rocksdb.size-all-mem-tables"] {
            bytes += self.db.property_int_value(property).map_err(failed("tell its size"))?.unwrap_or(0);
        }
        Ok(bytes)
    }
}

fn database_options(tuned: RocksOptions, env: &Env) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_env(env);
    options.set_max_background_jobs(i32::from(tuned.background_threads.max(2)));
    options.set_max_open_files(i32::from(tuned.open_files_max));
    options.set_write_buffer_size(tuned.memtable_bytes);
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    options.set_min_write_buffer_number_to_merge(MEMTABLES_MERGED);
    options.set_level_zero_file_num_compaction_trigger(LEVEL_0_FILES);
    options.set_target_file_size_base(32 << 20);
    options.set_max_bytes_for_level_base(128 << 20);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options.set_memtable_prefix_bloom_ratio(0.1);
    options.set_memtable_whole_key_filtering(true);
    // Levels count from the one into which level 0 is merged here, whatever its number is: the second entry is where most bytes
    // are written. Only flushes, for which puts may have to wait, do without.
    let mut compression = [DBCompressionType::Lz4; 7];
    compression[0] = DBCompressionType::None;
    options.set_compression_per_level(&compression);
    options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    options.set_bytes_per_sync(1 << 20);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    let mut table = BlockBasedOptions::default();
    table.set_format_version(6);
    table.set_block_size(BLOCK_BYTES);
    table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    table.set_data_block_hash_ratio(0.75);
    table.set_block_cache(&Cache::new_hyper_clock_cache(tuned.block_cache_bytes, BLOCK_BYTES));
    table.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&table);
    options
}

impl View for RocksStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let row = self.db.get_pinned(key).map_err(failed("read a row"))?;
        Ok(row.map(|row| Bytes::copy_from_slice(&row)))
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(&rows.end[..]);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(&rows.start);
        while let Some((key, row)) = iterator.item() {
            if visit(key, row)?.is_break() {
                return Ok(());
            }
            iterator.next();
        }
        // An iterator also ends at an error.
        iterator.status().map_err(failed("scan rows"))
    }
}

impl Store for RocksStore {
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut out = rocksdb::WriteBatch::default();
        for change in batch.changes() {
            match change {
                Change::Put(key, row) => out.put(key, row),
                Change::Delete(key) => out.delete(key),
                Change::DeleteRange(rows) => out.delete_range(&rows.start, &rows.end),
            }
        }
        self.db.write_opt(out, &self.unlogged).map_err(failed("write a batch"))
    }

    fn would_wait(&self) -> bool {
        // What cannot be told is taken for yes.
        let property = |name| !matches!(self.db.property_int_value(name), Ok(Some(0)));
        property("rocksdb.is-write-stopped") || property("rocksdb.actual-delayed-write-rate")
    }

    fn approximate_bytes(&self, rows: &RowRange) -> u64 {
        self.db.get_approximate_sizes(&[rocksdb::Range::new(&rows.start, &rows.end)]).first().copied().unwrap_or(0)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(failed("flush"))
    }

    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError> {
        // Whole files go at once; the rest by a range tombstone and the next compaction.
        self.db.delete_file_in_range(&rows.start, &rows.end).map_err(failed("delete files"))?;
        let mut batch = WriteBatch::default();
        batch.delete_range(rows.clone());
        self.write(&batch)
    }
}

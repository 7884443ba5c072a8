//! `cloudpaxos backup` and `cloudpaxos restore`.

use super::output::{self, Format};
use super::{ClientOptions, OutputOptions};
use crate::backup::{self, Manifest, Progress, Storage};
use crate::config::{StartConfig, StartOptions};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::time::SystemTime;

/// Far more revisions than a cluster gives out between a backup and the moment when it is lost: a million
/// a second, for a quarter of an hour. Numbers are 64 bits wide.
const REVISION_BUMP: u64 = 1_000_000_000;

/// The commands about backups.
#[derive(Subcommand, Debug)]
pub enum BackupCommand {
    /// Back up all keys as they are now, while the cluster goes on.
    #[command(after_help = "\
A backup that was cut short has no manifest, is listed as incomplete, and cannot be restored.

Examples:
  cloudpaxos backup create --to /var/backups/cloudpaxos
  cloudpaxos backup create --to s3://bucket/cloudpaxos --name before-the-upgrade
S3 takes credentials, region and endpoint from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT and the like.")]
    Create(CreateOptions),
    /// List the backups in a place.
    List(PlaceOptions),
    /// Read a backup and check all of it.
    Verify(VerifyOptions),
    /// Delete all but the newest backups, and what was cut short before the newest.
    #[command(after_help = "\
Without a complete backup nothing is deleted.

Example:
  cloudpaxos backup prune --from /var/backups/cloudpaxos --keep 7")]
    Prune(PruneOptions),
}

/// How many backups to keep.
#[derive(Args, Clone, Debug)]
pub struct PruneOptions {
    /// So many of the newest complete ones stay.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
    #[command(flatten)]
    place: PlaceOptions,
}

/// What to back up, and where.
#[derive(Args, Clone, Debug)]
pub struct CreateOptions {
    /// A directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE", env = "CLOUDPAXOS_BACKUP_TO", hide_env_values = true)]
    to: String,
    /// Its name there [default: the time].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    client: ClientOptions,
}

/// A place with backups.
#[derive(Args, Clone, Debug)]
pub struct PlaceOptions {
    /// A directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE", env = "CLOUDPAXOS_BACKUP_FROM", hide_env_values = true)]
    from: String,
    #[command(flatten)]
    output: OutputOptions,
}

/// A backup.
#[derive(Args, Clone, Debug)]
pub struct VerifyOptions {
    /// Its name, as `cloudpaxos backup list` shows it.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    place: PlaceOptions,
}

/// Settings of `cloudpaxos restore`: those of `start`, and what to restore.
#[derive(Args, Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Where backups lie: a directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE", env = "CLOUDPAXOS_BACKUP_FROM", hide_env_values = true)]
    pub from: Option<String>,
    /// The backup's name there [default: the newest complete one].
    #[arg(long, value_name = "NAME")]
    pub backup: Option<String>,
    /// The new cluster's revisions begin so far above the backup's, above all that the old cluster has given
    /// out since [default: 1000000000].
    #[arg(long, value_name = "N")]
    pub revision_bump: Option<String>,
    /// As for `start`.
    #[command(flatten)]
    pub start: StartOptions,
}

/// Does what was typed.
pub(super) async fn run(command: BackupCommand) -> Result<(), Failure> {
    match command {
        BackupCommand::Create(options) => create(options).await,
        BackupCommand::List(options) => list(options).await,
        BackupCommand::Verify(options) => verify(options).await,
        BackupCommand::Prune(options) => prune(options).await,
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    match !name.is_empty() && name.len() <= 200 && name.bytes().all(allowed) && !name.starts_with('.') {
        true => Ok(()),
        false => Err(Failure::Usage(format!("`{name}` is no name; write letters, digits, dots, dashes, underscores"))),
    }
}

/// Whether a name is one that `create` gives by itself, as in 20261125T120000Z.
fn is_time(name: &str) -> bool {
    let digit_or = |(at, byte): (usize, u8)| match at {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    name.len() == 16 && name.bytes().enumerate().all(digit_or)
}

fn bar(keys: u64) -> ProgressBar {
    let bar = ProgressBar::new(keys);
    let style = ProgressStyle::with_template("{bar:30} {human_pos} of {human_len} keys, {elapsed}, {msg}{eta} left");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn create(options: CreateOptions) -> Result<(), Failure> {
    let created = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let name = options.name.clone().unwrap_or_else(|| created.replace([':', '-'], ""));
    check_name(&name)?;
    let storage = Storage::open(&options.to, true)?;
    let client = options.client.client()?;
    let bar = bar(0);
    let progress = |progress: Progress| {
        bar.set_length(progress.keys_in_all);
        bar.set_position(progress.keys);
    };
    let manifest = backup::create(&client, &storage, &name, created, progress).await;
    bar.finish_and_clear();
    let manifest = manifest?;
    match options.client.output.output {
        Format::Json => output::json(&json!({ "name": name, "manifest": manifest })),
        Format::Table => output::line(format!(
            "backup {name} of {} keys at revision {}, {} bytes in {} parts ({} stored)",
            manifest.keys,
            manifest.revision,
            manifest.bytes,
            manifest.parts.len(),
            manifest.stored_bytes()
        )),
    }
}

async fn list(options: PlaceOptions) -> Result<(), Failure> {
    let storage = Storage::open(&options.from, false)?;
    let mut found: Vec<(String, Result<Manifest, backup::BackupError>)> = Vec::new();
    for name in storage.list().await?.into_keys() {
        let manifest = storage.manifest(&name).await;
        found.push((name, manifest));
    }
    if options.output.output == Format::Json {
        let entry = |(name, manifest): &(String, Result<Manifest, backup::BackupError>)| match manifest {
            Ok(manifest) => json!({ "name": name, "complete": true, "manifest": manifest }),
            Err(error) => json!({ "name": name, "complete": false, "problem": error.to_string() }),
        };
        return output::json(&json!({ "backups": found.iter().map(entry).collect::<Vec<_>>() }));
    }
    let row = |(name, manifest): (String, Result<Manifest, backup::BackupError>)| match manifest {
        Ok(manifest) => vec![
            name,
            manifest.created.clone(),
            manifest.revision.to_string(),
            manifest.keys.to_string(),
            manifest.bytes.to_string(),
            manifest.stored_bytes().to_string(),
            manifest.cluster_id,
        ],
        Err(backup::BackupError::Incomplete { .. }) => {
            [name, "incomplete".into(), "-".into(), "-".into(), "-".into(), "-".into(), "-".into()].into()
        }
        Err(error) => [name, error.to_string(), "-".into(), "-".into(), "-".into(), "-".into(), "-".into()].into(),
    };
    output::table(&["NAME", "CREATED", "REVISION", "KEYS", "BYTES", "STORED", "CLUSTER"], found.into_iter().map(row))
}

async fn verify(options: VerifyOptions) -> Result<(), Failure> {
    let storage = Storage::open(&options.place.from, false)?;
    let bar = bar(storage.manifest(&options.name).await?.keys);
    let verified = backup::verify(&storage, &options.name, |keys| bar.inc(keys)).await;
    bar.finish_and_clear();
    let manifest = verified?;
    match options.place.output.output {
        Format::Json => output::json(&json!({ "name": options.name, "good": true, "manifest": manifest })),
        Format::Table => output::line(format!(
            "{} is good: {} keys at revision {}, {} parts",
            options.name,
            manifest.keys,
            manifest.revision,
            manifest.parts.len()
        )),
    }
}

async fn prune(options: PruneOptions) -> Result<(), Failure> {
    let storage = Storage::open(&options.place.from, false)?;
    let (mut complete, mut incomplete) = (Vec::new(), Vec::new());
    for (name, whole) in storage.list().await? {
        match (whole, storage.manifest(&name).await) {
            (true, Ok(manifest)) => complete.push((manifest.created, name)),
            // Not ours to judge; and one that is unreadable must not keep the rest from being cleaned up.
            (true, Err(error)) => eprintln!("cloudpaxos: left alone: {error}"),
            (false, _) => incomplete.push(name),
        }
    }
    complete.sort();
    let newest = complete.last().map(|(_, name)| name.clone());
    let surplus = complete.len().saturating_sub(options.keep as usize);
    let mut deleted: Vec<String> = complete.drain(..surplus).map(|(_, name)| name).collect();
    // Only where both names are times, by which one that is being made now comes behind the newest.
    let older = |name: &String| newest.as_ref().is_some_and(|newest| is_time(name) && is_time(newest) && name < newest);
    deleted.extend(incomplete.into_iter().filter(older));
    for name in &deleted {
        storage.delete(name).await?;
    }
    match options.place.output.output {
        Format::Json => output::json(&json!({ "deleted": deleted })),
        Format::Table if deleted.is_empty() => output::line("nothing to delete"),
        Format::Table => deleted.iter().try_for_each(|name| output::line(format!("deleted {name}"))),
    }
}

/// Fills the configured node's directory.
pub(super) async fn restore(options: RestoreOptions, config: StartConfig) -> Result<(), Failure> {
    let missing = || Failure::Usage("--from is missing: say where backups lie".into());
    let storage = Storage::open(&options.from.ok_or_else(missing)?, false)?;
    let bump = match options.revision_bump {
        Some(text) => {
            let parsed = text.parse().ok().filter(|bump| *bump > 0);
            parsed.ok_or_else(|| Failure::Usage(format!("--revision-bump: `{text}` is no whole number above 0")))?
        }
        None => REVISION_BUMP,
    };
    let name = match options.backup {
        Some(name) => name,
        None => newest(&storage).await?,
    };
    let bar = bar(storage.manifest(&name).await?.keys);
    let restored = backup::restore(&config, &storage, &name, bump, |keys| bar.inc(keys)).await;
    bar.finish_and_clear();
    let restored = restored?;
    let (node, cluster) = (&restored.identity.name, restored.identity.cluster_id);
    match restored.already {
        true => output::line(format!("{node} was restored from {name} before; nothing is to be done")),
        false => output::line(format!(
            "{node} of the new cluster {cluster:016x} has {} keys from {name}, and its revisions begin above {}; restore \
             the other nodes from the same backup, then start all",
            restored.keys, restored.floor
        )),
    }?;
    match restored.identity.genesis.descent {
        Some(descent) => output::line(format!("nodes that join it later need --descent {descent}")),
        None => Ok(()),
    }
}

async fn newest(storage: &Storage) -> Result<String, Failure> {
    let mut newest: Option<(String, String)> = None;
    for (name, complete) in storage.list().await? {
        match storage.manifest(&name).await {
            Ok(manifest) if complete => newest = newest.max(Some((manifest.created, name))),
            Err(error) if complete => eprintln!("cloudpaxos: passed over: {error}"),
            Ok(_) | Err(_) => {}
        }
    }
    let none = || Failure::NotFound(format!("{}: there is no complete backup", storage.place()));
    newest.map(|(_, name)| name).ok_or_else(none)
}

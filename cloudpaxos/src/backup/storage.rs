//! Where backups lie: a directory, or a bucket.

use super::BackupError;
use super::manifest::{self, Manifest};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An error in one line: S3 answers with a page of XML, whose message is what matters.
fn brief(error: &object_store::Error) -> String {
    let text = error.to_string();
    let message = text.split_once("<Message>").and_then(|(_, rest)| rest.split_once("</Message>"));
    let line = text.lines().next().unwrap_or_default().split(" - Server returned").next().unwrap_or_default();
    match message {
        Some((message, _)) => message.to_owned(),
        None => line.to_owned(),
    }
}

/// Whether a file is one that a backup has.
fn is_ours(file: &str) -> bool {
    let number = file.strip_prefix("part-").and_then(|rest| rest.strip_suffix(".lz4"));
    file == manifest::FILE
        || number.is_some_and(|number| number.len() >= 6 && number.bytes().all(|b| b.is_ascii_digit()))
}

/// A place with backups.
#[derive(Clone)]
pub struct Storage {
    place: String,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Storage {
    /// Opens `s3://BUCKET/PREFIX`, with credentials, region and endpoint from the environment as AWS' own
    /// tools take them, or a directory, which is made if `create` is given.
    pub fn open(place: &str, create: bool) -> Result<Storage, BackupError> {
        let problem = |problem: String| BackupError::Place { place: place.to_owned(), problem };
        if let Some(rest) = place.strip_prefix("s3://") {
            // The first call wins, and all want the same.
            drop(rustls::crypto::ring::default_provider().install_default());
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
            let store = Arc::new(store.map_err(|error| problem(error.to_string()))?);
            let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| problem(error.to_string()))?;
            return Ok(Storage { place: place.to_owned(), store, prefix });
        }
        if place.contains("://") {
            return Err(problem("write a directory, or s3://BUCKET/PREFIX".into()));
        }
        if create {
            std::fs::create_dir_all(place).map_err(|error| problem(format!("cannot make the directory: {error}")))?;
        }
        if std::path::Path::new(place).is_file() {
            return Err(problem("that is a file; give the directory that the backups lie in".into()));
        }
        let store = LocalFileSystem::new_with_prefix(place).map_err(|error| problem(error.to_string()))?;
        Ok(Storage { place: place.to_owned(), store: Arc::new(store.with_fsync(true)), prefix: Path::default() })
    }

    /// As it was written.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn path(&self, name: &str, file: &str) -> Path {
        self.prefix.clone().join(name).join(file)
    }

    fn failed(&self, action: &str, error: object_store::Error) -> BackupError {
        BackupError::Place { place: self.place.clone(), problem: format!("cannot {action}: {}", brief(&error)) }
    }

    /// Writes a file, as a whole or not at all.
    pub(super) async fn put(&self, name: &str, file: &str, bytes: Bytes) -> Result<(), BackupError> {
        let put = self.store.put(&self.path(name, file), bytes.into()).await;
        put.map(drop).map_err(|error| self.failed(&format!("write {name}/{file}"), error))
    }

    /// Reads a file; `None` where there is none.
    pub(super) async fn get(&self, name: &str, file: &str) -> Result<Option<Bytes>, BackupError> {
        let failed = |error| self.failed(&format!("read {name}/{file}"), error);
        match self.store.get(&self.path(name, file)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Deletes a backup: the manifest first, so that what is left of a deletion that was cut short is no backup.
    pub async fn delete(&self, name: &str) -> Result<(), BackupError> {
        let prefix = self.prefix.clone().join(name);
        let failed = |error| self.failed(&format!("delete {name}"), error);
        let mut files: Vec<Path> =
            self.store.list(Some(&prefix)).map_ok(|file| file.location).try_collect().await.map_err(failed)?;
        // Of the backup itself: neither other files beside them, nor anything deeper.
        files.retain(|file| file.filename().is_some_and(is_ours) && file.parts_count() == prefix.parts_count() + 1);
        files.sort_by_key(|file| file.filename() != Some(manifest::FILE));
        for file in files {
            match self.store.delete(&file).await {
                // Somebody else was faster.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// A file's length; `None` where there is none.
    pub(super) async fn length(&self, name: &str, file: &str) -> Result<Option<u64>, BackupError> {
        match self.store.head(&self.path(name, file)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&format!("look at {name}/{file}"), error)),
        }
    }

    /// A backup's manifest.
    pub async fn manifest(&self, name: &str) -> Result<Manifest, BackupError> {
        match self.get(name, manifest::FILE).await? {
            Some(bytes) => Manifest::decode(&format!("{name}/{}", manifest::FILE), &bytes),
            None if self.list().await?.contains_key(name) => Err(BackupError::Incomplete { name: name.to_owned() }),
            None => Err(BackupError::Place {
                place: self.place.clone(),
                problem: format!("there is no backup called {name}; `cloudpaxos backup list` shows those that are"),
            }),
        }
    }

    /// Names of backups, those that were cut short among them, with whether they have a manifest.
    pub async fn list(&self) -> Result<BTreeMap<String, bool>, BackupError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let mut files = self.store.list(prefix);
        let mut names = BTreeMap::new();
        while let Some(file) = files.try_next().await.map_err(|error| self.failed("list backups", error))? {
            let Some(below) = file.location.prefix_match(&self.prefix) else { continue };
            let parts: Vec<String> = below.map(|part| part.as_ref().to_owned()).collect();
            // Whatever else lies there is none of ours.
            if let [name, file] = &parts[..]
                && is_ours(file)
            {
                *names.entry(name.clone()).or_insert(false) |= file == manifest::FILE;
            }
        }
        Ok(names)
    }
}

use super::manifest::{self, Manifest, PartInfo, sha256};
use super::*;
use lz4_flex::frame::FrameEncoder;
use prost::Message;
use proto::mvccpb::KeyValue;
use std::io::Write;
use tempfile::TempDir;

fn pair(key: &str, revision: i64) -> KeyValue {
    let (key, value) = (key.to_owned().into(), vec![b'v'; 100].into());
    KeyValue { key, value, create_revision: 1, mod_revision: revision, version: 1, lease: 0 }
}

fn part(file: &str, pairs: &[KeyValue]) -> (PartInfo, Vec<u8>) {
    let mut raw = Vec::new();
    pairs.iter().for_each(|pair| pair.encode_length_delimited(&mut raw).expect("a vector grows"));
    let mut packed = FrameEncoder::new(Vec::new());
    packed.write_all(&raw).expect("a vector grows");
    let stored = packed.finish().expect("a vector grows");
    let info = PartInfo {
        file: file.to_owned(),
        keys: pairs.len() as u64,
        raw_bytes: raw.len() as u64,
        stored_bytes: stored.len() as u64,
        sha256: sha256(&stored),
    };
    (info, stored)
}

/// A backup `b` of two parts at revision 10, as `change` changes it before it is written.
async fn written(parts: [&[KeyValue]; 2], change: impl Fn(&mut Manifest, &mut [Vec<u8>; 2])) -> (TempDir, Storage) {
    let directory = tempfile::tempdir().expect("a directory");
    let storage = Storage::open(directory.path().to_str().expect("UTF-8"), true).expect("a place");
    let (one, two) = (part("part-000001.lz4", parts[0]), part("part-000002.lz4", parts[1]));
    let mut manifest = Manifest { revision: 10, incarnation: 1, ..Manifest::new(7, "2026-11-25T12:00:00Z".into()) };
    manifest.keys = one.0.keys + two.0.keys;
    manifest.parts = vec![one.0, two.0];
    let mut stored = [one.1, two.1];
    change(&mut manifest, &mut stored);
    for (info, bytes) in ["part-000001.lz4", "part-000002.lz4"].iter().zip(stored) {
        storage.put("b", info, bytes.into()).await.expect("it is written");
    }
    storage.put("b", manifest::FILE, manifest.encode().into()).await.expect("it is written");
    (directory, storage)
}

#[tokio::test]
async fn a_good_backup_is_read_back_in_order() {
    let (_directory, storage) = written([&[pair("a", 3), pair("b", 10)], &[pair("c", 1)]], |_, _| {}).await;
    let manifest = verify(&storage, "b", |_| {}).await.expect("it is good");
    assert_eq!((manifest.keys, manifest.revision, manifest.number().expect("an id")), (3, 10, 7));
    let mut reading = Reading::open(&storage, "b").await.expect("it opens");
    let mut keys = Vec::new();
    while let Some(pairs) = reading.part().await.expect("it is good") {
        keys.extend(pairs.into_iter().map(|pair| pair.key));
    }
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(storage.list().await.expect("a list").into_iter().collect::<Vec<_>>(), [("b".to_owned(), true)]);
}

#[tokio::test]
async fn whatever_is_wrong_is_found() {
    type Change = fn(&mut Manifest, &mut [Vec<u8>; 2]);
    let good: [&[KeyValue]; 2] = [&[pair("a", 3), pair("b", 10)], &[pair("c", 1)]];
    let cases: [(&str, [&[KeyValue]; 2], Change, &str); 9] = [
        ("a flipped bit", good, |_, parts| parts[1][9] ^= 1, "checksum does not match"),
        ("a part cut short", good, |_, parts| parts[0].truncate(20), "bytes, not"),
        ("a key too few", good, |manifest, _| manifest.keys = 2, "it says 2 keys, and there are 3"),
        ("a part's keys", good, |manifest, _| manifest.parts[0].keys = 3, "holds 2 keys, not 3"),
        ("a bomb", good, |manifest, _| manifest.parts[0].raw_bytes = 1 << 40, "would unpack to"),
        ("more than said", good, |manifest, _| manifest.parts[0].raw_bytes -= 1, "unpacks to other than"),
        ("out of order", [&[pair("b", 3)], &[pair("a", 3)]], |_, _| {}, "the key `a` has no place"),
        ("from the future", [&[pair("b", 11)], &[pair("c", 3)]], |_, _| {}, "the key `b` has no place"),
        ("an empty key", [&[pair("", 3)], &[pair("c", 3)]], |_, _| {}, "has no place"),
    ];
    for (what, parts, change, expected) in cases {
        let (_directory, storage) = written(parts, change).await;
        let error = verify(&storage, "b", |_| {}).await.expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_manifest_is_believed_only_whole_and_of_this_format() {
    let (directory, storage) = written([&[pair("a", 3)], &[pair("b", 3)]], |_, _| {}).await;
    let path = directory.path().join("b").join(manifest::FILE);
    let text = std::fs::read_to_string(&path).expect("readable");
    let complaint = async |text: Option<String>| {
        match text {
            Some(text) => std::fs::write(&path, text).expect("writable"),
            None => std::fs::remove_file(&path).expect("writable"),
        }
        storage.manifest("b").await.expect_err("it is not good").to_string()
    };
    assert!(complaint(Some(text.replace("\"revision\": 10", "\"revision\": 11"))).await.contains("checksum"));
    assert!(complaint(Some(text[..text.len() / 2].to_owned())).await.contains("checksum"));
    let later = Manifest { format: 2, ..Manifest::new(7, String::new()) };
    assert!(complaint(Some(String::from_utf8(later.encode()).expect("text"))).await.contains("format 2"));
    assert!(complaint(None).await.contains("was cut short"));
    assert_eq!(storage.list().await.expect("a list").get("b"), Some(&false));
}

#[tokio::test]
async fn what_lies_beside_backups_is_left_alone() {
    let (directory, storage) = written([&[pair("a", 3)], &[pair("b", 3)]], |_, _| {}).await;
    let foreign =
        ["0photos/holiday.jpg", "0photos/part-000001.lz4/deep", "b/notes.txt", "b/part-1", "c/x/manifest.json"];
    for file in foreign {
        let path = directory.path().join(file);
        std::fs::create_dir_all(path.parent().expect("below")).expect("writable");
        std::fs::write(path, "mine").expect("writable");
    }
    assert_eq!(storage.list().await.expect("a list").into_keys().collect::<Vec<_>>(), ["b"]);
    storage.delete("b").await.expect("deleted");
    storage.delete("0photos").await.expect("nothing to delete");
    assert!(foreign.iter().all(|file| directory.path().join(file).exists()));
    assert!(!directory.path().join("b").join(manifest::FILE).exists());
    assert!(!directory.path().join("b/part-000001.lz4").exists());
}

#[test]
fn a_place_is_a_directory_or_a_bucket() {
    let complaint = |place: &str| Storage::open(place, false).map(drop).expect_err("no place").to_string();
    assert!(complaint("/nowhere/at/all").contains("/nowhere/at/all"));
    assert!(complaint("gopher://x").contains("s3://BUCKET/PREFIX"));
}

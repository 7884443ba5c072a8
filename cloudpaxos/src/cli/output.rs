//! How answers look: tables for people, JSON for programs.
//!
//! In JSON a key or value is a text where its bytes are UTF-8, and otherwise an object
//! `{"hex": "…"}`. In tables, what is not printable appears as `\xHH`.

use crate::failure::Failure;
use bytes::Bytes;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};

/// How to show an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Prints a JSON document.
pub(super) fn json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::Run(format!("cannot write the answer as JSON: {error}")))?;
    line(text)
}

/// Prints what a change has led to: a document for programs, a sentence for people.
pub(super) fn outcome(format: Format, document: &Value, sentence: impl AsRef<[u8]>) -> Result<(), Failure> {
    match format {
        Format::Json => json(document),
        Format::Table => line(sentence),
    }
}

/// Tells people on standard error what they may not have thought of; programs know what they do.
pub(super) fn note(format: Format, text: impl std::fmt::Display) {
    if format == Format::Table {
        eprintln!("cloudpaxos: note: {text}");
    }
}

/// Prints a line.
pub(super) fn line(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_ref()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    match written {
        // Whoever reads us has read enough (`| head`).
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Io { action: "write to standard output".to_owned(), error }),
        Ok(()) => Ok(()),
    }
}

/// Prints a table with this head.
pub(super) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.to_vec());
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    // The first column needs no space before it, the last none behind.
    let text: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    line(text.join("\n"))
}

/// Bytes for people.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => c.to_string().bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}"))),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Bytes as people write them: as [`shown`] shows them. `what` is where they were written.
pub(super) fn written(what: &str, text: &str) -> Result<Bytes, Failure> {
    crate::config::key(text).map(Bytes::from).map_err(|why| Failure::Usage(format!("{what}: {why}")))
}

/// Bytes for programs.
pub(super) fn value(bytes: &Bytes) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}

/// `cloudpaxos version`.
pub(super) fn version(format: Format) -> Result<(), Failure> {
    match format {
        Format::Table => line(format!("cloudpaxos {}", crate::VERSION)),
        Format::Json => json(&json!({ "version": crate::VERSION })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people_are_printable_and_unambiguous() {
        assert_eq!(shown("größe/1".as_bytes()), "größe/1");
        assert_eq!(shown(b"a\0b\n\xff\\"), r"a\x00b\x0a\xff\\");
        assert_ne!(shown(b"\\x00"), shown(b"\0"));
    }

    #[test]
    fn what_is_shown_can_be_given_back() {
        for bytes in [&b"a\0b\n\xff\\"[..], "größe/1, \u{85}".as_bytes(), b"\\x00", b"\\,\"' ", b""] {
            let back = written("--at", &shown(bytes)).expect("it reads what it writes");
            assert_eq!(back, bytes, "{}", shown(bytes));
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(written("--at", &shown(&all)).expect("every byte"), all);
        let bad = written("--at", r"a\n").expect_err("no such escape");
        assert!(bad.exit_code() == 2 && bad.to_string().starts_with(r"--at: `a\n`: a backslash starts"), "{bad}");
    }

    #[test]
    fn bytes_for_programs_are_text_or_hex() {
        assert_eq!(value(&Bytes::from_static(b"a\n")), json!("a\n"));
        assert_eq!(value(&Bytes::from_static(b"\xff\x01")), json!({ "hex": "ff01" }));
    }
}

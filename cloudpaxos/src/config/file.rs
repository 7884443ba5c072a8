//! The configuration file: a flat TOML table whose keys are the settings' names.

use super::error::ConfigError;
use super::layers::{Origin, Raw, Setting, nearest};
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// No configuration is this long; somebody gave the wrong file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads a file; every key must be among `known`.
pub(super) fn read(path: &Path, known: &[&str]) -> Result<BTreeMap<String, Setting>, ConfigError> {
    let unreadable = |error| ConfigError::FileUnreadable { path: path.to_owned(), error };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        let message = format!("the file has {size} bytes, at most {FILE_BYTES_MAX} are read");
        return Err(ConfigError::FileSyntax { path: path.to_owned(), line: 1, message });
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(path, &text, known)
}

fn parse(path: &Path, text: &str, known: &[&str]) -> Result<BTreeMap<String, Setting>, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::FileSyntax {
        path: path.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().lines().collect::<Vec<_>>().join(" "),
    })?;
    let mut settings = BTreeMap::new();
    for (key, value) in table.get_ref() {
        let line = line_of(text, key.span().start);
        let key: &str = key.get_ref();
        if !known.contains(&key) {
            let nearest = nearest(key, known);
            return Err(ConfigError::UnknownKey { path: path.to_owned(), line, key: key.to_owned(), nearest });
        }
        let origin = Origin::File { path: path.to_owned(), line, key: key.to_owned() };
        let Some(raw) = raw(value.get_ref()) else {
            let problem = "takes a text, a number, true or false, or a list of those".to_owned();
            return Err(ConfigError::BadValue { origin, problem });
        };
        settings.insert(key.to_owned(), Setting { raw, origin });
    }
    Ok(settings)
}

fn raw(value: &DeValue<'_>) -> Option<Raw> {
    match value {
        DeValue::Array(elements) => {
            elements.iter().map(|element| scalar(element.get_ref())).collect::<Option<Vec<_>>>().map(Raw::Many)
        }
        _ => scalar(value).map(Raw::One),
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

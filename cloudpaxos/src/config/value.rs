//! Parsers of single values: numbers with a unit and bounds, switches, keys with escapes.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A whole number within bounds.
pub(super) fn number(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let (low, high) = (bounds.start(), bounds.end());
    match text.replace('_', "").parse::<u64>() {
        Ok(number) if bounds.contains(&number) => Ok(number),
        _ => Err(format!("`{text}` is no whole number between {low} and {high}")),
    }
}

/// Milliseconds within bounds.
pub(super) fn milliseconds(text: &str, bounds: RangeInclusive<u64>) -> Result<Duration, String> {
    number(text, bounds).map(Duration::from_millis).map_err(|problem| format!("{problem} (milliseconds)"))
}

/// Bytes: a whole number, or a number with KiB, MiB or GiB.
pub(super) fn bytes(text: &str, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
    let (digits, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), *unit))).unwrap_or((text, 1));
    let size = match digits.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit),
        // A fraction of a unit, as in 1.5MiB: exact for every size that anybody writes.
        Err(_) if unit > 1 => digits
            .parse::<f64>()
            .ok()
            .filter(|size| size.is_finite() && *size >= 0.0 && *size < 1e9)
            .map(|size| (size * unit as f64).round() as u64),
        Err(_) => None,
    };
    match size {
        Some(size) if bounds.contains(&size) => Ok(size),
        Some(size) => Err(format!("{size} bytes are not between {} and {}", bounds.start(), bounds.end())),
        None => Err(format!("`{text}` is no number of bytes; write for instance 1572864, 512KiB or 1.5MiB")),
    }
}

/// A switch.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let known = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("`{text}` is unknown; one of: {}", known()))
}

/// A key: text, with `\xHH` for a byte, `\\` for a backslash and `\,` for a comma.
pub(crate) fn key(text: &str) -> Result<Vec<u8>, String> {
    let mut key = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'\\' {
            key.push(byte);
            continue;
        }
        let escaped = match rest {
            [b'x', high, low, ..] => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(*high).zip(digit(*low)).map(|(high, low)| (high << 4 | low, 3))
            }
            [c @ (b'\\' | b','), ..] => Some((*c, 1)),
            _ => None,
        };
        let Some((value, length)) = escaped else {
            return Err(format!("`{text}`: a backslash starts \\xHH, \\\\ or \\,"));
        };
        key.push(value);
        rest = &rest[length..];
    }
    Ok(key)
}

/// Splits a list of keys at its commas, but not at `\,`.
pub(super) fn split_keys(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, parts.last_mut()) {
            (',', _) => parts.push(String::new()),
            (c, Some(part)) => {
                part.push(c);
                if c == '\\' {
                    part.extend(characters.next());
                }
            }
            (_, None) => {}
        }
    }
    parts
}

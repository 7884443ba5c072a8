//! Bytes as readable text in a history's file: printable ASCII stays, the rest is `\xNN`.

use bytes::Bytes;

/// Writes bytes so that [`unescape`] gives them back and a person can read them.
pub(crate) fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// The inverse of [`escape`]; `None` for text that `escape` never writes.
pub(crate) fn unescape(text: &str) -> Option<Bytes> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            other @ (b'\\' | b'\'' | b'"') => other,
            _ => return None,
        });
    }
    Some(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&all)), Some(Bytes::from(all)));
    }

    #[test]
    fn broken_text_is_refused() {
        for broken in ["\\", "\\x1", "\\xzz", "\\q"] {
            assert_eq!(unescape(broken), None, "{broken}");
        }
    }
}

//! The file of seeds that once failed.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regression {
    /// The seed.
    pub seed: u64,
    /// With how many simulated seconds with faults it failed, where these were not as many as by default: a seed is
    /// another one with others.
    pub seconds: Option<u64>,
}

/// Reads such a file: a line has a seed, or a seed and seconds, and text behind `#` is a comment. The error says which
/// line is none.
pub fn parse(text: &str) -> Result<Vec<Regression>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<Regression, String> {
    let number =
        |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?} in {line:?} is no number: {error}"));
    let mut fields = line.split_whitespace().map(number);
    let seed = fields.next().ok_or_else(|| format!("{line:?} has no seed"))??;
    let seconds = fields.next().transpose()?;
    if fields.next().is_some() {
        return Err(format!("{line:?} has more than a seed and seconds; a comment begins with #"));
    }
    Ok(Regression { seed, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_seed_or_a_seed_and_seconds() {
        let read = parse("# seeds\n22 # a storm\n\n  441   60  # likewise\n");
        let regression = |seed, seconds| Regression { seed, seconds };
        assert_eq!(read, Ok(vec![regression(22, None), regression(441, Some(60))]));
        for wrong in ["x", "1 y", "1 2 3", "-1", "18446744073709551616"] {
            assert!(parse(wrong).is_err_and(|error| error.contains(wrong)), "{wrong}");
        }
    }
}

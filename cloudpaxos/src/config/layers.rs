//! What was written, and where: flags over environment over file.

use super::error::{ConfigError, variable};
use super::file;
use clap::ArgMatches;
use clap::parser::ValueSource;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line, as this flag.
    Flag(String),
    /// In this environment variable.
    Variable(String),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// Nowhere: our default.
    Default(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "--{name}"),
            Origin::Variable(name) => write!(f, "{name}"),
            Origin::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
            Origin::Default(name) => write!(f, "--{name} (default)"),
        }
    }
}

/// A setting as written. A list may be one text with commas, or a TOML array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    /// One text.
    One(String),
    /// An array's elements.
    Many(Vec<String>),
}

/// A setting as written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// All settings that somebody wrote, the strongest layer of each.
#[derive(Debug, Default)]
pub(super) struct Layers {
    settings: BTreeMap<String, Setting>,
}

impl Layers {
    /// Collects the layers of a parsed subcommand: `command` lists its arguments, `matches` holds
    /// what flags and environment gave, and its `--config` names the file.
    pub(super) fn collect(command: &clap::Command, matches: &ArgMatches) -> Result<Layers, ConfigError> {
        let known: Vec<&str> = settings_of(command).collect();
        let mut layers = Layers::default();
        if let Some(path) = matches.try_get_one::<PathBuf>("config").ok().flatten() {
            layers.settings = file::read(path, &known)?;
        }
        for argument in command.get_arguments() {
            let (Some(name), id) = (argument.get_long(), argument.get_id().as_str()) else { continue };
            let Ok(Some(value)) = matches.try_get_one::<String>(id) else { continue };
            let origin = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Origin::Flag(name.to_owned()),
                Some(ValueSource::EnvVariable) => Origin::Variable(variable(name)),
                _ => continue,
            };
            layers.settings.insert(name.to_owned(), Setting { raw: Raw::One(value.clone()), origin });
        }
        Ok(layers)
    }

    /// A setting's value and origin; `default` where nobody wrote one.
    pub(super) fn get(&self, key: &str, default: &str) -> Setting {
        self.find(key)
            .cloned()
            .unwrap_or_else(|| Setting { raw: Raw::One(default.to_owned()), origin: Origin::Default(key.to_owned()) })
    }

    /// A setting, if somebody wrote it.
    pub(super) fn find(&self, key: &str) -> Option<&Setting> {
        self.settings.get(key)
    }
}

impl Setting {
    /// The text of a setting that is no list.
    pub(super) fn text(&self) -> Result<&str, ConfigError> {
        match &self.raw {
            Raw::One(text) if text.trim().is_empty() => Err(self.bad("is empty")),
            Raw::One(text) => Ok(text.trim()),
            Raw::Many(_) => Err(self.bad("is a list, but takes one value")),
        }
    }

    /// As text that may be empty, where that means that nothing is said.
    pub(super) fn text_or_nothing(&self) -> Result<&str, ConfigError> {
        match &self.raw {
            Raw::One(text) if text.trim().is_empty() => Ok(""),
            _ => self.text(),
        }
    }

    /// The elements of a list.
    pub(super) fn list(&self) -> Vec<&str> {
        match &self.raw {
            Raw::One(text) => text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect(),
            Raw::Many(parts) => parts.iter().map(String::as_str).collect(),
        }
    }

    /// A complaint about this setting.
    pub(super) fn bad(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::BadValue { origin: self.origin.clone(), problem: problem.into() }
    }
}

/// The settings of a subcommand: its long flags, without those that steer the parser itself.
pub(super) fn settings_of(command: &clap::Command) -> impl Iterator<Item = &str> {
    command
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|name| !matches!(*name, "config" | "help" | "version"))
}

/// Variables that look like settings of ours but are none, with the nearest that is. Only worth a
/// warning: Kubernetes sets `CLOUDPAXOS_PORT` and others for a service of that name.
pub fn unknown_variables<'a>(names: impl Iterator<Item = &'a str>, command: &clap::Command) -> Vec<(String, String)> {
    // The client commands' variable may well be set for them.
    let known: Vec<&str> = settings_of(command).chain(["config", "endpoints"]).collect();
    let suspicious = |name: &'a str| {
        let setting = name.strip_prefix("CLOUDPAXOS_")?;
        let known_already = known.iter().any(|known| variable(known) == name);
        let meant = nearest(setting, &known).filter(|_| !known_already)?;
        Some((name.to_owned(), variable(&meant)))
    };
    names.filter_map(suspicious).collect()
}

/// The known word that looks most like `word`, if any is close enough to be meant.
pub(super) fn nearest(word: &str, known: &[&str]) -> Option<String> {
    let distance =
        |candidate: &str| edits(&word.to_lowercase().replace('_', "-"), &candidate.to_lowercase().replace('_', "-"));
    let best = known.iter().min_by_key(|candidate| (distance(candidate), candidate.len()))?;
    (distance(best) <= 1 + word.len() / 4).then(|| (*best).to_owned())
}

/// The Levenshtein distance: insertions, deletions and replacements from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

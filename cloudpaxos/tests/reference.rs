//! docs/configuration.md is written by this test from the settings themselves: `UPDATE_GOLDENFILES=1` writes
//! it, otherwise it must be what would be written.

use clap::CommandFactory;
use cloudpaxos::cli::Cli;
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = "\
# Configuration

Every setting of `cloudpaxos start` and `cloudpaxos dev`, written from the code by `cloudpaxos/tests/reference.rs`.

A setting has one name: its long flag. The same name is its key in the file that `--config` names (TOML), and in
capitals behind `CLOUDPAXOS_`, with `_` for `-`, its variable in the environment. Flags win over the environment, the
environment over the file, the file over the default. What is wrong is refused before anything is opened, in one line
that says where it was written: the flag, the variable, or the file with its line.

Bytes are a number, or one with KiB, MiB or GiB. Lists are texts with commas, or TOML arrays.
`cloudpaxos restore` takes the settings of `start`, too.
";

/// A cell of a table: on one line, with what Markdown would take for its own escaped.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

/// What stands behind `[default: …]` in a help text, and the text without it.
fn split_default(help: &str) -> (String, String) {
    match help.rsplit_once("[default: ") {
        Some((text, rest)) => {
            let default = rest.trim_end_matches('.').trim_end_matches(']');
            (format!("{}.", text.trim_end().trim_end_matches('.')), default.to_owned())
        }
        None => (help.to_owned(), String::new()),
    }
}

fn section(page: &mut String, name: &str) {
    let cli = Cli::command();
    let command = cli.find_subcommand(name).expect("it is a command");
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(page, "\n## cloudpaxos {name}\n\n{about}").expect("a text grows");
    let mut headings: Vec<Option<&str>> = Vec::new();
    for argument in command.get_arguments() {
        if !headings.contains(&argument.get_help_heading()) {
            headings.push(argument.get_help_heading());
        }
    }
    for heading in headings {
        let arguments = command.get_arguments().filter(|argument| argument.get_help_heading() == heading);
        let arguments: Vec<_> = arguments
            .filter(|argument| argument.get_long().is_some_and(|long| !["help", "version"].contains(&long)))
            .collect();
        if arguments.is_empty() {
            continue;
        }
        if let Some(heading) = heading {
            writeln!(page, "\n### {heading}").expect("a text grows");
        }
        page.push_str("\n| setting | value | default | what it does |\n|---|---|---|---|\n");
        for argument in arguments {
            let long = argument.get_long().expect("it was filtered");
            let value: Vec<_> = argument.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect();
            let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
            let (text, default) = split_default(&cell(&help));
            let value = cell(&value.join(" "));
            writeln!(page, "| `--{long}` | {value} | {default} | {text} |").expect("a text grows");
        }
    }
}

#[test]
fn the_reference_lists_every_setting_as_it_is() {
    let mut page = HEAD.to_owned();
    section(&mut page, "start");
    section(&mut page, "dev");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, &page).expect("the documents are writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/configuration.md is not current: UPDATE_GOLDENFILES=1 cargo test -p cloudpaxos --test reference"
    );
}

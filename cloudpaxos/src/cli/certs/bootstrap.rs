//! `cloudpaxos certs bootstrap`: everything for a cluster's first start, also as Kubernetes secrets.

use super::{Issue, Secrecy, client, failed, init, node, report, write};
use crate::cli::OutputOptions;
use crate::failure::Failure;
use clap::Args;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Which certificates to make.
#[derive(Args, Clone, Debug)]
pub struct BootstrapOptions {
    /// A node or gateway, and the DNS names and addresses under which it is dialled. May be repeated.
    #[arg(long = "node", value_name = "NAME[=HOST+HOST…]")]
    nodes: Vec<String>,
    /// A client. May be repeated.
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// Where everything goes.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// How long certificates are valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=3650))]
    days: i64,
    /// Write all of it as a list of Kubernetes secrets, too: `cloudpaxos-NAME` for a client, and
    /// `cloudpaxos-NAME-client` and `cloudpaxos-NAME-peer` for a node, with the files' names as keys, and
    /// `cloudpaxos-tokens`. The authorities' keys are not in it.
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
    /// The namespace of the secrets.
    #[arg(long, value_name = "NAME", default_value = "cloudpaxos", requires = "secrets")]
    namespace: String,
    #[command(flatten)]
    output: OutputOptions,
}

/// Makes what is missing.
pub(super) fn run(options: &BootstrapOptions) -> Result<(), Failure> {
    let mut written = init(&options.dir)?;
    let mut directories = Vec::new();
    for entry in &options.nodes {
        let (name, hosts) = entry.split_once('=').unwrap_or((entry, ""));
        let hosts: Vec<String> = hosts.split('+').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        for part in ["client", "peer"] {
            directories.push((format!("{name}-{part}"), options.dir.join(name).join(part)));
        }
        if !options.dir.join(name).join("peer/tls.crt").exists() {
            written.extend(node(&Issue { name, dir: &options.dir, days: options.days }, &hosts)?);
        }
    }
    for name in &options.clients {
        directories.push((name.clone(), options.dir.join(name)));
        if !options.dir.join(name).join("tls.crt").exists() {
            written.extend(client(&Issue { name, dir: &options.dir, days: options.days })?);
        }
    }
    let tokens = options.dir.join("tokens");
    if !tokens.exists() {
        let token: [u8; 32] = rand::random();
        let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        written.push(write(&tokens, &format!("{token}\n"), Secrecy::Secret)?);
    }
    if let Some(path) = &options.secrets {
        let mut items = Vec::new();
        for (name, directory) in &directories {
            items.push(secret(&options.namespace, name, directory, &["tls.crt", "tls.key", "ca.crt"])?);
        }
        items.push(secret(&options.namespace, "tokens", &options.dir, &["tokens"])?);
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        written.push(write(path, &format!("{list:#}\n"), Secrecy::Secret)?);
    }
    report(&written, options.output.output)
}

/// A secret with these files of a directory.
fn secret(namespace: &str, name: &str, directory: &Path, files: &[&str]) -> Result<Value, Failure> {
    let mut data = Map::new();
    for file in files {
        let path = directory.join(file);
        let text = fs::read_to_string(&path).map_err(failed(format!("read {}", path.display())))?;
        data.insert((*file).to_owned(), text.into());
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": format!("cloudpaxos-{name}"), "namespace": namespace },
        "type": "Opaque",
        "stringData": data,
    }))
}

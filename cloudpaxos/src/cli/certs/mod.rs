//! `cloudpaxos certs`: a certificate authority for development and small clusters.
//!
//! Two authorities, because a certificate for clients must not open the nodes' port. What is written lies
//! as `--client-tls-dir` and `--peer-tls-dir` want it.

mod bootstrap;

use super::OutputOptions;
use super::output::{self, Format};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// An authority outlives what it signs.
const AUTHORITY_DAYS: i64 = 3650;
/// Clocks differ.
const BACKDATED: Duration = Duration::hours(1);

/// The commands about certificates.
#[derive(Subcommand, Debug)]
pub enum CertsCommand {
    /// Make the authorities: one for nodes among themselves, one for the client port.
    #[command(after_help = "\
Authorities that exist are kept. Guard the directory `ca`: whoever has its keys can be anybody.

Example:
  cloudpaxos certs init --dir certs")]
    Init(InitOptions),
    /// Issue a node's certificates, anew if it has some.
    #[command(after_help = "\
A running node takes new certificates within seconds, without a restart.

Example, and how the node is then started:
  cloudpaxos certs node n1 --dir certs --host n1.example.com --host 10.0.0.1
  cloudpaxos start --name n1 --client-tls-dir certs/n1/client --peer-tls-dir certs/n1/peer …")]
    Node(NodeOptions),
    /// Issue a client's certificate, anew if it has one.
    #[command(after_help = "\
Example, and how it is then used:
  cloudpaxos certs client ada --dir certs
  cloudpaxos status --cacert certs/ada/ca.crt --cert certs/ada/tls.crt --key certs/ada/tls.key
  etcdctl --cacert certs/ada/ca.crt --cert certs/ada/tls.crt --key certs/ada/tls.key get greeting")]
    Client(IssueOptions),
    /// Make everything that a cluster needs for its first start, in one go; what exists is kept.
    #[command(after_help = "\
Besides certificates it makes an API token (`DIR/tokens`). Run again with more names, it adds what is missing.

Example, for three nodes behind a gateway, and an operator:
  cloudpaxos certs bootstrap --dir certs --node n1 --node n2 --node n3=n3.example.com+10.0.0.3 \\
    --node gateway=kv.example.com --client operator

Example, for Kubernetes; every name becomes a secret:
  cloudpaxos certs bootstrap --dir /tmp/certs --node 'shardkv=*.shardkv.cloudpaxos.svc.cluster.local' \\
    --client operator --secrets /tmp/secrets.json --namespace cloudpaxos
  kubectl create -f /tmp/secrets.json")]
    Bootstrap(bootstrap::BootstrapOptions),
}

/// Where the authorities are.
#[derive(Args, Clone, Debug)]
pub struct InitOptions {
    /// Where everything goes.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    #[command(flatten)]
    output: OutputOptions,
}

/// Whom a certificate is for.
#[derive(Args, Clone, Debug)]
pub struct IssueOptions {
    /// The name that the certificate bears.
    #[arg(value_name = "NAME")]
    name: String,
    /// Where `cloudpaxos certs init` put the authorities.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// How long it is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=3650))]
    days: i64,
    #[command(flatten)]
    output: OutputOptions,
}

/// Whom a node's certificates are for, and under which names it is reached.
#[derive(Args, Clone, Debug)]
pub struct NodeOptions {
    #[command(flatten)]
    issue: IssueOptions,
    /// A DNS name or IP address under which clients or nodes dial this one; more than one is fine. The
    /// node's name, localhost and 127.0.0.1 are always among them.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
}

/// Does what was typed.
pub(super) fn run(command: CertsCommand) -> Result<(), Failure> {
    match command {
        CertsCommand::Init(options) => report(&init(&options.dir)?, options.output.output),
        CertsCommand::Node(options) => report(&node(&options.issue.of(), &options.hosts)?, options.issue.output.output),
        CertsCommand::Client(options) => report(&client(&options.of())?, options.output.output),
        CertsCommand::Bootstrap(options) => bootstrap::run(&options),
    }
}

/// Whom a certificate is for, where it goes, and for how long.
struct Issue<'a> {
    name: &'a str,
    dir: &'a Path,
    days: i64,
}

impl IssueOptions {
    fn of(&self) -> Issue<'_> {
        Issue { name: &self.name, dir: &self.dir, days: self.days }
    }
}

fn node(issue: &Issue<'_>, more_hosts: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let mut hosts = vec![issue.name.to_owned(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
    hosts.extend(more_hosts.iter().cloned());
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let mut written = Vec::new();
    for (authority, directory) in [(Authority::Clients, "client"), (Authority::Nodes, "peer")] {
        let target = issue.dir.join(issue.name).join(directory);
        written.extend(issue_one(issue, authority, &hosts, &both, &target)?);
    }
    Ok(written)
}

fn client(issue: &Issue<'_>) -> Result<Vec<PathBuf>, Failure> {
    let usage = [ExtendedKeyUsagePurpose::ClientAuth];
    issue_one(issue, Authority::Clients, &[], &usage, &issue.dir.join(issue.name))
}

#[derive(Clone, Copy)]
enum Authority {
    Nodes,
    Clients,
}

impl Authority {
    fn word(self) -> &'static str {
        match self {
            Authority::Nodes => "nodes",
            Authority::Clients => "clients",
        }
    }

    /// Its certificate and its key.
    fn paths(self, dir: &Path) -> (PathBuf, PathBuf) {
        let ca = dir.join("ca");
        (ca.join(format!("{}.crt", self.word())), ca.join(format!("{}.key", self.word())))
    }
}

fn failed(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
    let action = action.into();
    move |error| Failure::Io { action, error }
}

fn unmade(error: rcgen::Error) -> Failure {
    Failure::Run(format!("the certificate could not be made: {error}"))
}

fn parameters(name: &str, hosts: &[String], days: i64) -> Result<CertificateParams, Failure> {
    let mut parameters = CertificateParams::new(hosts.to_vec())
        .map_err(|error| Failure::Usage(format!("--host: {}: {error}", hosts.join(", "))))?;
    parameters.distinguished_name.push(DnType::OrganizationName, "CloudPaxos");
    parameters.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + Duration::days(days);
    Ok(parameters)
}

fn init(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut written = Vec::new();
    for authority in [Authority::Nodes, Authority::Clients] {
        let (certificate, key) = authority.paths(dir);
        if certificate.exists() && key.exists() {
            continue;
        }
        // Of two authorities with one name, a verifier cannot tell which has signed a certificate or a list.
        let name = format!("CloudPaxos CA of {} {:08x}", authority.word(), rand::random::<u32>());
        let mut parameters = parameters(&name, &[], AUTHORITY_DAYS)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pair = KeyPair::generate().map_err(unmade)?;
        let made = parameters.self_signed(&pair).map_err(unmade)?;
        written.push(write(&key, &pair.serialize_pem(), Secrecy::Secret)?);
        written.push(write(&certificate, &made.pem(), Secrecy::Public)?);
    }
    Ok(written)
}

fn issue_one(
    issue: &Issue<'_>,
    authority: Authority,
    hosts: &[String],
    usage: &[ExtendedKeyUsagePurpose],
    target: &Path,
) -> Result<Vec<PathBuf>, Failure> {
    check_name(issue.name)?;
    let (certificate, key) = authority.paths(issue.dir);
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| {
            Failure::Usage(format!(
                "cannot read {}: {error}; make the authorities first: cloudpaxos certs init --dir {}",
                path.display(),
                issue.dir.display()
            ))
        })
    };
    let (ca, ca_key) = (read(&certificate)?, read(&key)?);
    let broken = |error: rcgen::Error| Failure::Run(format!("{}: {error}", certificate.display()));
    let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&ca_key).map_err(broken)?).map_err(broken)?;
    let mut parameters = parameters(issue.name, hosts, issue.days)?;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = usage.to_vec();
    parameters.use_authority_key_identifier_extension = true;
    let pair = KeyPair::generate().map_err(unmade)?;
    let made = parameters.signed_by(&pair, &issuer).map_err(unmade)?;
    Ok(vec![
        write(&target.join("tls.key"), &pair.serialize_pem(), Secrecy::Secret)?,
        write(&target.join("tls.crt"), &made.pem(), Secrecy::Public)?,
        write(&target.join("ca.crt"), &ca, Secrecy::Public)?,
    ])
}

/// The name becomes a directory's.
fn check_name(name: &str) -> Result<(), Failure> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let good = !name.is_empty() && name.len() <= 63 && name.bytes().all(allowed) && !name.starts_with('.');
    match good && name != "ca" {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "`{name}` is no name; write up to 63 letters, digits, dots, dashes or underscores (and not `ca`)"
        ))),
    }
}

#[derive(Clone, Copy)]
enum Secrecy {
    Secret,
    Public,
}

/// Replaces a file as a whole: a server that reads it meanwhile finds the old one or the new one.
fn write(path: &Path, text: &str, secrecy: Secrecy) -> Result<PathBuf, Failure> {
    let action = || format!("write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed(format!("create {}", directory.display())))?;
    }
    let next = path.with_extension("next");
    // A file that is there keeps its mode.
    drop(fs::remove_file(&next));
    let mode = match secrecy {
        Secrecy::Secret => 0o600,
        Secrecy::Public => 0o644,
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&next).map_err(failed(action()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed(action()))?;
    fs::rename(&next, path).map_err(failed(action()))?;
    Ok(path.to_owned())
}

fn report(written: &[PathBuf], format: Format) -> Result<(), Failure> {
    let shown: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    match format {
        Format::Json => output::json(&json!({ "written": shown })),
        Format::Table if shown.is_empty() => output::line("nothing to do: everything exists"),
        Format::Table => shown.iter().try_for_each(|path| output::line(format!("wrote {path}"))),
    }
}

//! A certificate, its key and the CA that vouches for others, from one directory.
//!
//! The names of the files are those of a Kubernetes secret of type `kubernetes.io/tls`, and of what
//! cert-manager writes: `tls.crt`, `tls.key`, `ca.crt`. `ca.crl` may say which certificates are void.
//!
//! Invariant: certificate, key and CA are always of one reading of the directory in which key and
//! certificate fit together. A reading in the middle of a change is not taken.

use super::reload::{self, Reload};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";
const REVOKED: &str = "ca.crl";

/// Why a directory's credentials are not usable.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file holds something else.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Key and certificate do not belong together.
    #[error("in {} {KEY} is not the key of {CERTIFICATE}; write both anew", directory.display())]
    Mismatch {
        /// The directory.
        directory: PathBuf,
    },
    /// Nobody would accept it.
    #[error("{} has expired {} ago; issue it anew", path.display(), humantime::format_duration(*since))]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// For how long.
        since: Duration,
    },
}

/// What a server does about its clients' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// No connection comes about without one.
    Required,
    /// One that is shown is checked; without one a request must bring something else.
    Accepted,
}

/// The files, byte by byte.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
}

/// One whole reading.
struct Loaded {
    files: Files,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    has_authority: bool,
    expires: SystemTime,
}

/// The credentials in a directory, as of its newest whole state.
pub struct Credentials {
    directory: PathBuf,
    policy: ClientCertificates,
    current: RwLock<Arc<Loaded>>,
    /// What was complained of last, so that it is logged once.
    complaint: RwLock<Option<String>>,
    /// How often the files were looked at.
    looks: AtomicU64,
}

impl Credentials {
    /// Reads a directory, and goes on reading it when its files change.
    pub fn open(directory: &Path, policy: ClientCertificates) -> Result<Arc<Credentials>, CredentialError> {
        let loaded = load(directory, policy, read(directory)?)?;
        let credentials = Arc::new(Credentials {
            directory: directory.to_owned(),
            policy,
            current: RwLock::new(Arc::new(loaded)),
            complaint: RwLock::default(),
            looks: AtomicU64::new(1),
        });
        reload::watch(&credentials)
            .map_err(|error| CredentialError::Unreadable { path: directory.to_owned(), error })?;
        Ok(credentials)
    }

    fn current(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For the next connection that comes in.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// For the next connection that goes out.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.current().client.clone()
    }

    /// Whether there is a CA, without which no certificate of a client is accepted.
    pub fn has_authority(&self) -> bool {
        self.current().has_authority
    }

    /// Until when the certificate is valid.
    pub fn expires(&self) -> SystemTime {
        self.current().expires
    }

    /// How often the files were looked at for changes.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Where they lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn complain(&self, text: String) {
        let mut last = self.complaint.write().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&text) {
            tracing::error!("the credentials stay as they were: {text}");
            *last = Some(text);
        }
    }
}

impl Reload for Credentials {
    fn reload(&self) {
        self.take_changes();
        self.looks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Credentials {
    fn take_changes(&self) {
        let fresh = match read(&self.directory) {
            Ok(files) if files == self.current().files => {
                *self.complaint.write().unwrap_or_else(PoisonError::into_inner) = None;
                return;
            }
            Ok(files) => load(&self.directory, self.policy, files),
            Err(error) => Err(error),
        };
        match fresh {
            Ok(loaded) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                tracing::info!(directory = %self.directory.display(), "new credentials are in use");
            }
            Err(error) => self.complain(error.to_string()),
        }
    }
}

fn read(directory: &Path) -> Result<Files, CredentialError> {
    let file = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|error| CredentialError::Unreadable { path, error })
    };
    let optional = |name: &str| match file(name) {
        Err(CredentialError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    let (certificate, key) = (file(CERTIFICATE)?, file(KEY)?);
    Ok(Files { certificate, key, authority: optional(AUTHORITY)?, revoked: optional(REVOKED)? })
}

fn load(directory: &Path, policy: ClientCertificates, files: Files) -> Result<Loaded, CredentialError> {
    let at = |name: &str| directory.join(name);
    let malformed = |name: &str, problem: String| CredentialError::Malformed { path: at(name), problem };
    let chain = certificates(&at(CERTIFICATE), &files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&files.key);
    let key = key.map_err(|error| malformed(KEY, format!("holds no private key in PEM ({error})")))?;
    let expires = expiry(&at(CERTIFICATE), &chain)?;
    let roots = match &files.authority {
        Some(bytes) => roots(&at(AUTHORITY), bytes)?,
        None if policy == ClientCertificates::Required => {
            let error = io::Error::from(io::ErrorKind::NotFound);
            return Err(CredentialError::Unreadable { path: at(AUTHORITY), error });
        }
        None => RootCertStore::empty(),
    };
    let lists = match &files.revoked {
        Some(bytes) => CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| malformed(REVOKED, format!("holds no revocation list in PEM ({error})")))?,
        None => Vec::new(),
    };
    let (has_authority, roots) = (!roots.is_empty(), Arc::new(roots));
    let build = |error: rustls::Error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            CredentialError::Mismatch { directory: directory.to_owned() }
        }
        error => malformed(CERTIFICATE, error.to_string()),
    };
    let verifiers = |error: &dyn std::fmt::Display| malformed(AUTHORITY, error.to_string());

    let server =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(build)?;
    let server = if has_authority {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .with_crls(lists.clone())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
        let verifier = match policy {
            ClientCertificates::Required => verifier,
            ClientCertificates::Accepted => verifier.allow_unauthenticated(),
        };
        server.with_client_cert_verifier(verifier.build().map_err(|error| verifiers(&error))?)
    } else {
        server.with_no_client_auth()
    };
    let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(build)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

    let client =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(build)?;
    let client = if has_authority {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .with_crls(lists)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build();
        client.with_webpki_verifier(verifier.map_err(|error| verifiers(&error))?)
    } else {
        client.with_root_certificates(roots)
    };
    let mut client = client.with_client_auth_cert(chain, key).map_err(build)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Loaded { files, server: Arc::new(server), client: Arc::new(client), has_authority, expires })
}

/// What does the arithmetic.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let problem = |problem: String| CredentialError::Malformed { path: path.to_owned(), problem };
    let found = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(problem("holds no certificate in PEM".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(problem(format!("holds no certificate in PEM ({error})"))),
    }
}

pub(super) fn roots(path: &Path, bytes: &[u8]) -> Result<RootCertStore, CredentialError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, bytes)? {
        roots
            .add(certificate)
            .map_err(|error| CredentialError::Malformed { path: path.to_owned(), problem: error.to_string() })?;
    }
    Ok(roots)
}

/// When the first certificate of a chain expires; an error if it has.
fn expiry(path: &Path, chain: &[CertificateDer<'_>]) -> Result<SystemTime, CredentialError> {
    let malformed = |problem: String| CredentialError::Malformed { path: path.to_owned(), problem };
    let first = chain.first().ok_or_else(|| malformed("holds no certificate".into()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(first)
        .map_err(|error| malformed(format!("is no X.509 certificate ({error})")))?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let expires = UNIX_EPOCH + Duration::from_secs(seconds);
    match SystemTime::now().duration_since(expires) {
        Ok(since) => {
            Err(CredentialError::Expired { path: path.to_owned(), since: Duration::from_secs(since.as_secs()) })
        }
        Err(_) => Ok(expires),
    }
}

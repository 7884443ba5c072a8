//! Connections: who may come in, and whom we believe to be whom.
//!
//! - [`Credentials`] are a directory with a certificate, its key and a CA, taken anew together whenever
//!   the files change.
//! - [`Listener`] accepts connections on a port, with or without TLS, and knows who is at the other end.
//! - [`TlsDialer`] connects to the other nodes.
//! - [`Access`] lets requests in that carry a token or came over a connection with a client certificate.
//!
//! Only this module knows of TLS; `node` and `gateway` move bytes over whatever they are given.

mod access;
mod credentials;
mod dialer;
mod incoming;
mod reload;
mod tokens;

pub use access::{Access, AccessLayer};
pub use credentials::{ClientCertificates, CredentialError, Credentials};
pub use dialer::{TlsDialer, client_config, explain};
pub use incoming::{Connection, Listener, PeerIdentity, PortFigures};
pub use tokens::{TokenError, Tokens};

#[cfg(test)]
mod tests;

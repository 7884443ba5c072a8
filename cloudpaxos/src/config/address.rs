//! `host:port`, as written by people.

use std::fmt;
use std::net::IpAddr;

/// A host and a port. The host is an IP address (IPv6 in brackets) or a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Parses `host:port`; the complaint says what to write.
    pub fn parse(text: &str) -> Result<Address, String> {
        let example = "write host:port, for instance 127.0.0.1:2379 or [::1]:2379";
        if text.contains("://") {
            return Err(format!("`{text}` is a URL; {example}"));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(format!("`{text}` has no port; {example}"));
        };
        let Ok(port) = port.parse::<u16>() else {
            return Err(format!("`{port}` in `{text}` is no port between 0 and 65535; {example}"));
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(format!("`{host}` in `{text}` is no IPv6 address; {example}")),
            None if host.contains(':') => return Err(format!("`{text}`: put the IPv6 address in brackets; {example}")),
            None => host,
        };
        let named = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if host.is_empty() || host.len() > 253 || !(named(host) || host.parse::<IpAddr>().is_ok()) {
            return Err(format!("`{text}` has no valid host; {example}"));
        }
        Ok(Address { host: host.to_owned(), port })
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 0 means "any that is free".
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether nothing off this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether it names no machine, but "all interfaces": fine to listen on, nothing to dial.
    pub fn is_unspecified(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

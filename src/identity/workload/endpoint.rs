//! The address of the Workload API (SPIFFE Workload Endpoint, section 4).

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use crate::plain;

/// The environment variable of the standard.
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// A socket on this machine, or an address. The connection does not use TLS, because the agent identifies us by the
/// connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadEndpoint {
    /// A socket on this machine: `unix:///run/spire/agent.sock`
    Unix(PathBuf),
    /// An IP address and port: `tcp://127.0.0.1:8089`
    Tcp(SocketAddr),
}

/// The fault of the text of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    /// The text does not begin with `unix:` or `tcp://`.
    #[error("`{0}` has no known scheme: write unix:///PATH or tcp://IP:PORT")]
    Scheme(String),
    /// Two slashes follow `unix:`, so the next part is a host.
    #[error("`{0}` names a host: write unix:///PATH, with three slashes and an absolute path")]
    Authority(String),
    /// The path of the socket is empty, relative, or names a directory.
    #[error("`{0}` names no socket: write unix:///PATH with the absolute path of a socket")]
    Path(String),
    /// The URI has a query, a fragment or an escape.
    #[error("`{0}` is more than a path: write unix:///PATH without `?`, `#` or `%`")]
    NotPlain(String),
    /// The text after `tcp://` is a host name, lacks a port or has more parts.
    #[error("`{0}` is not an IP address and a port: write tcp://IP:PORT and nothing else")]
    Address(String),
    /// The environment has no [`ENDPOINT_VARIABLE`], or it is empty.
    #[error("the variable {ENDPOINT_VARIABLE} is not set")]
    NotSet,
    /// The value of [`ENDPOINT_VARIABLE`] is not UTF-8.
    #[error("the variable {ENDPOINT_VARIABLE} is not text")]
    NotText,
}

impl WorkloadEndpoint {
    /// Reads the endpoint from `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Errors
    ///
    /// The variable is not set, or its value is not an endpoint.
    pub fn from_env() -> Result<Self, EndpointFault> {
        match std::env::var_os(ENDPOINT_VARIABLE).filter(|value| !value.is_empty()) {
            None => Err(EndpointFault::NotSet),
            Some(value) => value.to_str().ok_or(EndpointFault::NotText)?.parse(),
        }
    }
}

impl FromStr for WorkloadEndpoint {
    type Err = EndpointFault;

    fn from_str(text: &str) -> Result<Self, EndpointFault> {
        let shown = || plain::value(text);
        if let Some(rest) = text.strip_prefix("unix:") {
            // `unix:/a` and `unix:///a` are one URI (RFC 3986, section 3.3): the second has an empty authority.
            let path = match rest.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some("") => return Err(EndpointFault::Path(shown())),
                Some(_) => return Err(EndpointFault::Authority(shown())),
                None => rest,
            };
            if path.contains(['?', '#', '%']) {
                return Err(EndpointFault::NotPlain(shown()));
            }
            if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
                return Err(EndpointFault::Path(shown()));
            }
            return Ok(WorkloadEndpoint::Unix(path.into()));
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            return match address.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => Ok(WorkloadEndpoint::Tcp(address)),
                _ => Err(EndpointFault::Address(shown())),
            };
        }
        Err(EndpointFault::Scheme(shown()))
    }
}

impl fmt::Display for WorkloadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkloadEndpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            WorkloadEndpoint::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Proves case H02.
    #[test]
    fn an_endpoint_is_a_socket_path_or_an_ip_address() {
        for (text, same) in [
            ("unix:///run/spire/agent.sock", "unix:///run/spire/agent.sock"),
            ("unix:/run/a b.sock", "unix:///run/a b.sock"),
            ("tcp://127.0.0.1:8089", "tcp://127.0.0.1:8089"),
            ("tcp://[::1]:8089", "tcp://[::1]:8089"),
        ] {
            let endpoint: WorkloadEndpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), same);
            assert_eq!(same.parse::<WorkloadEndpoint>().unwrap(), endpoint);
        }
        use EndpointFault as F;
        let fault = |text: &str| text.parse::<WorkloadEndpoint>().unwrap_err();
        for text in ["", "/run/a.sock", "http://127.0.0.1:1", "UNIX:///a", "tcp:127.0.0.1:1"] {
            assert_eq!(fault(text), F::Scheme(text.into()));
        }
        for text in ["unix://host/a", "unix://run/a.sock", "unix://u@h/a"] {
            assert_eq!(fault(text), F::Authority(text.into()));
        }
        for text in ["unix:", "unix://", "unix:///", "unix:a.sock", "unix:///a/"] {
            assert_eq!(fault(text), F::Path(text.into()));
        }
        for text in ["unix:///a?x", "unix:///a#f", "unix:///%61"] {
            assert_eq!(fault(text), F::NotPlain(text.into()));
        }
        for text in [
            "tcp://localhost:1",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:1/",
            "tcp://u@127.0.0.1:1",
        ] {
            assert_eq!(fault(text), F::Address(text.into()));
        }
    }
}

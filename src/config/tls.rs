//! `[tls]`: the certificate of a process, and whom it believes. The rule that nobody listens to the world without it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Violation;
use super::validate::absolute;

/// `[tls]` of a controller or an agent. Files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The own certificate, as PEM.
    #[schema(value_type = String)]
    pub certificate: PathBuf,
    /// Its key.
    #[schema(value_type = String)]
    pub key: PathBuf,
    /// Authorities whose certificates count, as PEM: of clients, and of the controllers and agents that this process calls.
    #[schema(value_type = String)]
    pub client_authorities: PathBuf,
}

impl TlsSection {
    pub(super) fn violation(&self) -> Result<(), Violation> {
        absolute("tls.certificate", &self.certificate)?;
        absolute("tls.key", &self.key)?;
        absolute("tls.client_authorities", &self.client_authorities)
    }

    /// The first file that cannot be used. Whether they fit together is found out at start.
    pub(super) fn unusable(&self) -> Result<(), Violation> {
        let certificates = |key: &str, path: &Path| {
            let pem = read(key, path)?;
            let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
            match found {
                Ok(found) if !found.is_empty() => Ok(()),
                _ => Err(Violation::at(key, format!("{} holds no certificate in PEM", path.display()))),
            }
        };
        certificates("tls.certificate", &self.certificate)?;
        certificates("tls.client_authorities", &self.client_authorities)?;
        PrivateKeyDer::from_pem_slice(&read("tls.key", &self.key)?)
            .map(drop)
            .map_err(|_| Violation::at("tls.key", format!("{} holds no private key in PEM", self.key.display())))
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, Violation> {
    std::fs::read(path).map_err(|error| Violation::at(key, format!("read {}: {error}", path.display())))
}

/// Who listens where others reach it does so with TLS, or says that it does not.
pub(super) fn listener(
    table: &str,
    listen: SocketAddr,
    is_insecure: bool,
    tls: Option<&TlsSection>,
) -> Result<(), Violation> {
    if tls.is_some() && is_insecure {
        return Err(Violation::at(&format!("{table}.insecure"), "there is [tls]: take one of the two out"));
    }
    if tls.is_some() || is_insecure || is_loopback(listen.ip()) {
        return Ok(());
    }
    let problem = format!(
        "others reach {listen}, and there is no TLS: add [tls] (certificates: stormglass pki), or, in a network that you trust, \
         insecure = true in [{table}]"
    );
    Err(Violation::at(&format!("{table}.listen"), problem))
}

/// True if only this host reaches the address.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

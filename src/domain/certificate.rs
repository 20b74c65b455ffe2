//! Certificates of a cluster's own authority: whose they are, and when they end.
//!
//! Reads a certificate and believes nothing: whether its signature holds is for TLS to find out. No file and no key is read here.

use core::net::IpAddr;
use std::fmt;

use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::clock::WallTime;
use super::ids::HolderName;

/// How the name in a certificate begins that says what its holder is.
const SCHEME: &str = "stormglass://";

/// What the holder of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateRole {
    /// A controller: may command every agent.
    Controller,
    /// The agent of the node or proxy of that name: may report as it.
    Agent,
    /// A person or script: may connect, and needs a token for everything else.
    Client,
    /// Another server, such as a member of etcd: may do nothing here.
    Server,
}

impl CertificateRole {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Controller, Self::Agent, Self::Client, Self::Server];

    /// The role as it stands in certificates and in commands.
    pub fn label(self) -> &'static str {
        match self {
            CertificateRole::Controller => "controller",
            CertificateRole::Agent => "agent",
            CertificateRole::Client => "client",
            CertificateRole::Server => "server",
        }
    }

    /// True if others connect to the holder, so that its certificate must say where.
    pub fn listens(self) -> bool {
        self != CertificateRole::Client
    }
}

/// Whose a certificate is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// What it is.
    pub role: CertificateRole,
    /// Its name.
    pub name: HolderName,
}

impl Holder {
    /// The name in the certificate: `stormglass://agent/db1`.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role.label(), self.name)
    }

    /// Reads what [`Holder::uri`] wrote.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let (role, name) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        let role = CertificateRole::ALL.into_iter().find(|known| known.label() == role)?;
        Some(Self { role, name: HolderName::new(name).ok()? })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.role.label(), self.name)
    }
}

/// One certificate that is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// Whose.
    pub subject: String,
    /// When it ends.
    pub expires: WallTime,
}

/// How a process is protected from whoever listens on the way to its port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Protection {
    /// Only its own host reaches the port.
    #[default]
    Loopback,
    /// Not at all, as was asked for.
    Insecure,
    /// By TLS.
    Tls {
        /// The own certificate, then those of the authorities that count.
        certificates: Vec<CertificateFacts>,
    },
}

impl Protection {
    /// Certificates in use.
    pub fn certificates(&self) -> &[CertificateFacts] {
        match self {
            Protection::Tls { certificates } => certificates,
            Protection::Loopback | Protection::Insecure => &[],
        }
    }
}

/// What is not a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate: {0}")]
pub struct UnreadableCertificate(String);

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Whose it is; `None` if it does not say so in our words.
    pub holder: Option<Holder>,
    /// Its subject's common name.
    pub common_name: String,
    /// Names and addresses where its holder is reached.
    pub addresses: Vec<String>,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// From when on it holds.
    pub begins: WallTime,
    /// Until when.
    pub expires: WallTime,
    /// True if it is an authority's.
    pub is_authority: bool,
    /// Identity of the authority's key that signed it.
    pub authority_key: Option<Vec<u8>>,
    /// Identity of its own key.
    pub own_key: Option<Vec<u8>>,
}

impl CertificateSummary {
    /// Reads a certificate in DER.
    pub fn of(der: &[u8]) -> Result<Self, UnreadableCertificate> {
        let unreadable = |error: &dyn fmt::Display| UnreadableCertificate(error.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
        let mut holders = Vec::new();
        let mut addresses = Vec::new();
        let names = certificate.subject_alternative_name().map_err(|error| unreadable(&error))?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => holders.extend(Holder::from_uri(uri)),
                GeneralName::DNSName(name) => addresses.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(ip_address(bytes).map(|it| it.to_string())),
                _ => {}
            }
        }
        let basic = certificate.basic_constraints().map_err(|error| unreadable(&error))?;
        let mut authority_key = None;
        let mut own_key = None;
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(identifier) => {
                    authority_key = identifier.key_identifier.as_ref().map(|key| key.0.to_vec());
                }
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(key) => own_key = Some(key.0.to_vec()),
                _ => {}
            }
        }
        let wall = |seconds: i64| WallTime(seconds.saturating_mul(1_000_000));
        Ok(Self {
            // Two names would let the holder choose.
            holder: if holders.len() == 1 { holders.pop() } else { None },
            common_name: certificate
                .subject()
                .iter_common_name()
                .find_map(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            addresses,
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            begins: wall(certificate.validity().not_before.timestamp()),
            expires: wall(certificate.validity().not_after.timestamp()),
            is_authority: basic.is_some_and(|constraints| constraints.value.ca),
            authority_key,
            own_key,
        })
    }

    /// Whose it is, for people.
    pub fn subject(&self) -> String {
        match &self.holder {
            Some(holder) => holder.to_string(),
            None if self.is_authority => format!("authority {}", self.common_name),
            None => self.common_name.clone(),
        }
    }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_what_its_name_says_and_nothing_else() {
        let holder = Holder { role: CertificateRole::Agent, name: HolderName::new("db1").expect("valid") };
        assert_eq!(holder.uri(), "stormglass://agent/db1");
        assert_eq!(Holder::from_uri(&holder.uri()), Some(holder));
        for wrong in [
            "stormglass://agent/",
            "stormglass://agent/DB1",
            "stormglass://admin/db1",
            "stormglass://agent/db1/x",
            "https://agent/db1",
            "stormglass:agent/db1",
            "STORMGLASS://agent/db1",
        ] {
            assert_eq!(Holder::from_uri(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_said_to_be_none() {
        for wrong in [&b""[..], b"hello", &[0x30, 0x82, 0xff, 0xff]] {
            assert!(CertificateSummary::of(wrong).is_err(), "{wrong:?}");
        }
    }
}

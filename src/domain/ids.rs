//! Names and identifiers as newtypes, so that a node cannot be passed where a site is meant.
//!
//! A name is checked once, when it is made; nothing after that checks it again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// Longest name accepted. PostgreSQL cuts identifiers (slot names, `application_name`) at 63 bytes.
pub const NAME_LENGTH_MAX: usize = 63;

/// How much of a text that is no name is told.
const QUOTED_MAX: usize = 80;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not a valid name: use 1 to 63 of a-z, 0-9, '-' and '_', and start with a letter or digit")]
pub struct InvalidName {
    what: &'static str,
    value: String,
}

fn check_name(what: &'static str, value: &str) -> Result<(), InvalidName> {
    let good = !value.is_empty()
        && value.len() <= NAME_LENGTH_MAX
        && value.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && value
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-' || letter == '_');
    if good { Ok(()) } else { Err(InvalidName { what, value: value.chars().take(QUOTED_MAX).collect() }) }
}

macro_rules! name {
    ($type:ident, $what:literal, $doc:literal) => {
        #[doc = $doc]
        // Shared: every turn of a controller copies its state, in which names are the most of what is copied.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, ToSchema)]
        #[serde(try_from = "String")]
        #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9_-]{0,62}$")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and wraps a name.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                check_name($what, &value)?;
                Ok(Self(value.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

name!(ClusterName, "cluster", "One primary's replication family.");
name!(NodeName, "node", "One PostgreSQL instance and its agent. Also the standby's `application_name`.");
name!(SiteName, "site", "A region or data centre.");
name!(ProxyName, "proxy", "One HAProxy and the agent that owns it.");
name!(ApplicationName, "application", "A service whose HTTP servers stand behind the proxies.");
name!(ServerName, "server", "One HTTP server of an application.");
name!(
    HolderName,
    "certificate holder",
    "Who a certificate was issued to: a controller, a node or proxy, a person, another server."
);

impl NodeName {
    /// The physical replication slot of this node on its primary. Slot names allow no `-`.
    pub fn slot(&self) -> String {
        format!("stormglass_{}", self.0.replace('-', "_"))
    }
}

/// Identity of one operation: a UUID of version 7, so that identities sort by time of creation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct OperationId(pub String);

impl fmt::Display for OperationId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// `system_identifier` of `pg_control`: equal on every node of one cluster, different everywhere else.
///
/// Written as text in JSON: the value does not fit the 53 bits of a JavaScript number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl TryFrom<String> for SystemIdentifier {
    type Error = std::num::ParseIntError;
    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse().map(Self)
    }
}

impl From<SystemIdentifier> for String {
    fn from(identifier: SystemIdentifier) -> String {
        identifier.0.to_string()
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Address {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// Puts host and port together.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_postgresql_would_cut_or_quote() {
        assert!(NodeName::new("db-1").is_ok());
        for bad in ["", "DB1", "a b", "-a", &"x".repeat(64), "a'b"] {
            assert!(NodeName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn slot_names_hold_only_what_postgresql_allows() {
        assert_eq!(NodeName::new("db-1").expect("valid").slot(), "stormglass_db_1");
    }

    #[test]
    fn system_identifier_survives_json() {
        let identifier = SystemIdentifier(7_396_000_000_000_000_123);
        let text = serde_json::to_string(&identifier).expect("serialise");
        assert_eq!(text, "\"7396000000000000123\"");
        assert_eq!(serde_json::from_str::<SystemIdentifier>(&text).expect("parse"), identifier);
    }
}

//! Secrets by reference only: `env:NAME`, `file:/path` or `vault:PATH#FIELD`. The value never appears in a log or in `config show`.
//!
//! Speaks to no Vault itself: the process brings the way there ([`use_vault`]), before it loads anything.

use std::borrow::Cow;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// What every reference begins with.
const PREFIXES: [&str; 3] = ["env:", "file:", "vault:"];

/// Reads one field at a path of a Vault; the error says what, where, and what to do.
pub type VaultReader = Box<dyn Fn(&str, &str) -> Result<String, String> + Send + Sync>;

/// The way to Vault of this process, as its environment is that of `env:`.
static VAULT: OnceLock<VaultReader> = OnceLock::new();

/// Makes `vault:` references readable; the first call counts.
pub fn use_vault(reader: VaultReader) {
    // A second way could only contradict the first one.
    let _ = VAULT.set(reader);
}

/// Where a secret is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretReference {
    /// An environment variable.
    Environment(String),
    /// A file; one trailing newline is cut off.
    File(std::path::PathBuf),
    /// HashiCorp Vault, or OpenBao.
    Vault {
        /// As in `secret/data/stormglass`: the path of its API without `/v1/`.
        path: String,
        /// The field of the secret there.
        field: String,
    },
}

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Neither `env:` nor `file:` nor `vault:`.
    #[error(
        "a secret must be a reference, env:NAME, file:/path or vault:MOUNT/data/PATH#FIELD; the value itself must not stand in the \
         configuration"
    )]
    NotAReference,
    /// The variable is not set.
    #[error("environment variable {0} is not set or not UTF-8")]
    NoVariable(String),
    /// The file cannot be read.
    #[error("read the secret file {path}")]
    Unreadable {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Vault does not give it.
    #[error("{0}")]
    Vault(String),
    /// There is nothing in it.
    #[error("the secret {0} is empty")]
    Empty(String),
}

/// What a reference looks like.
pub const REFERENCE_PATTERN: &str = "^(env:.+|file:.+|vault:.+/.+#.+)$";

impl PartialSchema for SecretReference {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some(REFERENCE_PATTERN));
        text.description(Some(
            "A reference to a secret, env:NAME, file:/path or vault:MOUNT/data/PATH#FIELD; never the secret itself.",
        ))
        .into()
    }
}

impl ToSchema for SecretReference {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("SecretReference")
    }
}

impl SecretReference {
    /// True for a text that is meant as a reference, right or wrong.
    pub fn is_meant(text: &str) -> bool {
        PREFIXES.iter().any(|prefix| text.starts_with(prefix))
    }

    /// Reads the secret. With `vault:` it waits for an answer over the network, some seconds at most.
    pub fn resolve(&self) -> Result<String, SecretError> {
        let value = match self {
            #[expect(clippy::disallowed_methods, reason = "secrets by env: reference are read here and nowhere else")]
            SecretReference::Environment(name) => {
                std::env::var(name).map_err(|_| SecretError::NoVariable(name.clone()))?
            }
            SecretReference::File(path) => std::fs::read_to_string(path)
                .map_err(|source| SecretError::Unreadable { path: path.clone(), source })?
                .trim_end_matches('\n')
                .to_owned(),
            SecretReference::Vault { path, field } => match VAULT.get() {
                Some(read) => read(path, field).map_err(SecretError::Vault)?,
                None => return Err(SecretError::Vault("this program has no way to Vault".to_owned())),
            },
        };
        if value.is_empty() { Err(SecretError::Empty(String::from(self.clone()))) } else { Ok(value) }
    }
}

/// `MOUNT/PATH#FIELD`. What could lead to another path than it says is none.
fn in_vault(text: &str) -> Option<SecretReference> {
    let (path, field) = text.rsplit_once('#')?;
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.~@+ ".contains(letter);
    let is_good = |step: &str| !step.is_empty() && step != "." && step != ".." && step.chars().all(is_plain);
    let is_path = path.contains('/') && path.split('/').all(is_good);
    let is_field = !field.is_empty() && !field.chars().any(char::is_control);
    (is_path && is_field).then(|| SecretReference::Vault { path: path.to_owned(), field: field.to_owned() })
}

impl TryFrom<String> for SecretReference {
    type Error = SecretError;
    fn try_from(text: String) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Environment(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("vault", place)) => in_vault(place).ok_or(SecretError::NotAReference),
            _ => Err(SecretError::NotAReference),
        }
    }
}

impl From<SecretReference> for String {
    fn from(reference: SecretReference) -> String {
        match reference {
            SecretReference::Environment(name) => format!("env:{name}"),
            SecretReference::File(path) => format!("file:{}", path.display()),
            SecretReference::Vault { path, field } => format!("vault:{path}#{field}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_vault_are_read_as_they_are_written() {
        for text in ["vault:secret/data/stormglass#agent", "vault:kv/stormglass/east#pass word", "vault:a/b#c:d"] {
            let reference = SecretReference::try_from(text.to_owned()).expect(text);
            assert!(matches!(reference, SecretReference::Vault { .. }), "{text}");
            assert_eq!(String::from(reference), text);
        }
        for text in [
            "vault:",
            "vault:secret/data/stormglass",
            "vault:secret/data/stormglass#",
            "vault:#agent",
            "vault:secret#agent",
            "vault:/secret/data#agent",
            "vault:secret//data#agent",
            "vault:secret/../sys/seal#agent",
            "vault:secret/data?version=1#agent",
            "vault:secret/%2e%2e/sys#agent",
            "hunter2",
        ] {
            let refused = SecretReference::try_from(text.to_owned());
            assert!(matches!(refused, Err(SecretError::NotAReference)), "{text}");
        }
    }
}

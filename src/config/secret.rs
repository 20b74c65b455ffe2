//! Secrets by reference only: `env:NAME` or `file:/path`. The value never appears in a log or in `config show`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Where a secret is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretReference {
    /// An environment variable.
    Environment(String),
    /// A file; one trailing newline is cut off.
    File(std::path::PathBuf),
}

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Neither `env:` nor `file:`.
    #[error(
        "a secret must be a reference, env:NAME or file:/path; the value itself must not stand in the configuration"
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
    /// There is nothing in it.
    #[error("the secret {0} is empty")]
    Empty(String),
}

/// What a reference looks like.
pub const REFERENCE_PATTERN: &str = "^(env|file):.+$";

impl PartialSchema for SecretReference {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some(REFERENCE_PATTERN));
        text.description(Some("A reference to a secret, env:NAME or file:/path; never the secret itself.")).into()
    }
}

impl ToSchema for SecretReference {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("SecretReference")
    }
}

impl SecretReference {
    /// Reads the secret.
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
        };
        if value.is_empty() { Err(SecretError::Empty(String::from(self.clone()))) } else { Ok(value) }
    }
}

impl TryFrom<String> for SecretReference {
    type Error = SecretError;
    fn try_from(text: String) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Environment(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(SecretError::NotAReference),
        }
    }
}

impl From<SecretReference> for String {
    fn from(reference: SecretReference) -> String {
        match reference {
            SecretReference::Environment(name) => format!("env:{name}"),
            SecretReference::File(path) => format!("file:{}", path.display()),
        }
    }
}

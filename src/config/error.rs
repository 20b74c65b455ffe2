//! What is wrong with a configuration: where it stands, which key, what to do. Never a secret's value.

use std::fmt;
use std::path::PathBuf;

use super::secret::SecretError;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A setting is missing, unknown, of the wrong kind, or contradicts another one.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: Place,
        /// What, and what to do.
        problem: String,
    },
    /// A secret that is referred to cannot be had.
    #[error("{place}: the secret cannot be had")]
    Secret {
        /// Where the reference stands.
        place: Place,
        /// Why.
        source: SecretError,
    },
}

/// Where a setting stands: file or variable, and its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// File or variable; `None` for settings that were made in memory.
    pub origin: Option<Origin>,
    /// `failover.rto`, `node[1].agent`; empty for the file as a whole.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.key.as_str()) {
            (Some(origin), "") => write!(formatter, "{origin}"),
            (Some(origin), key) => write!(formatter, "{origin}: {key}"),
            (None, "") => formatter.write_str("configuration"),
            (None, key) => formatter.write_str(key),
        }
    }
}

/// Where a setting was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// In the environment.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line, column } => write!(formatter, "{}:{line}:{column}", path.display()),
            Origin::Variable(name) => write!(formatter, "environment variable {name}"),
        }
    }
}

/// A rule that a configuration breaks, before it is known where in the file the key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Table keys and array indices from the root.
    pub key: Vec<String>,
    /// What, and what to do.
    pub problem: String,
}

impl Violation {
    /// A violation at `key`, whose parts are separated by dots.
    pub fn at(key: &str, problem: impl Into<String>) -> Self {
        let key = key.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Self { key, problem: problem.into() }
    }

    /// As the error of settings that were made in memory.
    pub fn without_place(self) -> ConfigError {
        ConfigError::Invalid { place: Place { origin: None, key: key_text(&self.key) }, problem: self.problem }
    }
}

/// Writes a path as people read it: `node.1.agent` becomes `node[1].agent`.
pub(super) fn key_text(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
        if part.bytes().all(|digit| digit.is_ascii_digit()) {
            text.push_str(&format!("[{part}]"));
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(part);
        }
    }
    text
}

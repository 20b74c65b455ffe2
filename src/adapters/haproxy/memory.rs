//! The proxy agent's [`ProxyRecord`] as one small JSON file.
//!
//! A file that cannot be read is an error, never taken for an empty one: forgetting an epoch could lead writes backwards.

use std::io::ErrorKind;
use std::path::PathBuf;

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::file;
use crate::ports::traffic::{ProxyMemory, ProxyRecord, TrafficError};

/// Keeps the record in `path`.
#[derive(Debug, Clone)]
pub struct FileMemory {
    path: PathBuf,
}

impl FileMemory {
    /// Keeps the record in `path`; the directory is made when first needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn failed(&self, action: &'static str, problem: impl std::fmt::Display) -> TrafficError {
        TrafficError::Failed { action, problem: format!("{}: {problem}", self.path.display()) }
    }
}

#[async_trait]
impl ProxyMemory for FileMemory {
    async fn load(&self) -> Result<Option<ProxyRecord>, TrafficError> {
        const ACTION: &str = "read the proxy's state file";
        match tokio::fs::read(&self.path).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                self.failed(
                    ACTION,
                    format!("{error}; remove the file if the cluster's epoch is known to the controller"),
                )
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(ACTION, error)),
        }
    }

    async fn store(&self, record: &ProxyRecord) -> Result<(), TrafficError> {
        const ACTION: &str = "write the proxy's state file";
        let bytes = serde_json::to_vec(record).map_err(|error| self.failed(ACTION, error))?;
        let path = self.path.clone();
        spawn_blocking(move || file::replace(&path, &bytes))
            .await
            .map_err(|error| self.failed(ACTION, error))?
            .map_err(|error| self.failed(ACTION, error))
    }
}

//! Where the definitions of a controller's clusters are kept. Knows nothing of what stands in them.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;

/// A definition that could not be kept or put aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} {}: {problem}", .place.display())]
pub struct DefinitionError {
    /// What was tried.
    pub action: &'static str,
    /// Where.
    pub place: PathBuf,
    /// Why it did not go, and what to do.
    pub problem: String,
}

/// The definitions, each in a place of its own.
#[async_trait]
pub trait DefinitionStore: Send + Sync + 'static {
    /// Where the definition of a new cluster would be: behind the first one, which must stay the first.
    fn place(&self, cluster: &ClusterName) -> PathBuf;
    /// Keeps one: complete or not at all, and never in place of another.
    async fn keep(&self, place: &Path, text: &str) -> Result<(), DefinitionError>;
    /// Forgets one that was kept a moment ago.
    async fn forget(&self, place: &Path) -> Result<(), DefinitionError>;
    /// Gives one another name, under which no controller reads it, and says which.
    async fn put_aside(&self, place: &Path, at: WallTime) -> Result<PathBuf, DefinitionError>;
    /// Takes that back.
    async fn take_back(&self, aside: &Path, place: &Path) -> Result<(), DefinitionError>;
}

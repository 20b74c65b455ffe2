//! The agent's memory as one JSON file in its state directory.
//!
//! Written whole to a second file, synced, renamed, and the directory synced: a crash leaves the old one or the new one.
//! A file that cannot be used is an error for a human, never an empty memory.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::domain::ids::{ClusterName, NodeName};
use crate::ports::agent::{AgentMemory, MEMORY_FORMAT, Memory, MemoryError};

/// Name of the file in the state directory.
const FILE: &str = "agent.json";

/// The memory file of one node.
#[derive(Clone)]
pub struct MemoryFile {
    directory: PathBuf,
    cluster: ClusterName,
    node: NodeName,
}

impl MemoryFile {
    /// The file of `node` of `cluster` in `state_directory`, which must exist.
    pub fn new(state_directory: &Path, cluster: ClusterName, node: NodeName) -> Self {
        Self { directory: state_directory.to_owned(), cluster, node }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn unusable(&self, problem: String) -> MemoryError {
        MemoryError::Unusable { location: self.path().display().to_string(), problem }
    }

    fn failed(&self, action: &'static str, error: &std::io::Error) -> MemoryError {
        MemoryError::Failed { action, location: self.path().display().to_string(), problem: error.to_string() }
    }

    fn store_blocking(&self, memory: &Memory) -> Result<(), MemoryError> {
        let text = serde_json::to_vec(memory).map_err(|error| self.unusable(error.to_string()))?;
        self.write(&text).map_err(|error| self.failed("write", &error))
    }

    fn write(&self, text: &[u8]) -> std::io::Result<()> {
        let new = self.directory.join(format!("{FILE}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        file.sync_data()?;
        std::fs::rename(&new, self.path())?;
        File::open(&self.directory)?.sync_all()
    }
}

#[async_trait]
impl AgentMemory for MemoryFile {
    fn load(&self) -> Result<Option<Memory>, MemoryError> {
        let text = match std::fs::read(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("read", &error)),
        };
        let memory: Memory = serde_json::from_slice(&text).map_err(|error| {
            self.unusable(format!(
                "{error}; it holds promises that keep two nodes from writing at once: restore it, or, if PostgreSQL is \
                 stopped on this node, move it aside"
            ))
        })?;
        if memory.format != MEMORY_FORMAT {
            return Err(self.unusable(format!(
                "it has format {}, this version reads {MEMORY_FORMAT}: install the version that wrote it",
                memory.format
            )));
        }
        if memory.cluster != self.cluster || memory.node != self.node {
            return Err(self.unusable(format!(
                "it belongs to node {} of cluster {}, and this agent is node {} of cluster {}: give each its own state_directory",
                memory.node, memory.cluster, self.node, self.cluster
            )));
        }
        Ok(Some(memory))
    }

    async fn store(&self, memory: &Memory) -> Result<(), MemoryError> {
        let (file, memory) = (self.clone(), memory.clone());
        let stored = tokio::task::spawn_blocking(move || file.store_blocking(&memory)).await;
        stored.expect("storing reports errors, never panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::{BootId, Moment};
    use crate::domain::command::{CommandOutput, CommandState};
    use crate::domain::epoch::Epoch;
    use crate::ports::agent::StampedMoment;

    fn names() -> (ClusterName, NodeName) {
        (ClusterName::new("main").unwrap(), NodeName::new("n1").unwrap())
    }

    fn memory() -> Memory {
        let (cluster, node) = names();
        Memory::new(cluster, node, StampedMoment { boot: BootId("b".into()), at: Moment(7) })
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, node) = names();
        let file = MemoryFile::new(directory.path(), cluster, node);
        assert_eq!(file.load(), Ok(None));
        let mut stored = memory();
        stored.highest_epoch = Epoch(4);
        stored.confirm_fence(Epoch(3));
        for count in 0..100 {
            stored
                .remember_result(format!("task-{count}"), CommandState::Succeeded { output: CommandOutput::default() });
        }
        assert_eq!(file.store_blocking(&stored), Ok(()));
        let loaded = file.load().unwrap().unwrap();
        assert_eq!(loaded, stored);
        assert!(loaded.results.len() < 100 && loaded.result("task-99").is_some() && loaded.result("task-0").is_none());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_never_an_empty_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, node) = names();
        let file = MemoryFile::new(directory.path(), cluster.clone(), node.clone());
        for text in ["", "{", "{}", "null"] {
            std::fs::write(directory.path().join(FILE), text).unwrap();
            assert!(matches!(file.load(), Err(MemoryError::Unusable { .. })), "{text:?} was taken");
        }
        file.store_blocking(&memory()).unwrap();
        let other = MemoryFile::new(directory.path(), ClusterName::new("other").unwrap(), node);
        assert!(other.load().unwrap_err().to_string().contains("cluster main"));
        let other = MemoryFile::new(directory.path(), cluster, NodeName::new("n2").unwrap());
        assert!(other.load().unwrap_err().to_string().contains("node n1"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, node) = names();
        let file = MemoryFile::new(directory.path(), cluster, node);
        file.store_blocking(&memory()).unwrap();
        std::fs::create_dir(directory.path().join(format!("{FILE}.new"))).unwrap();
        let mut changed = memory();
        changed.highest_epoch = Epoch(9);
        assert!(matches!(file.store_blocking(&changed), Err(MemoryError::Failed { action: "write", .. })));
        assert_eq!(file.load().unwrap().unwrap(), memory());
    }
}

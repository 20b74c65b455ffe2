//! A file that only the own user can read, for what a program must read from a file: plans and variables, which may hold secrets.

use std::path::{Path, PathBuf};

use crate::ports::steps::StepError;

/// One file in a directory of its own; both are removed whatever happens.
pub(super) struct PrivateFile {
    directory: PathBuf,
    name: &'static str,
}

impl PrivateFile {
    /// Makes the directory. The file itself is the program's to write, unless [`Self::write`] does.
    pub fn new(name: &'static str) -> Result<Self, StepError> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = std::env::temp_dir().join(format!("stormglass-{name}-{}", uuid::Uuid::now_v7()));
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|error| failed(&directory, &error))?;
        Ok(Self { directory, name })
    }

    /// Makes the file with this content.
    pub fn write(self, text: &str) -> Result<Self, StepError> {
        let path = self.directory.join(self.name);
        std::fs::write(&path, text).map_err(|error| failed(&path, &error))?;
        Ok(self)
    }

    /// Where the file is.
    pub fn path(&self) -> String {
        self.directory.join(self.name).display().to_string()
    }
}

fn failed(path: &Path, error: &std::io::Error) -> StepError {
    StepError::Failed(format!("create {}: {error}", path.display()))
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "a private file of a step was not removed");
        }
    }
}

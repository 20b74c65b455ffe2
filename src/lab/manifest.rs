//! The manifest: what a lab is and every process that was started for it, on disk before the process runs.
//!
//! Invariant: what is not in the manifest was never started, so that `down` finds everything after any crash.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::place::MARK;
use super::process::ProcessIdentity;

/// Format of the file.
pub const MANIFEST_FORMAT: u32 = 1;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// Version of the program that made the lab.
    pub version: String,
    /// User that everything runs as.
    pub uid: u32,
    /// The process that builds the lab or runs a scenario in it; a lab of a dead `lab run` is an abandoned one.
    pub runner: Option<ProcessIdentity>,
    /// True once the lab was ready.
    pub ready: bool,
    /// Addresses and directories.
    pub layout: Layout,
    /// Every process that was started, in this order.
    pub processes: Vec<ProcessEntry>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Its name in the lab: `controller`, `agent-n1`, …
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Who it became; `None` between this line and the start.
    pub identity: Option<ProcessIdentity>,
}

impl Manifest {
    /// The manifest of a lab in which nothing runs yet.
    pub fn new(layout: Layout, uid: u32) -> Self {
        Self {
            format: MANIFEST_FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uid,
            runner: None,
            ready: false,
            layout,
            processes: Vec::new(),
        }
    }

    /// Reads the manifest of the lab in `directory`; `None` if there is no lab.
    pub fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let file = directory.join(MARK);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let manifest: Self = serde_json::from_str(&text).with_context(|| {
            format!("understand {}; if nothing of that lab runs any more, remove it", file.display())
        })?;
        if manifest.format != MANIFEST_FORMAT || manifest.layout.directory != directory {
            bail!(
                "{} was written by another version or for another place: take that lab down with what made it",
                file.display()
            );
        }
        Ok(Some(manifest))
    }

    /// Writes it, whole or not at all.
    pub fn write(&self) -> anyhow::Result<()> {
        let file = self.layout.directory.join(MARK);
        let draft = file.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut out = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
            out.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            fs::rename(&draft, &file)
        };
        write().with_context(|| format!("write {}", file.display()))
    }

    /// The latest process called `name`.
    pub fn process(&self, name: &str) -> Option<&ProcessEntry> {
        self.processes.iter().rev().find(|entry| entry.name == name)
    }

    /// True if any process that was started still lives.
    pub fn anything_lives(&self) -> bool {
        self.processes.iter().filter_map(|entry| entry.identity).any(ProcessIdentity::is_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::random::Random;

    #[test]
    fn a_manifest_survives_the_disk_and_knows_what_lives() {
        let temporary = tempfile::tempdir().expect("directory");
        assert_eq!(Manifest::read(temporary.path()).expect("no lab is no error"), None);
        let layout = Layout::find(temporary.path(), &mut Random::new(3)).expect("layout");
        let mut manifest = Manifest::new(layout, 1000);
        let own = ProcessIdentity::of(std::process::id()).expect("own identity");
        let entry = |identity| ProcessEntry {
            name: "controller".into(),
            command: vec!["stormglass".into()],
            log: "/l".into(),
            identity,
        };
        manifest.processes.push(entry(None));
        assert!(!manifest.anything_lives());
        manifest.processes.push(entry(Some(ProcessIdentity { started_ticks: own.started_ticks + 5, ..own })));
        assert!(!manifest.anything_lives(), "a recycled pid is not the process");
        manifest.processes.push(entry(Some(own)));
        manifest.write().expect("written");
        let again = Manifest::read(temporary.path()).expect("read").expect("there");
        assert_eq!(again, manifest);
        assert!(again.anything_lives());
        assert_eq!(again.process("controller").and_then(|entry| entry.identity), Some(own), "the latest one");
    }

    #[test]
    fn a_manifest_that_was_moved_is_not_believed() {
        let (one, two) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let layout = Layout::find(one.path(), &mut Random::new(3)).expect("layout");
        Manifest::new(layout, 1000).write().expect("written");
        fs::copy(one.path().join(MARK), two.path().join(MARK)).expect("copied");
        assert!(Manifest::read(two.path()).is_err());
    }
}

//! The wall clocks of the lab's nodes, moved by libfaketime; the clocks that leases are counted on stay as they are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::layout::NodeLayout;

/// Where Debian and others put it.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// Variables of the environment.
pub type Environment = Vec<(&'static str, String)>;

/// The library that shows processes another wall clock.
#[derive(Debug, Clone)]
pub struct Clocks {
    library: PathBuf,
}

impl Clocks {
    /// Finds the library.
    pub fn find() -> anyhow::Result<Self> {
        match LIBRARIES.iter().map(PathBuf::from).find(|file| file.exists()) {
            Some(library) => Ok(Self { library }),
            None => bail!("jumping clocks need libfaketime: on Debian or Ubuntu, apt-get install faketime"),
        }
    }

    /// What a process of `node` must have in its environment for its clock to be movable.
    pub fn of(&self, node: &NodeLayout) -> anyhow::Result<Environment> {
        set(node, 0)?;
        Ok(vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file(node).display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            // Monotonic clocks are the kernel's; nobody can set them on a host either.
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ])
    }
}

/// Moves the wall clock of `node` to `seconds` away from the right one. It is seen within a second.
pub fn set(node: &NodeLayout, seconds: i64) -> anyhow::Result<()> {
    write(&file(node), &format!("{seconds:+}\n"))
}

fn file(node: &NodeLayout) -> PathBuf {
    node.directory.join("clock")
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    // Never seen half-written.
    let draft = file.with_extension("new");
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, file))
        .with_context(|| format!("write {}", file.display()))
}

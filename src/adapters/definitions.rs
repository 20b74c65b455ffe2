//! A directory with a file `*.toml` for each cluster: `ports::DefinitionStore`.
//!
//! What is written appears under its name complete, and is on disk before anybody is told. Nothing is ever overwritten.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;
use crate::ports::definitions::{DefinitionError, DefinitionStore};

/// A definition refers to secrets and holds none; who else may read it is the directory's to say.
const MODE: u32 = 0o640;

/// The directory, and the file that is first in it.
#[derive(Debug, Clone)]
pub struct DefinitionDirectory {
    directory: PathBuf,
    first: PathBuf,
}

impl DefinitionDirectory {
    /// `first` is the file whose store holds tokens and audit log: the one that sorts before all others.
    pub fn new(directory: impl Into<PathBuf>, first: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), first: first.into() }
    }
}

#[async_trait]
impl DefinitionStore for DefinitionDirectory {
    fn place(&self, cluster: &ClusterName) -> PathBuf {
        let plain = self.directory.join(format!("{cluster}.toml"));
        if plain > self.first {
            return plain;
        }
        // `_` sorts behind the point in front of `toml`, whatever the names are.
        let stem = self.first.file_stem().unwrap_or_default().to_string_lossy();
        self.directory.join(format!("{stem}_{cluster}.toml"))
    }

    async fn keep(&self, place: &Path, text: &str) -> Result<(), DefinitionError> {
        let (file, text) = (place.to_owned(), text.to_owned());
        off_the_runtime("write", place, move || write(&file, &text)).await
    }

    async fn forget(&self, place: &Path) -> Result<(), DefinitionError> {
        let file = place.to_owned();
        off_the_runtime("remove", place, move || std::fs::remove_file(&file).and_then(|()| settle(&file))).await
    }

    async fn put_aside(&self, place: &Path, at: WallTime) -> Result<PathBuf, DefinitionError> {
        let mut aside = place.as_os_str().to_owned();
        aside.push(format!(".removed-{}", compact(at)));
        let aside = PathBuf::from(aside);
        let (from, to) = (place.to_owned(), aside.clone());
        off_the_runtime("rename", place, move || rename(&from, &to)).await?;
        Ok(aside)
    }

    async fn take_back(&self, aside: &Path, place: &Path) -> Result<(), DefinitionError> {
        let (from, to) = (aside.to_owned(), place.to_owned());
        off_the_runtime("rename", aside, move || rename(&from, &to)).await
    }
}

async fn off_the_runtime(
    action: &'static str,
    place: &Path,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), DefinitionError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ": the controller must be able to write to the directory of its clusters (with systemd: ReadWritePaths=)"
            }
            io::ErrorKind::AlreadyExists => ": there is a file of that name already, and nothing is overwritten",
            _ => "",
        };
        DefinitionError { action, place: place.to_owned(), problem: format!("{error}{advice}") }
    })
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    // No `*.toml` until it is complete: a controller that starts meanwhile does not read half of it.
    let mut draft = file.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&draft)?;
    let written = open.write_all(text.as_bytes()).and_then(|()| open.sync_all()).and_then(|()| rename(&draft, file));
    if written.is_err() {
        // What is left of it is in nobody's way: the next attempt writes over it.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?;
    settle(to)
}

/// The name is on disk too.
fn settle(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// `20261121T031209Z`: a moment as part of a file's name.
fn compact(at: WallTime) -> String {
    let text = at.to_string();
    let seconds = text.split(['.', 'Z']).next().unwrap_or_default();
    let mut compact: String = seconds.chars().filter(char::is_ascii_alphanumeric).collect();
    compact.push('Z');
    compact
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).expect("valid")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("a directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_sorts_behind_the_first_whatever_the_names_are() {
        for (first, name) in [("1.toml", "orders"), ("orders.toml", "billing"), ("zz.toml", "zz"), ("a.toml", "a-1")] {
            let directory = DefinitionDirectory::new("/c", format!("/c/{first}"));
            let place = directory.place(&cluster(name));
            assert!(place > directory.first, "{} is not behind {first}", place.display());
            assert_eq!(place.extension().expect("one"), "toml");
        }
        assert_eq!(DefinitionDirectory::new("/c", "/c/1.toml").place(&cluster("x")), Path::new("/c/x.toml"));
    }

    #[tokio::test]
    async fn a_file_appears_complete_goes_aside_and_comes_back() {
        let home = tempfile::tempdir().expect("a directory");
        let files = DefinitionDirectory::new(home.path(), home.path().join("1.toml"));
        let place = files.place(&cluster("orders"));
        files.keep(&place, "[cluster]\n").await.expect("written");
        assert_eq!(std::fs::read_to_string(&place).expect("there"), "[cluster]\n");
        let again = files.keep(&place, "other").await.expect_err("never over another").to_string();
        assert!(again.contains("nothing is overwritten"), "{again}");
        assert_eq!(names(home.path()), ["orders.toml"]);
        let at = WallTime::try_from("2026-11-21T03:12:09.5Z".to_owned()).expect("a time");
        let aside = files.put_aside(&place, at).await.expect("renamed");
        assert_eq!(names(home.path()), ["orders.toml.removed-20261121T031209Z"]);
        files.take_back(&aside, &place).await.expect("renamed back");
        files.forget(&place).await.expect("removed");
        assert!(names(home.path()).is_empty());
    }

    #[tokio::test]
    async fn a_directory_that_is_gone_is_named() {
        let files = DefinitionDirectory::new("/nonexistent", "/nonexistent/1.toml");
        let error = files.keep(&files.place(&cluster("x")), "").await.expect_err("no directory").to_string();
        assert!(error.starts_with("write /nonexistent/x.toml: "), "{error}");
    }
}

//! Replaces a file so that a reader, or a crash at any moment, finds the old content or the new one and nothing between.
//!
//! Blocking: callers run it off the event loop.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Writes `content` beside `path` and returns where; [`publish`] puts it in place.
pub fn stage(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let mut name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?.to_owned();
    name.push(".new");
    let staged = path.with_file_name(name);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::create(&staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(staged)
}

/// Renames `staged` to `path`; on disk when it returns.
pub fn publish(staged: &Path, path: &Path) -> io::Result<()> {
    fs::rename(staged, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Both at once.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    publish(&stage(path, content)?, path)
}

/// Keeps what is at `path` now as `previous`; nothing where there is none.
pub fn keep(path: &Path, previous: &Path) -> io::Result<()> {
    match fs::read(path) {
        Ok(content) => replace(previous, &content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

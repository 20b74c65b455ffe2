//! Files that must be whole or absent after a power loss.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::settings::Owner;

/// Replaces `path` by `content`, atomically and durably. False: it was so already, and nothing was written.
pub(super) fn write_atomically(path: &Path, content: &str, owner: Owner) -> io::Result<bool> {
    // Not through a symbolic link: a rename would replace the link and leave the file behind it as it was.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = match fs::metadata(path) {
        Ok(metadata) => {
            if fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
                return Ok(false);
            }
            metadata.permissions().mode() & 0o777
        }
        Err(_) => 0o600,
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".stormglass-new");
    let temporary = PathBuf::from(name);
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content.as_bytes())?;
    hand_over(&temporary, owner)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)?;
    Ok(true)
}

/// Gives a file made by root to PostgreSQL's user.
pub(super) fn hand_over(path: &Path, owner: Owner) -> io::Result<()> {
    if owner.switch { chown(path, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
}

/// Makes `path` and what is missing above it, for PostgreSQL's user alone.
pub(super) fn make_private_directory(path: &Path, owner: Owner) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    hand_over(path, owner)
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a rename, creation or removal of `path` durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Below this, tables cannot grow any more: eight pages.
const ROOM_BYTES: usize = 64 * 1024;

/// A name that no backup and no rewind copies.
const ROOM_FILE: &str = "pgsql_tmp.stormglass";

/// Takes a little room in `directory` and gives it back: fails where the filesystem is full or read-only. Nothing is
/// flushed: the filesystem reserves what is written, and whether the disk answers is for WAL to find out.
pub(super) fn take_room(directory: &Path) -> io::Result<()> {
    let file = directory.join(ROOM_FILE);
    let taken = fs::File::create(&file).and_then(|mut file| io::Write::write_all(&mut file, &[1; ROOM_BYTES]));
    let given_back = fs::remove_file(&file);
    taken.and(given_back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_and_a_directory_without_any_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        take_room(directory.path()).expect("there is room");
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0, "something was left");
        // The one device that is always full.
        std::os::unix::fs::symlink("/dev/full", directory.path().join(ROOM_FILE)).expect("linked");
        let error = take_room(directory.path()).expect_err("it is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0, "something was left");
    }
}

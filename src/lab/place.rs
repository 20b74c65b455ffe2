//! Where a lab lives on disk, whose it is, and how it is removed. The only file of the lab that reads the environment.
//!
//! Invariant: a directory is removed only if it carries the lab's mark and belongs to the lab's owner.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Longest lab directory. A Unix socket's path holds 107 bytes, and the deepest socket of a lab takes 47 of them.
const DIRECTORY_LENGTH_MAX: usize = 60;

/// Beginning of the names of directories that `lab run` makes.
pub const RUN_PREFIX: &str = "stormglass-run-";

/// The file that marks a directory as a lab.
pub const MARK: &str = "manifest.json";

/// Reads a variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "where programs and temporary files are is the lab's to find out")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The user's temporary directory, or `/tmp` where that is too long for Unix sockets or closed to the lab's user.
///
/// Not `XDG_RUNTIME_DIR`: it is a small file system in memory, often without the right to execute, where `fsync` costs
/// nothing; a lab there would fill it and measure what no server has.
pub fn temporary_directory() -> PathBuf {
    let chosen = std::env::temp_dir();
    let chosen = chosen.canonicalize().unwrap_or(chosen);
    let longest_name = RUN_PREFIX.len() + 17;
    let is_short = chosen.is_absolute() && chosen.as_os_str().len() + longest_name <= DIRECTORY_LENGTH_MAX;
    // Root's own temporary directory is closed to the user that the lab runs as.
    let is_open =
        fs::metadata(&chosen).is_ok_and(|data| !rustix::process::geteuid().is_root() || data.mode() & 0o002 != 0);
    if is_short && is_open { chosen } else { PathBuf::from("/tmp") }
}

/// Where `lab up` of the user `uid` puts its lab.
pub fn default_directory(uid: u32) -> PathBuf {
    temporary_directory().join(format!("stormglass-lab-{}", user_name(uid)))
}

/// A new name for the directory of a `lab run`.
pub fn run_directory() -> PathBuf {
    let random = uuid::Uuid::now_v7().as_u128() as u64;
    temporary_directory().join(format!("{RUN_PREFIX}{random:016x}"))
}

/// Makes an empty directory that nobody else can read.
pub fn create(directory: &Path) -> anyhow::Result<()> {
    if directory.as_os_str().len() > DIRECTORY_LENGTH_MAX {
        bail!(
            "the lab directory {} is too long for the Unix sockets in it: choose one of at most {DIRECTORY_LENGTH_MAX} bytes with --directory",
            directory.display()
        );
    }
    let own = rustix::process::geteuid().as_raw();
    if fs::symlink_metadata(directory).is_ok_and(|data| data.is_symlink() || data.uid() != own) {
        bail!("{} belongs to another user or is a link: choose another place with --directory", directory.display());
    }
    if directory.exists() && fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} exists, is not empty and is no lab: choose another place with --directory, or remove it",
            directory.display()
        );
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("make the lab directory {}", directory.display()))?;
    Ok(())
}

/// True if `directory` is a lab of user `uid`: a real directory (no link that another user left), with the mark.
pub fn is_lab_of(directory: &Path, uid: u32) -> bool {
    let owned = |path: &Path| fs::symlink_metadata(path).is_ok_and(|data| data.uid() == uid && !data.is_symlink());
    owned(directory) && owned(&directory.join(MARK))
}

/// Removes a lab's files, after everything in it was stopped.
pub fn remove(directory: &Path, uid: u32) -> anyhow::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    if !is_lab_of(directory, uid) {
        bail!("{} is no lab of user {}: nothing was removed", directory.display(), user_name(uid));
    }
    empty(directory).with_context(|| format!("remove the lab directory {}", directory.display()))?;
    // The mark goes last: where something is left, the next sweep still knows what it was.
    if fs::read_dir(directory).is_ok_and(|entries| entries.count() > 1) {
        return Ok(());
    }
    fs::remove_dir_all(directory).with_context(|| format!("remove the lab directory {}", directory.display()))
}

/// Removes everything but the mark, and but the mount points of volumes: they go when the last process of their
/// namespace has gone, and the directory below them with the sweep after that.
fn empty(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else if path.file_name().is_some_and(|name| name == MARK) {
            continue;
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::ResourceBusy => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The user's name; its number where the local user file does not know it.
pub fn user_name(uid: u32) -> String {
    users().into_iter().find(|user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name)
}

/// A line of the local user file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Number.
    pub uid: u32,
    /// Number of the primary group.
    pub gid: u32,
}

/// Every local user.
pub fn users() -> Vec<User> {
    parse_users(&fs::read_to_string("/etc/passwd").unwrap_or_default())
}

fn parse_users(text: &str) -> Vec<User> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(User { name, uid, gid })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_the_user_file() {
        let users = parse_users("root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:101:104:,,,:/var/lib:/bin/bash\n");
        assert_eq!(users[1], User { name: "postgres".into(), uid: 101, gid: 104 });
        assert_eq!(users.len(), 2);
    }

    #[test]
    fn only_a_marked_directory_of_the_owner_is_removed() {
        let temporary = tempfile::tempdir().expect("directory");
        let uid = rustix::process::getuid().as_raw();
        let victim = temporary.path().join("home");
        fs::create_dir(&victim).expect("made");
        assert!(remove(&victim, uid).is_err(), "no mark");
        fs::write(victim.join(MARK), "{}").expect("marked");
        assert!(remove(&victim, uid + 1).is_err(), "somebody else's");
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&victim, &link).expect("linked");
        assert!(remove(&link, uid).is_err(), "a link");
        remove(&victim, uid).expect("removed");
        assert!(!victim.exists());
        remove(&victim, uid).expect("nothing left to do");
    }

    #[test]
    fn a_directory_with_other_files_is_never_taken() {
        let temporary = tempfile::Builder::new().prefix("sg").tempdir_in("/tmp").expect("directory");
        fs::write(temporary.path().join("letter"), "dear").expect("written");
        assert!(create(temporary.path()).is_err());
        assert!(create(&temporary.path().join("x".repeat(90))).is_err(), "too long for sockets");
        let lab = temporary.path().join("lab");
        create(&lab).expect("made");
        create(&lab).expect("an empty one of its own will do");
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&lab, &link).expect("linked");
        assert!(create(&link).is_err(), "a link may lead anywhere");
    }
}

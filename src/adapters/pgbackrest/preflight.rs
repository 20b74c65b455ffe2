//! What a restore needs, found before anything is touched: a backup, WAL without a gap, the right cluster and version, room, a place.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::PgBackRest;
use super::copy::mark_of;
use crate::adapters::postgres::discover_bin_directory;
use crate::domain::backup::{RecoveryTarget, RestorePlan};
use crate::domain::ids::SystemIdentifier;
use crate::ports::backup::BackupError;

/// Room beside the database itself: WAL that is replayed, and what PostgreSQL writes at once.
const ROOM_BESIDE_BYTES: u64 = 64 << 20;

/// See [`crate::ports::backup::BackupRepository::plan`].
pub(super) async fn plan(
    backup: &PgBackRest,
    target: &RecoveryTarget,
    directory: &Path,
    in_place: bool,
    expected: Option<SystemIdentifier>,
) -> Result<RestorePlan, BackupError> {
    const ACTION: &str = "find out whether it can be restored";
    let failed = |problem: String| BackupError::new(ACTION, problem);
    let info = backup.info(ACTION, None).await?;
    if let Some(problem) = info.repository.problem.clone().filter(|_| info.repository.backups.is_empty()) {
        return Err(failed(format!("nothing can be restored from the repository: {problem}")));
    }
    if let (Some(found), Some(expected)) = (info.system_identifier, expected)
        && found != expected
    {
        return Err(failed(format!(
            "the repository holds another cluster's data (system identifier {found}, this cluster's is {expected}): correct stanza and \
             repository"
        )));
    }
    let set = info.repository.choose(target).map_err(failed)?;
    bin_directory(backup, set.major_version).map_err(failed)?;
    let archive = backup.archive(ACTION, &info).await?;
    let last_segment = archive.reach(set, target).map_err(failed)?;
    check_place(backup, directory, in_place).map_err(failed)?;
    let tablespaces = backup.info(ACTION, Some(&set.label)).await?.tablespaces;
    if in_place && !tablespaces.is_empty() {
        return Err(failed(format!(
            "the database has tablespaces outside of its data directory ({}), which cannot be put aside: restore a copy with --into, \
             which brings them along",
            tablespaces.join(", ")
        )));
    }
    let free_bytes = check_room(set.database_bytes, directory).map_err(failed)?;
    Ok(RestorePlan {
        label: set.label.clone(),
        ended: set.ended,
        last_segment,
        database_bytes: set.database_bytes,
        free_bytes,
    })
}

/// How much is free, if it is enough: what is there already is used again.
pub(super) fn check_room(bytes: u64, directory: &Path) -> Result<u64, String> {
    let free_bytes = free(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    match too_little(bytes, free_bytes + occupied(directory)) {
        Some(problem) => Err(format!("{problem} in {}", directory.display())),
        None => Ok(free_bytes),
    }
}

/// What is wrong with this much room.
fn too_little(database_bytes: u64, free_bytes: u64) -> Option<String> {
    let needed = database_bytes + database_bytes / 20 + ROOM_BESIDE_BYTES;
    (free_bytes < needed)
        .then(|| format!("the copy needs {needed} bytes and there are {free_bytes}: free space, or restore elsewhere,"))
}

fn existing(directory: &Path) -> &Path {
    directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn free(directory: &Path) -> std::io::Result<u64> {
    let found = rustix::fs::statvfs(existing(directory))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes of the files below a directory.
pub(super) fn occupied(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => occupied(&entry.path()),
            Ok(found) if found.is_file() => found.blocks() * 512,
            _ => 0,
        })
        .sum()
}

fn check_place(backup: &PgBackRest, directory: &Path, in_place: bool) -> Result<(), String> {
    let data = &backup.settings.data_directory;
    if !in_place {
        let is_foreign =
            fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) && !mark_of(directory).exists();
        return if !directory.is_absolute() {
            Err(format!("{} is no absolute path", directory.display()))
        } else if directory.starts_with(data) || data.starts_with(directory) {
            Err(format!("{} and the node's data directory lie in each other", directory.display()))
        } else if is_foreign {
            Err(format!("{} is not empty: name a new directory", directory.display()))
        } else {
            Ok(())
        };
    }
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    if let (Ok(own), Some(Ok(above))) = (device(data), data.parent().map(device))
        && own != above
    {
        return Err(format!(
            "{} is a mount point and cannot be put aside by renaming it: restore a copy with --into, or move the data one directory down",
            data.display()
        ));
    }
    if fs::symlink_metadata(data.join("pg_wal")).is_ok_and(|found| found.is_symlink()) {
        return Err(format!(
            "{} is a symbolic link, and the restored WAL would be inside of the data directory: restore a copy with --into",
            data.join("pg_wal").display()
        ));
    }
    Ok(())
}

/// PostgreSQL's programs for this version.
pub(super) fn bin_directory(backup: &PgBackRest, major_version: u32) -> Result<PathBuf, String> {
    let directory = match &backup.settings.bin_directory {
        Some(directory) => directory.clone(),
        None => {
            let installed = PathBuf::from(format!("/usr/lib/postgresql/{major_version}/bin"));
            if installed.is_dir() { installed } else { discover_bin_directory(Path::new("/nonexistent"))? }
        }
    };
    let version = std::process::Command::new(directory.join("postgres"))
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("{}: {error}", directory.join("postgres").display()))?;
    let said = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let found = said.rsplit(' ').find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    // `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`: the first number after the name counts.
    let named = said.split_once(") ").and_then(|(_, rest)| rest.split(['.', ' ']).next()?.parse::<u32>().ok());
    match named.or(found) {
        Some(found) if found == major_version => Ok(directory),
        _ => Err(format!(
            "the backup is of PostgreSQL {major_version}, and {} has {said:?}: install PostgreSQL {major_version}, or set bin_directory",
            directory.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_judged_with_some_to_spare() {
        assert_eq!(too_little(1000, 2 << 30), None);
        let problem = too_little(1 << 30, 1 << 30).expect("too little");
        assert!(problem.contains("free space"), "{problem}");
    }

    #[test]
    fn what_was_restored_before_counts_as_room() {
        let home = tempfile::tempdir().expect("directory");
        fs::create_dir(home.path().join("base")).expect("made");
        fs::write(home.path().join("base/1"), vec![1; 10_000]).expect("written");
        assert!(occupied(home.path()) >= 8_192);
        assert!(free(&home.path().join("not/yet")).expect("known") > 0);
    }
}

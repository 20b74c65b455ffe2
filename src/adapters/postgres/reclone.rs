//! Replaces the data directory by a copy: a base backup of the primary, or what somebody else brings.
//!
//! Invariant: nothing is taken away before the primary answered and was found to be of the same cluster, nor before WAL that only
//! this node has is kept aside; and with a base backup, except on a mount point, not before the new copy is complete.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::AsyncReadExt;

use super::configuration::{Managed, conninfo, secure, set_signal_files, write_private};
use super::errors::{blocking, failed};
use super::files::{make_private_directory, sync_parent};
use super::programs::{self, last_lines};
use super::rewind::{check_identity, keep_divergent, prepare_standby};
use super::settings::Setup;
use super::upstream::{self, APPLICATION_NAME, Identity};
use super::{control_data, process};
use crate::ports::postgres::{CopySource, DataChange, PostgresError, Presence, Upstream};

const ACTION: &str = "clone the primary";

/// In the lines in which pg_basebackup says how far it is: `31042/31042 kB (100%), 1/1 tablespace`.
const PROGRESS_SIGN: &str = " kB (";

/// What a failed pg_basebackup said; its progress does not count.
const COMPLAINT_BYTES_MAX: usize = 8 * 1024;

/// See [`crate::ports::LocalPostgres::reclone`].
pub(super) async fn reclone(
    setup: &Arc<Setup>,
    upstream: &Upstream,
    change: &dyn DataChange,
    progress: &(dyn Fn(String) + Send + Sync),
) -> Result<(), PostgresError> {
    prepare(setup, upstream, change, progress).await?;
    let data = &setup.data;
    let in_place = is_mount_point(data);
    if in_place {
        change.begins().await?;
    }
    let target = if in_place { data.clone() } else { beside(data, "new") };
    let (here, cleared) = (setup.clone(), target.clone());
    progress(format!("clearing {}", target.display()));
    blocking(ACTION, move || {
        clear(&here, &cleared, in_place)
            .map_err(|error| failed(ACTION, format!("clear {}: {error}", cleared.display())))
    })
    .await?;
    backup(setup, upstream, &target, progress).await?;

    if !in_place {
        change.begins().await?;
    }
    let (here, upstream) = (setup.clone(), upstream.clone());
    progress("putting the copy in place".to_owned());
    blocking(ACTION, move || {
        // Before it is in place: an unsecured copy is never there to be started.
        secure(&here, &target, Some(&Managed::standby_of(&here, Some(&upstream))))?;
        set_signal_files(&here, &target, true)?;
        let at = |error: io::Error| failed(ACTION, format!("put {} in place: {error}", target.display()));
        if in_place { Ok(()) } else { swap(&target, &here.data).map_err(at) }
    })
    .await
}

/// See [`crate::ports::LocalPostgres::reclone_from`].
pub(super) async fn reclone_from(
    setup: &Arc<Setup>,
    upstream: &Upstream,
    source: &dyn CopySource,
    change: &dyn DataChange,
    progress: &(dyn Fn(String) + Send + Sync),
) -> Result<String, PostgresError> {
    let primary = prepare(setup, upstream, change, progress).await?;
    let brought = source.bring(primary.system_identifier, &primary.history, change, progress).await;
    let (words, next) = brought.map_err(|problem| failed(ACTION, problem))?;
    // The segment that it writes is there too.
    upstream::wal_bytes(setup, upstream, &next.to_string(), 0, 1).await.map_err(|error| {
        failed(ACTION, format!("the primary does not go on with WAL segment {next} where the copy ends: {error}"))
    })?;
    prepare_standby(setup, upstream).await?;
    Ok(words)
}

/// Everything that comes before data are taken away.
async fn prepare(
    setup: &Arc<Setup>,
    upstream: &Upstream,
    change: &dyn DataChange,
    progress: &(dyn Fn(String) + Send + Sync),
) -> Result<Identity, PostgresError> {
    match process::presence(setup).await {
        Presence::Stopped | Presence::NoData => {}
        found => return Err(failed(ACTION, format!("PostgreSQL must be stopped, and is: {found:?}"))),
    }
    write_private(setup).map_err(|error| failed(ACTION, error))?;
    progress(format!("asking {} who it is", upstream.address));
    let primary = upstream::identify(setup, upstream).await?;
    // Data too broken to be read may be replaced; readable data of another cluster may not.
    let control = control_data::read(setup).await.ok().flatten();
    if let Some(control) = &control {
        check_identity(control, &primary, upstream)?;
    }
    let wal = setup.data.join("pg_wal");
    if fs::symlink_metadata(&wal).is_ok_and(|found| found.is_symlink()) {
        return Err(failed(
            ACTION,
            format!(
                "{} is a symbolic link, and a clone would put the WAL inside the data directory: clone the node by hand with \
                 pg_basebackup --waldir, then rejoin it",
                wal.display()
            ),
        ));
    }
    match &control {
        Some(control) => keep_divergent(setup, upstream, control, &primary, change).await?,
        None if setup.has_data() => tracing::warn!("pg_control cannot be read: no WAL is kept aside"),
        None => {}
    }
    Ok(primary)
}

/// A directory beside the data directory, on the same filesystem.
pub(super) fn beside(data: &Path, what: &str) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".stormglass-");
    name.push(what);
    PathBuf::from(name)
}

/// A mount point cannot be renamed, and beside it is another filesystem.
pub(super) fn is_mount_point(data: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    match (device(data), data.parent().map(device)) {
        (Ok(own), Some(Ok(above))) => own != above,
        _ => false,
    }
}

/// Removes what an earlier attempt left; in place, the data itself.
fn clear(setup: &Setup, target: &Path, in_place: bool) -> io::Result<()> {
    if !in_place {
        remove_directory(target)?;
        make_private_directory(target, setup.owner)?;
        return Ok(());
    }
    for entry in fs::read_dir(target)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Exchanges the directories. Killed between the two renames it leaves no data directory, and a repeated clone goes on from there.
fn swap(new: &Path, data: &Path) -> io::Result<()> {
    let old = beside(data, "old");
    remove_directory(&old)?;
    match fs::rename(data, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(new, data)?;
    sync_parent(data)?;
    remove_directory(&old)
}

async fn backup(
    setup: &Setup,
    upstream: &Upstream,
    target: &Path,
    progress: &(dyn Fn(String) + Send + Sync),
) -> Result<(), PostgresError> {
    let mut command = programs::command(setup, ACTION, "pg_basebackup")?;
    command.arg("-D").arg(target).args(["-X", "stream", "-c", "fast", "-w", "-P"]);
    command.arg("-d").arg(conninfo(setup, upstream, APPLICATION_NAME));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).env("LC_ALL", "C");
    let mut child = command.spawn().map_err(|error| failed(ACTION, error))?;
    let mut stderr = child.stderr.take().expect("stderr was asked for");
    let (mut said, mut line, mut bytes) = (String::new(), Vec::new(), [0; 4096]);
    loop {
        let length = stderr.read(&mut bytes).await.map_err(|error| failed(ACTION, error))?;
        if length == 0 {
            break;
        }
        for byte in &bytes[..length] {
            if !matches!(byte, b'\r' | b'\n') {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            if text.contains(PROGRESS_SIGN) {
                progress(text);
            } else if said.len() < COMPLAINT_BYTES_MAX {
                said += &(text + "\n");
            }
        }
    }
    let status = child.wait().await.map_err(|error| failed(ACTION, error))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(ACTION, format!("pg_basebackup from {} ended with {status}: {}", upstream.address, last_lines(&said))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_goes_on_where_an_earlier_one_was_killed() {
        let home = tempfile::tempdir().expect("temp");
        let (data, new, old) =
            (home.path().join("data"), home.path().join("new"), home.path().join("data.stormglass-old"));
        for directory in [&new, &old] {
            fs::create_dir(directory).expect("create");
            fs::write(directory.join("PG_VERSION"), "15").expect("write");
        }
        swap(&new, &data).expect("without a data directory");
        assert!(data.join("PG_VERSION").exists() && !old.exists() && !new.exists());
        fs::create_dir(&new).expect("create");
        swap(&new, &data).expect("with one");
        assert!(!data.join("PG_VERSION").exists() && !old.exists(), "the new, empty one is in place");
        assert!(!is_mount_point(&data));
        assert!(is_mount_point(Path::new("/proc")));
    }
}

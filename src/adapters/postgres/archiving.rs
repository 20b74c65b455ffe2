//! A shutdown that waits for no repository.
//!
//! PostgreSQL switches to a new WAL segment when it shuts down and waits until its archiver has brought the last one away. Clients
//! wait as long. While the stop file is there, `archive_command` ends with 255, which ends the archiver; a segment that is on its way
//! is cut off. What is left out, the next primary brings: it has the same WAL.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::errors::{blocking, failed, within};
use super::files::{hand_over, remove, write_atomically};
use super::rewind::segment_timeline;
use super::settings::Setup;
use crate::adapters::system::family;

const ACTION: &str = "suspend archiving";

/// A small file is written; a stalled disk is not waited for.
const SUSPEND_TIMEOUT: Duration = Duration::from_millis(200);

/// Between two looks at what archives.
const LOOK: Duration = Duration::from_millis(20);

/// The program of `archive_command`, as the kernel names its process.
const PROGRAM: &str = "pgbackrest";

/// Before a start: a primary archives.
pub(super) fn resume(setup: &Setup) -> io::Result<()> {
    match &setup.settings.archive_stop_file {
        Some(file) => remove(file),
        None => Ok(()),
    }
}

/// Before a start as a standby: what lies in `pg_wal` of timelines before the newest one is not this node's to archive any more. A former primary keeps the segment in
/// which it parted ways; promoted again it would archive that under the name of another one, fail, and never get to its own. What is
/// missing of older timelines the next primary brings by itself.
pub(super) fn leave_to_others(setup: &Setup) -> io::Result<()> {
    if setup.settings.archive_stop_file.is_none() {
        return Ok(());
    }
    let wal = setup.data.join("pg_wal");
    let status = wal.join("archive_status");
    let names = fs::read_dir(&wal)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let segments: Vec<_> = names.filter_map(|name| Some((segment_timeline(&name)?, name))).collect();
    // Of the newest one it may yet be the only writer.
    let newest = segments.iter().map(|(timeline, _)| *timeline).max();
    for (_, name) in segments.iter().filter(|(timeline, _)| Some(*timeline) < newest) {
        let done = status.join(format!("{name}.done"));
        match fs::rename(status.join(format!("{name}.ready")), &done) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !done.exists() => {
                fs::write(&done, "")?;
                hand_over(&done, setup.owner)?;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Before a shutdown. Without it the shutdown takes longer, and nothing else.
pub(super) async fn suspend(setup: &Arc<Setup>) {
    let here = setup.clone();
    let written = blocking(ACTION, move || match &here.settings.archive_stop_file {
        Some(file) => {
            write_atomically(file, "shutting down\n", here.owner).map(drop).map_err(|error| failed(ACTION, error))
        }
        None => Ok(()),
    });
    if let Err(error) = within(SUSPEND_TIMEOUT, ACTION, written).await {
        tracing::warn!(%error, "the shutdown waits until the last WAL is archived");
    }
}

/// Ends what is on its way to the repository, again and again. Never returns.
pub(super) async fn cut_short(setup: &Arc<Setup>) {
    if setup.settings.archive_stop_file.is_none() {
        return std::future::pending().await;
    }
    loop {
        let here = setup.clone();
        let cut = blocking(ACTION, move || {
            for pid in family::scan(&here.family).map_err(|error| failed(ACTION, error))? {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name.trim() == PROGRAM {
                    family::signal(&here.family, pid, Signal::KILL).map_err(|error| failed(ACTION, error))?;
                }
            }
            Ok(())
        });
        if let Err(error) = cut.await {
            tracing::debug!(%error, "what is on its way to the repository is left alone");
        }
        tokio::time::sleep(LOOK).await;
    }
}

//! A shutdown that waits for no repository, and a standby that leaves older timelines to others. What archives is elsewhere.
//!
//! PostgreSQL switches to a new WAL segment when it shuts down and waits until its archiver has brought the last one away. Clients
//! wait as long. While the stop file is there, `archive_command` ends with 255, which ends the archiver; a segment that is on its way
//! is cut off. What is left out, the next primary brings: it has the same WAL.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::errors::{blocking, failed, within};
use super::files::{hand_over, remove, write_atomically};
use super::rewind::segment_timeline;
use super::settings::{Owner, Setup};
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

/// Before a start as a standby: what `pg_wal` holds of timelines before the newest one is not this node's to archive any more.
///
/// A former primary keeps the segment in which it parted ways. Promoted again it would archive that one under the name of another,
/// which the repository refuses, and never get to its own. What is missing of older timelines the next primary brings by itself.
pub(super) fn leave_to_others(setup: &Setup) -> io::Result<()> {
    match setup.settings.archive_stop_file {
        Some(_) => mark_older_timelines(&setup.data.join("pg_wal"), setup.owner),
        None => Ok(()),
    }
}

fn mark_older_timelines(wal: &Path, owner: Owner) -> io::Result<()> {
    let status = wal.join("archive_status");
    let names = fs::read_dir(wal)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let segments: Vec<_> = names.filter_map(|name| Some((segment_timeline(&name)?, name))).collect();
    // Of the newest one it may yet be the only writer.
    let newest = segments.iter().map(|(timeline, _)| *timeline).max();
    for (_, name) in segments.iter().filter(|(timeline, _)| Some(*timeline) < newest) {
        let done = status.join(format!("{name}.done"));
        match fs::rename(status.join(format!("{name}.ready")), &done) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !done.exists() => {
                fs::write(&done, "")?;
                hand_over(&done, owner)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_older_timelines_are_left_to_others_and_the_newest_timelines_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let wal = directory.path();
        let status = wal.join("archive_status");
        fs::create_dir(&status).expect("made");
        for segment in [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005",
            "000000020000000000000004",
        ] {
            fs::write(wal.join(segment), "").expect("written");
        }
        fs::write(wal.join("00000002.history"), "").expect("written");
        for mark in
            ["000000010000000000000003.done", "000000010000000000000004.ready", "000000020000000000000004.ready"]
        {
            fs::write(status.join(mark), "").expect("written");
        }
        fs::write(status.join("00000002.history.ready"), "").expect("written");
        let owner = Owner { uid: 0, gid: 0, switch: false };
        for _ in 0..2 {
            mark_older_timelines(wal, owner).expect("marked");
        }
        let mut marks: Vec<String> = fs::read_dir(&status)
            .expect("there")
            .map(|entry| entry.expect("read").file_name().into_string().expect("text"))
            .collect();
        marks.sort();
        assert_eq!(
            marks,
            [
                "000000010000000000000003.done",
                "000000010000000000000004.done",
                "000000010000000000000005.done",
                "00000002.history.ready",
                "000000020000000000000004.ready"
            ]
        );
    }
}

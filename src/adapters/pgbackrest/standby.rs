//! A standby from the repository: the node's data directory becomes the newest backup that lies on the primary's history, and `pg_wal` gets
//! the WAL after it, so that the primary is asked for no more than what the repository does not hold.
//!
//! Only ever for a stopped node that is cloned anyway: what is in the way is overwritten. Whether that may be is decided elsewhere.

use std::fs;

use super::PgBackRest;
use super::QUESTION_TIMEOUT;
use super::copy::{restore_command, run_restore};
use super::preflight::{bin_directory, check_room};
use super::run::output;
use crate::domain::backup::{Archive, BackupSet, WalSegment, is_label};
use crate::domain::ids::SystemIdentifier;
use crate::domain::lsn::{History, Timeline};
use crate::ports::backup::{BackupError, Progress};
use crate::ports::postgres::DataChange;

const ACTION: &str = "bring the standby from the repository";

/// Between two words about how far the WAL is, in segments.
const TELL_SEGMENTS: usize = 16;

/// See [`crate::ports::backup::BackupRepository::bring_standby`].
pub(super) async fn bring(
    backup: &PgBackRest,
    expected: SystemIdentifier,
    history: &History,
    change: &dyn DataChange,
    progress: Progress<'_>,
) -> Result<(String, WalSegment), BackupError> {
    let failed = |problem: String| BackupError::new(ACTION, problem);
    let data = &backup.settings.data_directory;
    progress("asking the repository".to_owned());
    let info = backup.info(ACTION, None).await?;
    if info.system_identifier != Some(expected) {
        return Err(failed("the repository does not hold this cluster's data".to_owned()));
    }
    let set = newest_on(&info.repository.backups, history)
        .ok_or_else(|| failed("no backup lies on the primary's history".to_owned()))?;
    bin_directory(backup, set.major_version).map_err(failed)?;
    let archive = backup.archive(ACTION, &info).await?;
    let segments = segments_after(set, history, &archive).map_err(failed)?;
    let tablespaces = backup.info(ACTION, Some(&set.label)).await?.tablespaces;
    if !tablespaces.is_empty() {
        return Err(failed(format!("the database has tablespaces ({})", tablespaces.join(", "))));
    }
    let wal_bytes = segments.len() as u64 * archive.segment_bytes;
    check_room(set.database_bytes + wal_bytes, data).map_err(failed)?;

    change.begins().await.map_err(|error| failed(error.to_string()))?;
    progress(format!("restoring {}", set.label));
    let at = |error: std::io::Error| failed(format!("{}: {error}", data.display()));
    backup.make_directory(data).map_err(at)?;
    // A lock file that a crash left would pass for a PostgreSQL that runs.
    for name in ["postmaster.pid", "recovery.signal", "standby.signal"] {
        match fs::remove_file(data.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(error)),
            _ => {}
        }
    }
    run_restore(restore_command(backup, &set.label), ACTION, data, progress).await?;
    let wal = data.join("pg_wal");
    let archived = wal.join("archive_status");
    backup.make_directory(&archived).map_err(at)?;
    for fork in &history.forks {
        let name = format!("{:08X}.history", timeline_after(history, fork.timeline).0);
        get(backup, &name, &wal).await?;
        mark_archived(backup, &archived, &name).map_err(at)?;
    }
    for (count, segment) in segments.iter().enumerate() {
        if count % TELL_SEGMENTS == 0 {
            progress(format!("bringing WAL, segment {} of {}", count + 1, segments.len()));
        }
        let name = segment.to_string();
        get(backup, &name, &wal).await?;
        mark_archived(backup, &archived, &name).map_err(at)?;
    }
    let last = segments.last().copied().unwrap_or(set.last_segment);
    let next = segment_of(history, last.number(archive.segment_bytes) + 1, archive.segment_bytes);
    Ok((format!("from backup {} and {} segments of WAL", set.label, segments.len()), next))
}

/// One file of the archive, into `pg_wal`.
async fn get(backup: &PgBackRest, name: &str, wal: &std::path::Path) -> Result<(), BackupError> {
    let target = wal.join(name);
    if fs::symlink_metadata(&target).is_ok() {
        return Ok(());
    }
    let mut command = backup.pgbackrest(&backup.settings.file(), "archive-get");
    command.arg(name).arg(&target);
    output(command, ACTION, QUESTION_TIMEOUT).await.map(drop)
}

/// Says that `name` is in the repository, from which it came: once promoted, PostgreSQL would archive every segment once more before its
/// own, and whoever waits for new WAL to arrive would wait for all of them.
fn mark_archived(backup: &PgBackRest, archived: &std::path::Path, name: &str) -> std::io::Result<()> {
    match fs::remove_file(archived.join(format!("{name}.ready"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let done = archived.join(format!("{name}.done"));
    fs::write(&done, "")?;
    backup.hand_over(&done)
}

/// The timeline that took over from `timeline`.
fn timeline_after(history: &History, timeline: Timeline) -> Timeline {
    let place = history.forks.iter().position(|fork| fork.timeline == timeline);
    let next = place.and_then(|place| history.forks.get(place + 1));
    next.map_or(history.timeline, |fork| fork.timeline)
}

/// The newest backup without an error that the primary's history contains as a whole.
fn newest_on<'a>(backups: &'a [BackupSet], history: &History) -> Option<&'a BackupSet> {
    backups.iter().rev().find(|set| {
        !set.has_error && is_label(&set.label) && history.contains(Timeline(set.last_segment.timeline), set.stop_lsn)
    })
}

/// The segment of this number by the primary's history: a timeline begins in the segment in which its ancestor was left.
fn segment_of(history: &History, number: u64, size: u64) -> WalSegment {
    let fork = history.forks.iter().find(|fork| number < fork.switched_at.0 / size);
    WalSegment::of(fork.map_or(history.timeline, |fork| fork.timeline).0, number, size)
}

/// What the repository holds after the beginning of `set`, without a gap.
fn segments_after(set: &BackupSet, history: &History, archive: &Archive) -> Result<Vec<WalSegment>, String> {
    let size = archive.segment_bytes;
    let first = set.first_segment.number(size);
    let held: Vec<WalSegment> = (first..)
        .map(|number| segment_of(history, number, size))
        .take_while(|segment| archive.segments.contains_key(segment))
        .collect();
    match held.last() {
        Some(last) if last.number(size) >= set.last_segment.number(size) => Ok(held),
        _ => Err(format!("WAL without which backup {} is worth nothing is not in the repository", set.label)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::backup::BackupType;
    use crate::domain::clock::WallTime;
    use crate::domain::lsn::{Fork, Lsn};

    const SIZE: u64 = 16 << 20;

    fn segment(timeline: u32, number: u64) -> WalSegment {
        WalSegment::of(timeline, number, SIZE)
    }

    fn set(label: &str, timeline: u32, number: u64) -> BackupSet {
        BackupSet {
            label: label.to_owned(),
            backup_type: BackupType::Full,
            began: WallTime(0),
            ended: WallTime(1),
            start_lsn: Lsn(number * SIZE + 40),
            stop_lsn: Lsn(number * SIZE + 400),
            first_segment: segment(timeline, number),
            last_segment: segment(timeline, number),
            database_bytes: 1,
            repository_bytes: 1,
            reference: Vec::new(),
            major_version: 15,
            has_error: false,
        }
    }

    /// Timeline 1 until the middle of segment 5, then 3: somebody else's 2 parted in segment 4.
    fn history() -> History {
        let fork = Fork { timeline: Timeline(1), switched_at: Lsn(5 * SIZE + SIZE / 2) };
        History { timeline: Timeline(3), forks: vec![fork] }
    }

    fn archive(segments: &[(u32, u64)]) -> Archive {
        let segments = segments.iter().map(|(timeline, number)| (segment(*timeline, *number), WallTime(0)));
        Archive { segments: segments.collect(), segment_bytes: SIZE, ..Archive::default() }
    }

    #[test]
    fn only_a_backup_on_the_primarys_history_is_taken_and_the_newest_of_them() {
        let backups = [
            set("20261128-100000F", 1, 2),
            set("20261128-110000F", 1, 4),
            set("20261128-120000F", 2, 6),
            set("20261128-130000F", 1, 7),
        ];
        let found = newest_on(&backups, &history()).expect("one");
        assert_eq!(found.label, "20261128-110000F", "not of timeline 2, and not after the fork of timeline 1");
        let damaged = [backups[0].clone(), BackupSet { has_error: true, ..backups[1].clone() }];
        assert_eq!(newest_on(&damaged, &history()).expect("one").label, "20261128-100000F");
        assert!(newest_on(&backups[2..], &history()).is_none());
    }

    #[test]
    fn wal_is_taken_along_the_primarys_history_until_the_first_gap() {
        let set = set("20261128-100000F", 1, 2);
        let all = archive(&[(1, 2), (1, 3), (1, 4), (2, 4), (2, 5), (1, 5), (3, 5), (3, 6), (3, 8)]);
        let taken = segments_after(&set, &history(), &all).expect("enough");
        assert_eq!(taken, [segment(1, 2), segment(1, 3), segment(1, 4), segment(3, 5), segment(3, 6)]);
        assert_eq!(segment_of(&history(), 7, SIZE), segment(3, 7), "with which the primary goes on");
        assert_eq!(segments_after(&set, &history(), &archive(&[(1, 2)])).expect("just enough").len(), 1);
        let problem = segments_after(&set, &history(), &archive(&[(1, 3)])).expect_err("worth nothing");
        assert!(problem.contains("20261128-100000F"), "{problem}");
        assert_eq!(timeline_after(&history(), Timeline(1)), Timeline(3));
    }
}

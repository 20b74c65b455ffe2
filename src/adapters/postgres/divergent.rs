//! WAL that a former primary wrote and the primary's history does not contain: kept aside before a rewind or a new copy throws it away,
//! with what it held. Never changes the data directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::control_data::Control;
use super::errors::{blocking, failed, within};
use super::files::{hand_over, make_private_directory, sync_parent};
use super::programs;
use super::rewind::{WAL_TIMEOUT, segment_number, segment_timeline, timelines_past};
use super::settings::Setup;
use crate::domain::clock::WallTime;
use crate::domain::loss::LostWal;
use crate::domain::lsn::{History, Lsn, Timeline};
use crate::ports::postgres::{DataChange, PostgresError};

const ACTION: &str = "keep divergent WAL aside";

/// So many commits are listed one by one.
const TRANSACTIONS_LISTED: usize = 10_000;

/// Copies the WAL that pg_rewind throws away to `<divergent_directory>/<node>-timeline-<n>-from-<lsn>`.
pub(super) async fn keep_aside(
    setup: &Arc<Setup>,
    control: &Control,
    local: &History,
    fork: Lsn,
    end: Option<Lsn>,
    change: &dyn DataChange,
) -> Result<(), PostgresError> {
    let (here, segment_bytes, timeline) = (setup.clone(), control.wal_segment_bytes, local.timeline);
    let timelines = timelines_past(local, fork);
    let kept = blocking(ACTION, move || {
        let name = format!("{}-timeline-{timeline}-from-{}", here.settings.node, fork.to_string().replace('/', "-"));
        let target = here.settings.divergent_directory.join(name);
        let range = (fork.0 / segment_bytes, end.map_or(u64::MAX, |end| end.0 / segment_bytes + 1));
        copy_segments(&here, &target, segment_bytes, range, &timelines)
            .map_err(|error| {
                failed(
                    ACTION,
                    format!(
                        "keep divergent WAL in {}: {error}; nothing was changed; free space there or change divergent_directory",
                        target.display()
                    ),
                )
            })
            .map(|count| (target, count))
    });
    let (target, count): (PathBuf, usize) = kept.await?;
    tracing::warn!(directory = %target.display(), segments = count, from = %fork, "divergent WAL kept aside");
    let held = transactions(setup, &target, timeline, fork).await;
    let (held, last_commit_at) =
        held.unwrap_or_else(|| ("pg_waldump cannot tell which transactions it held".to_owned(), None));
    let lost = end.map(|end| LostWal { bytes: end.bytes_after(fork), last_commit_at });
    let lost = lost.map_or_else(String::new, |lost| format!("; {lost}"));
    change.kept(&format!("divergent WAL from {fork} is kept in {}; {held}{lost}", target.display()));
    Ok(())
}

/// Which transactions the WAL that was kept committed, by pg_waldump, in words, and when the last of them; all of them are listed in a
/// file beside it.
async fn transactions(setup: &Setup, kept: &Path, timeline: Timeline, fork: Lsn) -> Option<(String, Option<WallTime>)> {
    let mut command = programs::command(setup, ACTION, "pg_waldump").ok()?;
    command.arg("-p").arg(kept).arg("-t").arg(timeline.to_string()).arg("-s").arg(fork.to_string());
    command.args(["-r", "Transaction"]).stdout(Stdio::piped()).stderr(Stdio::null());
    command.env("LC_ALL", "C").env("TZ", "UTC");
    let mut child = command.spawn().ok()?;
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    let read = async {
        let mut commits = Vec::new();
        let (mut count, mut last) = (0_u64, None);
        while let Some(line) = lines.next_line().await.map_err(|error| failed(ACTION, error))? {
            if line.contains("desc: COMMIT") {
                count += 1;
                last = Some(line.clone());
                if commits.len() < TRANSACTIONS_LISTED {
                    commits.push(line);
                }
            }
        }
        // It always ends with an error: behind the last record there is none.
        let _ = child.wait().await;
        Ok((count, commits, last))
    };
    let (count, commits, last_line) = within(WAL_TIMEOUT, ACTION, read).await.ok()?;
    let number = |line: &String| Some(line.split_once("tx:")?.1.split(',').next()?.trim().to_owned());
    let (first, last) = (commits.first().and_then(number), last_line.as_ref().and_then(number));
    let last_commit_at = last_line.as_deref().and_then(commit_time);
    let list = kept.join("transactions.txt");
    let (text, owner_of) = (commits.join("\n") + "\n", setup.owner);
    let written = blocking(ACTION, move || {
        let write = || fs::write(&list, text).and_then(|()| hand_over(&list, owner_of));
        write().map_err(|error| failed(ACTION, format!("{}: {error}", list.display())))
    });
    if let Err(error) = written.await {
        tracing::warn!(%error, "the transactions of divergent WAL are not listed");
    }
    let words = match (count, first, last) {
        (0, ..) => "it held no commit".to_owned(),
        (1, Some(only), _) => format!("it held 1 commit, of transaction {only}"),
        (count, Some(first), Some(last)) => format!("it held {count} commits, of transactions {first} to {last}"),
        (count, ..) => format!("it held {count} commits"),
    };
    Some((words, last_commit_at))
}

/// `… desc: COMMIT 2026-11-28 21:18:05.123456 UTC; …`
fn commit_time(line: &str) -> Option<WallTime> {
    let mut words = line.split_once("desc: COMMIT")?.1.split_whitespace();
    let words = words.by_ref().skip_while(|word| !word.starts_with(|first: char| first.is_ascii_digit()));
    let mut words = words.take(2).map(|word| word.trim_end_matches(';'));
    WallTime::try_from(format!("{}T{}Z", words.next()?, words.next()?)).ok()
}

/// Whole or not at all. What an earlier attempt kept stays: half a rewind may have changed the data since.
fn copy_segments(
    setup: &Setup,
    target: &Path,
    segment_bytes: u64,
    range: (u64, u64),
    timelines: &BTreeSet<Timeline>,
) -> std::io::Result<usize> {
    if target.exists() {
        return Ok(fs::read_dir(target)?.count());
    }
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(above) = partial.parent() {
        make_private_directory(above, setup.owner)?;
    }
    make_private_directory(&partial, setup.owner)?;
    let mut count = 0;
    for entry in fs::read_dir(setup.data.join("pg_wal"))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_wanted = match segment_timeline(name) {
            Some(timeline) => {
                timelines.contains(&timeline)
                    && segment_number(name, segment_bytes).is_some_and(|number| range.0 <= number && number <= range.1)
            }
            None => name.ends_with(".history"),
        };
        if is_wanted {
            copy_durably(&path, &partial.join(name), setup)?;
            count += 1;
        }
    }
    fs::File::open(&partial)?.sync_all()?;
    fs::rename(&partial, target)?;
    sync_parent(target)?;
    Ok(count)
}

fn copy_durably(from: &Path, to: &PathBuf, setup: &Setup) -> std::io::Result<()> {
    fs::copy(from, to)?;
    hand_over(to, setup.owner)?;
    fs::File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_commit_is_read() {
        let line = "rmgr: Transaction len (rec/tot):     34/    34, tx:        739, lsn: 0/0159D0B8, prev 0/0159D078, \
                    desc: COMMIT 2026-11-28 21:18:05.123456 UTC; inval msgs: catcache 80";
        let at = WallTime::try_from("2026-11-28T21:18:05.123456Z".to_owned()).expect("a time");
        assert_eq!(commit_time(line), Some(at));
        let prepared = line.replace("COMMIT 2026", "COMMIT_PREPARED 740: 2026");
        assert_eq!(commit_time(&prepared), None, "its number is no date");
        assert_eq!(commit_time("desc: ABORT 2026-11-28 21:18:05.123456 UTC"), None);
    }
}

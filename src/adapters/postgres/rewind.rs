//! Brings a stopped data directory onto the primary's history, keeping aside what that history does not contain.
//!
//! Never starts PostgreSQL for clients. Whether a rewind is due is decided by the last WAL record on disk, not by the last
//! checkpoint: a primary that was killed and whose WAL the new primary has in full needs none.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::configuration::{Managed, conninfo, secure, set_signal_files, write_private};
use super::control_data::{self, Control};
use super::divergent::keep_aside;
use super::errors::{blocking, failed, within};
use super::files::remove;
use super::observe::parse_history;
use super::settings::Setup;
use super::upstream::{self, APPLICATION_NAME, Identity};
use super::{process, programs};
use crate::domain::lsn::{Fork, History, Lsn, Timeline};
use crate::ports::postgres::{DataChange, PostgresError, Presence, RewindOutcome, Upstream};

const ACTION: &str = "rewind";

/// Crash recovery and the copying of changed blocks of a large database; only a bound, against waiting for ever.
const REWIND_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// A record's header and a part of what follows; the record that begins a timeline is longer.
const FIRST_RECORD_BYTES: usize = 48;

/// Records begin at multiples of this.
const RECORD_ALIGNMENT: u64 = 8;

/// Reading the WAL since the last checkpoint. Beyond it the end counts as unknown, and pg_rewind decides.
pub(super) const WAL_TIMEOUT: Duration = Duration::from_secs(120);

/// See [`crate::ports::LocalPostgres::rewind`].
pub(super) async fn rewind(
    setup: &Arc<Setup>,
    upstream: &Upstream,
    change: &dyn DataChange,
) -> Result<RewindOutcome, PostgresError> {
    match process::presence(setup).await {
        Presence::Stopped => {}
        found => return Err(failed(ACTION, format!("PostgreSQL must be stopped, and is: {found:?}"))),
    }
    write_private(setup).map_err(|error| failed(ACTION, error))?;
    let control = control_data::read(setup).await?.ok_or_else(|| failed(ACTION, "no data: clone the node instead"))?;
    let primary = upstream::identify(setup, upstream).await?;
    check_identity(&control, &primary, upstream)?;

    let (here, known) = (setup.clone(), control.clone());
    let local = blocking(ACTION, move || local_history(&here, &known)).await?;
    let (last, end) = last_record(setup, &control, &local).await.unzip();
    match compare(setup, upstream, &control, &local, last, &primary.history).await {
        Divergence::None => {
            prepare_standby(setup, upstream).await?;
            Ok(RewindOutcome::NotNeeded)
        }
        Divergence::SameNumber => Err(failed(
            ACTION,
            format!(
                "timeline {} of this node and of {} have the same number and different histories: reclone the node",
                local.timeline, upstream.address
            ),
        )),
        Divergence::From(fork) => {
            keep_aside(setup, &control, &local, fork, end, change).await?;
            upstream::wait_for_checkpoint(setup, upstream, primary.history.timeline).await?;
            change.begins().await?;
            let outcome = run_pg_rewind(setup, upstream).await?;
            if outcome == RewindOutcome::NotNeeded && last.is_some() {
                // Trusting it would leave this node's own rows in a standby.
                return Err(failed(
                    ACTION,
                    format!(
                        "pg_rewind found nothing to do, yet the WAL of this node goes on past {fork}: reclone the node"
                    ),
                ));
            }
            prepare_standby(setup, upstream).await?;
            Ok(outcome)
        }
    }
}

/// Before a reclone takes the data away: its WAL that the primary's history does not contain, if there is any.
pub(super) async fn keep_divergent(
    setup: &Arc<Setup>,
    upstream: &Upstream,
    control: &Control,
    primary: &Identity,
    change: &dyn DataChange,
) -> Result<(), PostgresError> {
    let local = match local_history(setup, control) {
        Ok(local) => local,
        Err(error) => {
            tracing::warn!(%error, "no WAL can be kept aside before the data directory is replaced");
            return Ok(());
        }
    };
    let (last, end) = last_record(setup, control, &local).await.unzip();
    let fork = match compare(setup, upstream, control, &local, last, &primary.history).await {
        Divergence::None => return Ok(()),
        Divergence::From(fork) => fork,
        Divergence::SameNumber => local.forks.last().map_or(Lsn(0), |fork| fork.switched_at),
    };
    keep_aside(setup, control, &local, fork, end, change).await
}

/// [`divergence`], and what the numbers alone do not tell: two promotions from one point that took the same number.
async fn compare(
    setup: &Setup,
    upstream: &Upstream,
    control: &Control,
    local: &History,
    last: Option<Lsn>,
    primary: &History,
) -> Divergence {
    let found = divergence(local, last.or(clean_end(control)), primary);
    if found != Divergence::None || local.timeline != primary.timeline {
        return found;
    }
    // A timeline has one writer. Where this node was it, the primary's timeline of that number is another one.
    let is_backup = setup.data.join("backup_label").exists();
    let wrote =
        !is_backup && !matches!(control.data.cluster_state.as_str(), "in archive recovery" | "shut down in recovery");
    let has_other_wal = match local.forks.last().zip(last) {
        Some((fork, last)) if last >= fork.switched_at => {
            begins_otherwise(setup, upstream, control, local.timeline, fork.switched_at).await
        }
        _ => false,
    };
    if wrote || has_other_wal { Divergence::SameNumber } else { Divergence::None }
}

/// Whether the first record of the timeline, which carries the time of the promotion and a checksum, is another one than the
/// primary's. False where it can no longer be compared.
async fn begins_otherwise(
    setup: &Setup,
    upstream: &Upstream,
    control: &Control,
    timeline: Timeline,
    fork: Lsn,
) -> bool {
    let segment = fork.0 / control.wal_segment_bytes;
    let in_high = (1 << 32) / control.wal_segment_bytes;
    let name = format!("{:08X}{:08X}{:08X}", timeline.0, segment / in_high, segment % in_high);
    let offset = fork.0 % control.wal_segment_bytes;
    let path = setup.data.join("pg_wal").join(&name);
    let own = blocking(ACTION, move || {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = fs::File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; FIRST_RECORD_BYTES];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| failed(ACTION, format!("{}: {error}", path.display())))
    });
    let theirs = upstream::wal_bytes(setup, upstream, &name, offset, FIRST_RECORD_BYTES);
    match (own.await, theirs.await) {
        (Ok(own), Ok(theirs)) => own.iter().map(|byte| format!("{byte:02x}")).collect::<String>() != theirs,
        (Err(error), _) | (_, Err(error)) => {
            tracing::info!(%error, %timeline, "the beginning of the timeline cannot be compared with the primary's");
            false
        }
    }
}

/// Refuses another cluster's data before anything is changed.
pub(super) fn check_identity(control: &Control, primary: &Identity, upstream: &Upstream) -> Result<(), PostgresError> {
    let (own, theirs) = (control.data.system_identifier, primary.system_identifier);
    if own == theirs {
        return Ok(());
    }
    Err(failed(
        ACTION,
        format!(
            "the data directory belongs to another cluster (system identifier {own}) than {} ({theirs}): nothing was changed; \
             check data_directory and the addresses, or move the directory away",
            upstream.address
        ),
    ))
}

/// The timeline that the node last wrote or received, and its ancestors.
fn local_history(setup: &Setup, control: &Control) -> Result<History, PostgresError> {
    let wal = setup.data.join("pg_wal");
    let entries = fs::read_dir(&wal).map_err(|error| failed(ACTION, format!("{}: {error}", wal.display())))?;
    // Right after a promotion, or on a standby, the control file is behind the WAL.
    let timeline = entries
        .filter_map(|entry| segment_timeline(entry.ok()?.file_name().to_str()?))
        .chain([control.data.timeline, control.recovery_timeline])
        .max()
        .unwrap_or(control.data.timeline);
    let text = fs::read_to_string(wal.join(format!("{:08X}.history", timeline.0))).unwrap_or_default();
    Ok(History { timeline, forks: parse_history(&text) })
}

/// Timeline in the name of a WAL segment; `None` for other files.
pub(super) fn segment_timeline(name: &str) -> Option<Timeline> {
    let is_segment = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_segment { u32::from_str_radix(&name[..8], 16).ok().map(Timeline) } else { None }
}

/// The timelines on which the local history goes on past `fork`. Each promotion leaves a segment of the same number on another
/// one; those of before hold nothing that the primary lacks.
pub(super) fn timelines_past(local: &History, fork: Lsn) -> BTreeSet<Timeline> {
    let ended_later = local.forks.iter().filter(|ended| ended.switched_at > fork).map(|ended| ended.timeline);
    ended_later.chain([local.timeline]).collect()
}

/// Number of a segment in the whole log, from its name.
pub(super) fn segment_number(name: &str, segment_bytes: u64) -> Option<u64> {
    let high = u64::from_str_radix(name.get(8..16)?, 16).ok()?;
    let low = u64::from_str_radix(name.get(16..24)?, 16).ok()?;
    Some(high * ((1 << 32) / segment_bytes) + low)
}

/// Where a cleanly stopped primary's log ends: its shutdown record.
fn clean_end(control: &Control) -> Option<Lsn> {
    control.data.is_shut_down().then_some(control.data.checkpoint)
}

/// Where the last valid record on disk begins, and where it ends; `None` if it cannot be found.
async fn last_record(setup: &Setup, control: &Control, local: &History) -> Option<(Lsn, Lsn)> {
    let start = if control.data.timeline == local.timeline {
        control.redo
    } else {
        local.forks.last().map(|fork| fork.switched_at)?
    };
    let mut command = programs::command(setup, ACTION, "pg_waldump").ok()?;
    command.arg("-p").arg(setup.data.join("pg_wal")).arg("-t").arg(local.timeline.to_string());
    command.arg("-s").arg(start.to_string()).stdout(Stdio::piped()).stderr(Stdio::null()).env("LC_ALL", "C");
    let mut child = command.spawn().ok()?;
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    let read = async {
        let mut last = None;
        while let Some(line) = lines.next_line().await.map_err(|error| failed(ACTION, error))? {
            last = record_extent(&line).or(last);
        }
        // It always ends with an error: behind the last record there is none.
        let _ = child.wait().await;
        Ok(last)
    };
    within(WAL_TIMEOUT, ACTION, read).await.ok().flatten()
}

/// `… len (rec/tot):    114/   114, tx: …, lsn: 0/3000028, prev …`
fn record_extent(line: &str) -> Option<(Lsn, Lsn)> {
    let begins: Lsn = line.split_once(" lsn: ")?.1.split(',').next()?.parse().ok()?;
    let total = line.split_once("len (rec/tot):")?.1.split(',').next()?.split_once('/')?.1;
    let total: u64 = total.trim().parse().ok()?;
    // Headers of pages that it crosses are not counted.
    Some((begins, Lsn(begins.0 + total.next_multiple_of(RECORD_ALIGNMENT))))
}

#[derive(Debug, PartialEq, Eq)]
enum Divergence {
    /// All local WAL is part of the primary's history.
    None,
    /// The last point in common.
    From(Lsn),
    /// Two promotions took the same number: nothing tells the data apart but the forks before.
    SameNumber,
}

/// Compares what is on disk with the primary's history. `last`: begin of the last local record; unknown counts as divergent.
fn divergence(local: &History, last: Option<Lsn>, primary: &History) -> Divergence {
    let is_ancestor = |index: usize| primary.forks.get(index) == local.forks.get(index);
    let ancestors_agree = (0..local.forks.len()).all(is_ancestor);
    match primary.reach_on(local.timeline) {
        Some(_) if !ancestors_agree && local.timeline == primary.timeline => Divergence::SameNumber,
        // A record that begins before the fork ends before it too: forks lie between records.
        Some(reach) if ancestors_agree => match last {
            Some(last) if last < reach => Divergence::None,
            Some(_) | None => Divergence::From(reach),
        },
        _ => Divergence::From(last_in_common(local, primary)),
    }
}

/// The earlier of the two forks where the histories part.
fn last_in_common(local: &History, primary: &History) -> Lsn {
    let differing = local.forks.iter().enumerate().find(|(index, fork)| primary.forks.get(*index) != Some(*fork));
    let parting = match differing {
        Some((_, Fork { timeline, switched_at })) => {
            primary.reach_on(*timeline).map_or(*switched_at, |reach| reach.min(*switched_at))
        }
        None => primary.forks.get(local.forks.len()).map_or(Lsn(0), |fork| fork.switched_at),
    };
    if parting == Lsn(u64::MAX) { local.forks.last().map_or(Lsn(0), |fork| fork.switched_at) } else { parting }
}

async fn run_pg_rewind(setup: &Arc<Setup>, upstream: &Upstream) -> Result<RewindOutcome, PostgresError> {
    let here = setup.clone();
    blocking(ACTION, move || {
        // pg_rewind first finishes crash recovery in single-user mode, which refuses to be a standby, and takes a stale
        // lock file whose number was used again for a running server.
        set_signal_files(&here, &here.data, false)?;
        remove(&here.data.join("postmaster.pid")).map_err(|error| failed(ACTION, error))
    })
    .await?;
    let mut command = programs::command(setup, ACTION, "pg_rewind")?;
    let source = format!("{} dbname=postgres", conninfo(setup, upstream, APPLICATION_NAME));
    command.arg("--target-pgdata").arg(&setup.data).arg("--source-server").arg(source);
    if let Some(directory) = setup.settings.config_directory.as_deref().filter(|_| knows_config_file(setup)) {
        // For the crash recovery: PostgreSQL would look for it in the data directory.
        command.arg("--config-file").arg(directory.join("postgresql.conf"));
    }
    let said = programs::run(command, ACTION, REWIND_TIMEOUT).await?;
    Ok(if said.stderr.contains("no rewind required") { RewindOutcome::NotNeeded } else { RewindOutcome::Rewound })
}

/// pg_rewind takes `--config-file` from PostgreSQL 15 on; an older one fails where crash recovery is due, and a new copy is made.
fn knows_config_file(setup: &Setup) -> bool {
    let version = fs::read_to_string(setup.data.join("PG_VERSION")).unwrap_or_default();
    version.trim().parse::<u32>().is_ok_and(|major| major >= 15)
}

/// The primary's configuration files may have come over, its include file among them.
pub(super) async fn prepare_standby(setup: &Arc<Setup>, upstream: &Upstream) -> Result<(), PostgresError> {
    let (here, upstream) = (setup.clone(), upstream.clone());
    blocking(ACTION, move || {
        secure(&here, &here.data, Some(&Managed::standby_of(&here, Some(&upstream))))?;
        set_signal_files(&here, &here.data, true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, forks: &[(u32, u64)]) -> History {
        let fork = |&(timeline, at): &(u32, u64)| Fork { timeline: Timeline(timeline), switched_at: Lsn(at) };
        History { timeline: Timeline(timeline), forks: forks.iter().map(fork).collect() }
    }

    #[test]
    fn the_last_record_decides_and_not_its_end() {
        let primary = history(2, &[(1, 1000)]);
        let local = history(1, &[]);
        assert_eq!(divergence(&local, Some(Lsn(900)), &primary), Divergence::None);
        assert_eq!(divergence(&local, Some(Lsn(1000)), &primary), Divergence::From(Lsn(1000)), "begins at the fork");
        assert_eq!(divergence(&local, Some(Lsn(5000)), &primary), Divergence::From(Lsn(1000)));
        assert_eq!(divergence(&local, None, &primary), Divergence::From(Lsn(1000)), "unknown counts as divergent");
        assert_eq!(divergence(&history(2, &[(1, 1000)]), Some(Lsn(5000)), &primary), Divergence::None);
    }

    #[test]
    fn equal_numbers_are_not_equal_histories() {
        let primary = history(2, &[(1, 1000)]);
        assert_eq!(divergence(&history(2, &[(1, 900)]), Some(Lsn(950)), &primary), Divergence::SameNumber);
        let newer = history(3, &[(1, 1000), (2, 2000)]);
        assert_eq!(divergence(&history(2, &[(1, 900)]), Some(Lsn(950)), &newer), Divergence::From(Lsn(900)));
        assert_eq!(
            divergence(&history(3, &[(1, 1000), (2, 2000)]), Some(Lsn(1)), &primary),
            Divergence::From(Lsn(2000))
        );
        assert_eq!(divergence(&history(4, &[(1, 700)]), Some(Lsn(800)), &primary), Divergence::From(Lsn(700)));
    }

    #[test]
    fn only_timelines_that_go_on_past_the_fork_are_kept() {
        let local = history(4, &[(1, 700), (2, 800), (3, 900)]);
        let past = |fork| timelines_past(&local, Lsn(fork)).into_iter().map(|timeline| timeline.0).collect::<Vec<_>>();
        assert_eq!((past(900), past(850), past(100)), (vec![4], vec![3, 4], vec![1, 2, 3, 4]));
    }

    #[test]
    fn segments_are_told_from_other_files() {
        assert_eq!(segment_timeline("000000020000000100000003"), Some(Timeline(2)));
        assert_eq!(segment_timeline("00000002.history"), None);
        assert_eq!(segment_timeline("000000020000000100000003.partial"), None);
        assert_eq!(segment_number("000000020000000100000003", 16 << 20), Some(256 + 3));
        let line =
            "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000028, prev 0/02000110, desc: …";
        assert_eq!(record_extent(line), Some((Lsn(0x300_0028), Lsn(0x300_0028 + 120))));
    }
}

//! Asks a primary on another host for its identity and history, with the replication role and by way of libpq, as streaming,
//! pg_rewind and pg_basebackup do: what works here works there.

use std::sync::Arc;
use std::time::Duration;

use super::configuration::conninfo;
use super::control_data;
use super::errors::{failed, within};
use super::observe::parse_history;
use super::programs;
use super::settings::Setup;
use crate::domain::backup::WalSegment;
use crate::domain::ids::SystemIdentifier;
use crate::domain::lsn::{History, Lsn, Timeline};
use crate::ports::postgres::{PostgresError, Upstream};

const ACTION: &str = "ask the primary";

/// Two small questions to a healthy primary.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A forced checkpoint of a large, busy primary.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(600);

/// Pause between two questions whether it is done; each starts a program.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(100);

/// Never the node's own name: a backup's WAL stream must not be taken for the synchronous standby.
pub(super) const APPLICATION_NAME: &str = "stormglass-rejoin";

/// What a rejoin must know of the primary.
pub(super) struct Identity {
    pub system_identifier: SystemIdentifier,
    pub history: History,
}

/// Asks over the replication protocol, which needs no right but REPLICATION.
pub(super) async fn identify(setup: &Setup, upstream: &Upstream) -> Result<Identity, PostgresError> {
    let answer = ask(setup, upstream, "replication=true", "IDENTIFY_SYSTEM", TIMEOUT).await?;
    let not_understood = || failed(ACTION, format!("{} identified itself as {answer:?}", upstream.address));
    let mut fields = answer.trim().split('|');
    let system_identifier = fields.next().and_then(|field| field.parse().ok()).map(SystemIdentifier);
    let timeline = fields.next().and_then(|field| field.parse().ok()).map(Timeline);
    let (Some(system_identifier), Some(timeline)) = (system_identifier, timeline) else {
        return Err(not_understood());
    };
    let mut history = History::root(timeline);
    if timeline > Timeline(1) {
        let question = format!("TIMELINE_HISTORY {timeline}");
        let file = ask(setup, upstream, "replication=true", &question, TIMEOUT).await?;
        // Name of the file, then its content.
        history.forks = parse_history(file.split_once('|').ok_or_else(not_understood)?.1);
    }
    Ok(Identity { system_identifier, history })
}

/// Waits until the primary's control file shows `timeline`. Before that pg_rewind (up to 15) takes a primary that was just
/// promoted for one that still is on the old timeline, finds nothing to do and reports success.
pub(super) async fn wait_for_checkpoint(
    setup: &Setup,
    upstream: &Upstream,
    timeline: Timeline,
) -> Result<(), PostgresError> {
    const QUESTION: &str = "select timeline_id from pg_catalog.pg_control_checkpoint()";
    let wait = async {
        let mut was_asked = false;
        loop {
            let shown = ask(setup, upstream, "dbname=postgres", QUESTION, TIMEOUT).await?;
            if shown.trim().parse().is_ok_and(|shown| Timeline(shown) >= timeline) {
                return Ok(());
            }
            if !was_asked {
                was_asked = true;
                // Its own agent asks for one after a promotion; a role that may not is no harm.
                if let Err(error) = ask(setup, upstream, "dbname=postgres", "checkpoint", CHECKPOINT_TIMEOUT).await {
                    tracing::debug!(%error, "no checkpoint on the primary before pg_rewind");
                }
            }
            tokio::time::sleep(CHECKPOINT_PAUSE).await;
        }
    };
    within(CHECKPOINT_TIMEOUT, "wait for the primary's first checkpoint after its promotion", wait).await
}

/// Bytes of a WAL segment of the primary, in hexadecimal digits. Needs the right that pg_rewind needs.
pub(super) async fn wal_bytes(
    setup: &Setup,
    upstream: &Upstream,
    segment: &str,
    offset: u64,
    length: usize,
) -> Result<String, PostgresError> {
    let question = format!(
        "select pg_catalog.encode(pg_catalog.pg_read_binary_file('pg_wal/{segment}', {offset}, {length}, false), 'hex')"
    );
    Ok(ask(setup, upstream, "dbname=postgres", &question, TIMEOUT).await?.trim().to_owned())
}

/// See [`crate::ports::LocalPostgres::wal_gone`]. Needs the right that pg_rewind needs.
pub(super) async fn wal_gone(
    setup: &Arc<Setup>,
    upstream: &Upstream,
    position: Lsn,
) -> Result<Option<String>, PostgresError> {
    let control = control_data::read(setup).await?.ok_or_else(|| failed(ACTION, "there is no data"))?;
    let primary = identify(setup, upstream).await?;
    let segments = segments_at(&primary.history, position, control.wal_segment_bytes);
    let names: Vec<String> = segments.iter().map(|segment| format!("'pg_wal/{segment}'")).collect();
    // What is not written yet is not gone.
    let question = format!(
        "select pg_catalog.pg_current_wal_flush_lsn() > '{position}' and not exists (select from \
         pg_catalog.unnest(array[{}]) as name where (pg_catalog.pg_stat_file(name, true)).size is not null)",
        names.join(", ")
    );
    let is_gone = ask(setup, upstream, "dbname=postgres", &question, TIMEOUT).await?.trim() == "t";
    Ok(is_gone.then(|| {
        format!("the WAL with which it would go on ({}, for {position}) is no longer on {}", segments[0], upstream.node)
    }))
}

/// Files that may hold what follows `position`: a timeline begins in the segment in which its ancestor was left.
fn segments_at(history: &History, position: Lsn, segment_bytes: u64) -> Vec<WalSegment> {
    let number = position.0 / segment_bytes;
    let ancestors = history.forks.iter().filter(|fork| position <= fork.switched_at).map(|fork| fork.timeline);
    let timelines = ancestors.chain([history.timeline]);
    timelines.map(|timeline| WalSegment::of(timeline.0, number, segment_bytes)).collect()
}

async fn ask(
    setup: &Setup,
    upstream: &Upstream,
    target: &str,
    question: &str,
    timeout: Duration,
) -> Result<String, PostgresError> {
    let mut command = programs::command(setup, ACTION, "psql")?;
    command.args(["-X", "-A", "-t", "-w", "-q", "-v", "ON_ERROR_STOP=1"]);
    command.arg("-d").arg(format!("{} {target}", conninfo(setup, upstream, APPLICATION_NAME)));
    command.arg("-c").arg(question);
    Ok(programs::run(command, ACTION, timeout).await?.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lsn::Fork;

    #[test]
    fn what_follows_a_position_may_lie_on_the_timelines_after_it() {
        const SIZE: u64 = 16 << 20;
        let fork = Fork { timeline: Timeline(1), switched_at: Lsn(5 * SIZE + 8) };
        let history = History { timeline: Timeline(3), forks: vec![fork] };
        let names = |position| {
            let found = segments_at(&history, Lsn(position), SIZE);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(5 * SIZE), ["000000010000000000000005", "000000030000000000000005"]);
        assert_eq!(names(6 * SIZE), ["000000030000000000000006"], "the ancestor was left before");
    }
}

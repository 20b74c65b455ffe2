//! Everything that SQL tells of a running PostgreSQL, in one question.

use std::time::Duration;

use serde::Deserialize;

use super::errors::failed;
use crate::domain::clock::WallTime;
use crate::domain::ids::{Address, SystemIdentifier};
use crate::domain::lsn::{Fork, History, Lsn, Timeline};
use crate::domain::report::{
    ArchiverReport, ClockReport, ConnectionReport, LiveReport, ReceiverReport, SlotReport, StandbyRow, UpkeepReport,
    WaitReport,
};
use crate::domain::work::WorkReport;
use crate::ports::postgres::PostgresError;

pub(super) const ACTION: &str = "observe PostgreSQL";

/// One row, one column: a JSON object of the shape of [`Answer`]. Good for PostgreSQL 13 to 17, primary and standby.
///
/// A standby's timeline is the highest that it received or replayed. No view shows it while no WAL receiver runs and no
/// restartpoint was made on it, but its segments are in `pg_wal`. A receiver shows `streaming` from its start, also if the
/// primary refuses it (no such slot); it streams once a message came, which makes the two times differ.
pub(super) const QUERY: &str = r"
select json_build_object(
  'system_identifier', (select system_identifier::text from pg_control_system()),
  'in_recovery', now.recovering,
  'timeline', now.timeline,
  'history', pg_read_file('pg_wal/' || lpad(upper(to_hex(now.timeline)), 8, '0') || '.history', 0, 1000000, true),
  'started_at', extract(epoch from pg_postmaster_start_time())::float8,
  'version', current_setting('server_version_num')::int / 10000,
  'flush_lsn', case when now.recovering
     then coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0') else pg_current_wal_flush_lsn() end,
  'replay_lsn', case when now.recovering then coalesce(pg_last_wal_replay_lsn(), '0/0') else pg_current_wal_lsn() end,
  'replay_paused', case when now.recovering then pg_is_wal_replay_paused() else false end,
  'receiver', (select json_build_object('host', sender_host, 'port', sender_port, 'streaming', status = 'streaming' and last_msg_send_time <> last_msg_receipt_time,
      'age', extract(epoch from clock_timestamp() - last_msg_receipt_time)::float8) from pg_stat_wal_receiver),
  'standbys', (select coalesce(json_agg(json_build_object('node', application_name, 'state', coalesce(state, 'startup'),
      'sync_state', coalesce(sync_state, 'async'), 'flush_lsn', flush_lsn, 'replay_lsn', replay_lsn)), '[]')
      from pg_stat_replication),
  'synchronous_standby_names', current_setting('synchronous_standby_names'),
  'answered_at', (extract(epoch from clock_timestamp()) * 1000000)::bigint,
  'last_commit_at', (extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::bigint,
  'connections_used', (select count(*) from pg_stat_activity where backend_type = 'client backend'),
  'lock_waiters', (select count(*) from pg_stat_activity where backend_type = 'client backend' and wait_event_type = 'Lock'),
  'longest_lock_wait', (select coalesce(max(extract(epoch from clock_timestamp() - query_start)), 0)::float8
      from pg_stat_activity where backend_type = 'client backend' and wait_event_type = 'Lock'),
  'oldest_transaction', (select max(extract(epoch from clock_timestamp() - xact_start))::float8
      from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()),
  'slots', (select coalesce(json_agg(json_build_object('name', slot_name, 'active', active, 'wal_status', wal_status,
      'retained_bytes', case when now.recovering then null else greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint end)), '[]')
      from pg_replication_slots),
  'archiver', (select json_build_object('is_on', current_setting('archive_mode') <> 'off', 'failed', failed_count,
      'last_archived_at', (extract(epoch from last_archived_time) * 1000000)::bigint,
      'last_failed_at', (extract(epoch from last_failed_time) * 1000000)::bigint, 'last_failed_wal', last_failed_wal)
      from pg_stat_archiver),
  'work', case when now.recovering then null else (select json_build_object('active', count(*) filter (where state = 'active'),
      'waiting_for_wal', count(*) filter (where lower(wait_event) in ('walwrite', 'walsync')),
      'writes', pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
      'commits', (select coalesce(sum(xact_commit), 0)::bigint from pg_stat_database),
      'statement_milliseconds', (select sum((to_jsonb(database) ->> 'active_time')::float8)::bigint from pg_stat_database as database))
      from pg_stat_activity where backend_type = 'client backend' and application_name not like 'stormglass%') end,
  'checksum_failures', (select sum(checksum_failures)::bigint from pg_stat_database),
  'connections_allowed', current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
      - coalesce(current_setting('reserved_connections', true)::int, 0)
)::text
from (select recovering, case when recovering then greatest(
      (select timeline_id from pg_control_checkpoint()),
      (select min_recovery_end_timeline from pg_control_recovery()),
      (select received_tli from pg_stat_wal_receiver),
      (select max(('x' || left(file, 8))::bit(32)::int) from pg_ls_dir('pg_wal') as file where file ~ '^[0-9A-F]{24}$'))
    else ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int end as timeline
  from (select pg_is_in_recovery() as recovering) as role) as now";

#[derive(Debug, Deserialize)]
struct Answer {
    system_identifier: SystemIdentifier,
    in_recovery: bool,
    timeline: u32,
    history: Option<String>,
    started_at: Option<f64>,
    version: u32,
    flush_lsn: Lsn,
    replay_lsn: Lsn,
    replay_paused: bool,
    receiver: Option<Receiver>,
    standbys: Vec<StandbyRow>,
    synchronous_standby_names: String,
    answered_at: Option<i64>,
    last_commit_at: Option<i64>,
    connections_used: u32,
    connections_allowed: u32,
    lock_waiters: u32,
    longest_lock_wait: f64,
    oldest_transaction: Option<f64>,
    slots: Vec<SlotReport>,
    archiver: Option<Archiver>,
    work: Option<WorkReport>,
    checksum_failures: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Archiver {
    is_on: bool,
    failed: u64,
    last_archived_at: Option<i64>,
    last_failed_at: Option<i64>,
    last_failed_wal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Receiver {
    host: Option<String>,
    port: Option<u16>,
    streaming: Option<bool>,
    age: Option<f64>,
}

/// The report, without the acknowledgement that only the agent can make, and the names in force beside it.
pub(super) fn read(answer: Option<String>) -> Result<(LiveReport, String), PostgresError> {
    let text = answer.ok_or_else(|| failed(ACTION, "the server answered without a row"))?;
    let answer: Answer =
        serde_json::from_str(&text).map_err(|error| failed(ACTION, format!("not understood: {error}: {text}")))?;
    let report = LiveReport {
        system_identifier: answer.system_identifier,
        in_recovery: answer.in_recovery,
        history: History {
            timeline: Timeline(answer.timeline),
            forks: parse_history(&answer.history.unwrap_or_default()),
        },
        started_at_unix_seconds: answer.started_at,
        major_version: answer.version,
        flush_lsn: answer.flush_lsn,
        replay_lsn: answer.replay_lsn,
        replay_paused: answer.replay_paused,
        receiver: answer.receiver.map(|receiver| ReceiverReport {
            sender: receiver.host.zip(receiver.port).map(|(host, port)| Address { host, port }),
            streaming: receiver.streaming == Some(true),
            last_message_age: receiver.age.and_then(seconds),
        }),
        standbys: answer.standbys,
        synchronous: None,
        connections: Some(ConnectionReport { used: answer.connections_used, allowed: answer.connections_allowed }),
        clock: ClockReport {
            answered_at: answer.answered_at.map(WallTime),
            last_commit_at: answer.last_commit_at.filter(|_| answer.in_recovery).map(WallTime),
        },
        waits: Some(WaitReport {
            waiting_for_locks: answer.lock_waiters,
            longest_lock_wait: seconds(answer.longest_lock_wait).unwrap_or_default(),
            oldest_transaction: answer.oldest_transaction.and_then(seconds),
        }),
        upkeep: Some(UpkeepReport {
            slots: answer.slots,
            archiver: answer.archiver.map(|archiver| ArchiverReport {
                is_on: archiver.is_on,
                failed: archiver.failed,
                last_archived_at: archiver.last_archived_at.map(WallTime),
                last_failed_at: archiver.last_failed_at.map(WallTime),
                last_failed_wal: archiver.last_failed_wal,
            }),
            checksum_failures: answer.checksum_failures,
        }),
        work: answer.work,
    };
    Ok((report, answer.synchronous_standby_names))
}

/// The server's clock may step back between the two moments of an age.
fn seconds(age: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(age.max(0.0)).ok()
}

/// Lines of a timeline history file: timeline, where it was left, why. Oldest first, as PostgreSQL writes them.
pub(super) fn parse_history(text: &str) -> Vec<Fork> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let timeline = Timeline(fields.next()?.parse().ok()?);
            Some(Fork { timeline, switched_at: fields.next()?.parse().ok()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_files_are_read_past_comments() {
        let text = "# comment\n1\t0/3000000\tno recovery target specified\n\n2\t0/5000148\tbefore 2000-01-01\n";
        assert_eq!(
            parse_history(text),
            vec![
                Fork { timeline: Timeline(1), switched_at: Lsn(0x300_0000) },
                Fork { timeline: Timeline(2), switched_at: Lsn(0x500_0148) },
            ]
        );
    }
}

//! Steers replication of a running PostgreSQL: whom it follows, promotion, synchronous names, slots.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::configuration::{Managed, literal, render_synchronous, replace_managed};
use super::errors::{blocking, failed};
use super::observe::parse_history;
use super::process;
use super::session::Session;
use super::settings::Setup;
use crate::adapters::system::family;
use crate::domain::epoch::RecordNumber;
use crate::domain::ids::NodeName;
use crate::domain::lsn::Lsn;
use crate::domain::report::SynchronousReport;
use crate::ports::postgres::{PostgresError, Upstream};

/// Pause between two questions while something is under way on the failover path.
const PAUSE: Duration = Duration::from_millis(2);

/// Slots that are the agent's own.
const SLOT_PREFIX: &str = "stormglass_";

/// Writes the changing settings and has the postmaster read them. By signal: SQL could not, on a standby that replays into locks.
async fn reconfigure(
    setup: &Arc<Setup>,
    action: &'static str,
    change: impl FnOnce(&mut Managed) + Send + 'static,
) -> Result<(), PostgresError> {
    let here = setup.clone();
    blocking(action, move || replace_managed(&here, change)).await?;
    if process::signal_postmaster(setup, Signal::HUP).await {
        Ok(())
    } else {
        Err(PostgresError::NotAccepting { action, problem: "PostgreSQL does not run".to_owned() })
    }
}

fn read_lsn(action: &'static str, answer: Option<String>) -> Result<Lsn, PostgresError> {
    answer.ok_or_else(|| failed(action, "the server has no position"))?.parse().map_err(|error| failed(action, error))
}

async fn is_in_recovery(session: &Session, action: &'static str) -> Result<bool, PostgresError> {
    Ok(session.query(action, "select pg_is_in_recovery()").await?.as_deref() == Some("t"))
}

/// See [`crate::ports::LocalPostgres::follow`].
pub(super) async fn follow(
    setup: &Arc<Setup>,
    session: &Session,
    upstream: Option<&Upstream>,
) -> Result<Lsn, PostgresError> {
    const ACTION: &str = "follow another primary";
    if !is_in_recovery(session, ACTION).await? {
        return Err(failed(ACTION, "PostgreSQL is no standby"));
    }
    let wanted = Managed::standby_of(setup, upstream);
    let conninfo = wanted.primary_conninfo.clone();
    reconfigure(setup, ACTION, move |managed| *managed = wanted).await?;
    wait_for_setting(session, ACTION, "primary_conninfo", &conninfo).await?;
    if upstream.is_none() {
        wait_until_received(session, ACTION).await?;
    }
    let position = "select coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0')";
    read_lsn(ACTION, session.query(ACTION, position).await?)
}

/// Waits until this backend has read the new setting. The postmaster signals all its children in one go, so the startup
/// process has been told by then, too.
async fn wait_for_setting(
    session: &Session,
    action: &'static str,
    name: &str,
    value: &str,
) -> Result<(), PostgresError> {
    let question = format!("select current_setting({}) = {}", literal(name), literal(value));
    while session.query(action, &question).await?.as_deref() != Some("t") {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Waits until no WAL receiver is left. Twice in a row, as the startup process may have asked for one just before it read
/// the new setting. Asks for the process: the view of receivers hides one that is still connecting.
async fn wait_until_received(session: &Session, action: &'static str) -> Result<(), PostgresError> {
    const QUESTION: &str = "select exists(select from pg_stat_activity where backend_type = 'walreceiver')";
    let mut times_gone = 0;
    loop {
        let is_gone = session.query(action, QUESTION).await?.as_deref() == Some("f");
        times_gone = if is_gone { times_gone + 1 } else { 0 };
        if times_gone == 2 {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// See [`crate::ports::LocalPostgres::promote`].
pub(super) async fn promote(
    setup: &Arc<Setup>,
    session: &Session,
    block_when_alone: bool,
) -> Result<Lsn, PostgresError> {
    const ACTION: &str = "promote PostgreSQL";
    // A repeated command finds a primary: then only the answer is due.
    if is_in_recovery(session, ACTION).await? {
        if block_when_alone {
            // Before the first write: what was confirmed by nobody cannot be taken back.
            set_names(setup, session, ACTION, render_synchronous(&BTreeSet::new(), true)).await?;
        }
        session.query(ACTION, "select pg_promote(false)").await?;
        // pg_promote itself would look only every 100 ms.
        while is_in_recovery(session, ACTION).await? {
            tokio::time::sleep(PAUSE).await;
        }
    }
    const HISTORY: &str = "select pg_read_file('pg_wal/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '.history', 0, 1000000, true)";
    let history = session.query(ACTION, HISTORY).await?.unwrap_or_default();
    match parse_history(&history).last() {
        Some(fork) => Ok(fork.switched_at),
        // Timeline 1: it never was a standby, and the first position is where it stands.
        None => read_lsn(ACTION, session.query(ACTION, "select pg_current_wal_insert_lsn()").await?),
    }
}

/// See [`crate::ports::LocalPostgres::apply_synchronous`].
pub(super) async fn apply_synchronous(
    setup: &Arc<Setup>,
    session: &Session,
    names: &BTreeSet<NodeName>,
    number: RecordNumber,
    block_when_alone: bool,
) -> Result<SynchronousReport, PostgresError> {
    const ACTION: &str = "set the synchronous standbys";
    if is_in_recovery(session, ACTION).await? {
        return Err(failed(ACTION, "PostgreSQL is a standby"));
    }
    set_names(setup, session, ACTION, render_synchronous(names, block_when_alone)).await?;
    wait_for_walsenders(session, ACTION, names).await?;
    let barrier_lsn = read_lsn(ACTION, session.query(ACTION, "select pg_current_wal_insert_lsn()").await?)?;
    Ok(SynchronousReport { number, names: names.iter().cloned().collect(), barrier_lsn })
}

/// Writes `synchronous_standby_names` and waits until every backend that commits from now on goes by it.
async fn set_names(
    setup: &Arc<Setup>,
    session: &Session,
    action: &'static str,
    value: String,
) -> Result<(), PostgresError> {
    let wanted = value.clone();
    reconfigure(setup, action, move |managed| managed.synchronous_standby_names = wanted).await?;
    // A connection made after the postmaster has read the file: from then on its signals are out.
    loop {
        let fresh = Session::open(setup, action).await?;
        let shown = fresh.query(action, "select current_setting('synchronous_standby_names')").await?;
        fresh.close().await;
        if shown.as_deref() == Some(value.as_str()) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    wait_for_checkpointer(session, action).await
}

/// Each WAL sender works out by itself whether it may release waiting commits, and shows the result.
async fn wait_for_walsenders(
    session: &Session,
    action: &'static str,
    names: &BTreeSet<NodeName>,
) -> Result<(), PostgresError> {
    let list: Vec<String> = names.iter().map(|name| literal(name.as_str())).collect();
    let question = format!(
        "select exists(select from pg_stat_replication where state <> 'backup' \
         and (application_name = any(array[{}]::text[])) is distinct from (coalesce(sync_priority, 0) > 0))",
        list.join(",")
    );
    while session.query(action, &question).await?.as_deref() != Some("f") {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Waits until the checkpointer has taken the names over.
///
/// Backends do not wait for standbys because of their own setting but because of a flag in shared memory, and only the
/// checkpointer sets it, when it gets round to reading the configuration: seconds later while it syncs a slow disk. No view
/// shows the flag. What shows is a checkpointer in its main wait with no SIGHUP left to take; it wakes at once for one, so
/// seen twice with the process table between, it has been through.
async fn wait_for_checkpointer(session: &Session, action: &'static str) -> Result<(), PostgresError> {
    // In the pauses of a spread checkpoint the flag is set too, before each pause of at most 100 ms.
    const PAUSES_IN_CHECKPOINT: u32 = 100;
    const QUESTION: &str =
        "select pid || ' ' || coalesce(wait_event, '') from pg_stat_activity where backend_type = 'checkpointer'";
    let (mut times_idle, mut times_pausing) = (0, 0);
    loop {
        let answer = session.query(action, QUESTION).await?.unwrap_or_default();
        let (pid, event) = answer.split_once(' ').unwrap_or_default();
        let has_taken = pid.parse().is_ok_and(|pid| family::has_taken(pid, Signal::HUP));
        times_idle = if event == "CheckpointerMain" && has_taken { times_idle + 1 } else { 0 };
        times_pausing += u32::from(event == "CheckpointWriteDelay" && has_taken);
        if times_idle == 3 || times_pausing >= PAUSES_IN_CHECKPOINT {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// See [`crate::ports::LocalPostgres::tend_slots`].
pub(super) async fn tend_slots(session: &Session, peers: &BTreeSet<NodeName>) -> Result<(), PostgresError> {
    const ACTION: &str = "tend replication slots";
    // On a standby nobody streams from these; left over from a time as primary they would fill the disk. One that is lost
    // serves nobody any more, not even a node that was cloned since.
    let dropping = format!(
        "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots \
         where left(slot_name, {}) = '{SLOT_PREFIX}' and slot_type = 'physical' and not active \
         and (pg_is_in_recovery() or not slot_name = any({}) or wal_status = 'lost')",
        SLOT_PREFIX.len(),
        slots_of(peers)
    );
    session.query(ACTION, &dropping).await?;
    // Reserved at once: a peer that is down needs the WAL from now on, to be rewound and to catch up.
    make_slots(session, ACTION, peers, "not pg_is_in_recovery()").await
}

/// See [`crate::ports::LocalPostgres::reserve_slots`]. On a standby, what a new slot keeps begins at the last restart point
/// (PostgreSQL's `ReplicationSlotReserveWal`).
pub(super) async fn reserve_slots(session: &Session, peers: &BTreeSet<NodeName>) -> Result<(), PostgresError> {
    make_slots(session, "reserve replication slots", peers, "pg_is_in_recovery()").await
}

async fn make_slots(
    session: &Session,
    action: &'static str,
    peers: &BTreeSet<NodeName>,
    condition: &str,
) -> Result<(), PostgresError> {
    let making = format!(
        "select count(pg_create_physical_replication_slot(slot, true)) from unnest({}) as slot \
         where {condition} and not exists(select from pg_replication_slots where slot_name = slot)",
        slots_of(peers)
    );
    session.query(action, &making).await.map(drop)
}

fn slots_of(peers: &BTreeSet<NodeName>) -> String {
    let names: Vec<String> = peers.iter().map(|peer| literal(&peer.slot())).collect();
    format!("array[{}]::text[]", names.join(","))
}

//! What a node's health paths answer, in Patroni's words, so that existing HAProxy configurations work unchanged.
//!
//! Pure: everything follows from one snapshot. An unknown fact never counts as healthy.

use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::clock::WallTime;
use crate::domain::ids::{Address, NodeName};
use crate::domain::lsn::Lsn;
use crate::domain::report::{LiveReport, PostgresState, Report};

/// Age at which the primary's position no longer says how far it is now; as long as Patroni's own loop.
const POSITION_FRESH: Duration = Duration::from_secs(10);

/// What a node's agent knows at one moment.
#[derive(Debug, Clone)]
pub struct NodeSnapshot {
    /// Its facts.
    pub report: Report,
    /// The primary, as last assigned.
    pub primary: Option<(NodeName, Address)>,
    /// True if commits wait for this standby; `None` if nobody said so.
    pub is_synchronous: Option<bool>,
    /// How far the primary had flushed, by a controller's word, and how old that word is.
    pub primary_position: Option<(Lsn, Duration)>,
    /// When a controller was last heard.
    pub controller_seen: Option<WallTime>,
    /// The agent's own loop turns.
    pub is_alive: bool,
}

/// What a path asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthPath {
    /// Accepts writes under a lease.
    Primary,
    /// Holds the lease.
    Leader,
    /// A standby that runs, within `lag` if given.
    Replica,
    /// Either of them.
    ReadOnly,
    /// A standby that commits wait for.
    Synchronous,
    /// A standby that commits do not wait for.
    Asynchronous,
    /// The primary, or a standby that commits wait for.
    ReadOnlySynchronous,
    /// A standby that holds every confirmed commit, in the words of quorum commit.
    Quorum,
    /// The primary, or such a standby.
    ReadOnlyQuorum,
    /// PostgreSQL runs and answers.
    Health,
    /// The agent's loop turns.
    Liveness,
    /// Clients may be sent here; a standby within `lag` if given.
    Readiness,
    /// Leader of a standby cluster; there are none.
    StandbyLeader,
}

impl HealthPath {
    /// Every path.
    pub const ALL: &[(&str, HealthPath)] = &[
        ("/", HealthPath::Primary),
        ("/primary", HealthPath::Primary),
        ("/master", HealthPath::Primary),
        ("/read-write", HealthPath::Primary),
        ("/leader", HealthPath::Leader),
        ("/standby-leader", HealthPath::StandbyLeader),
        ("/standby_leader", HealthPath::StandbyLeader),
        ("/replica", HealthPath::Replica),
        ("/read-only", HealthPath::ReadOnly),
        ("/read-only-sync", HealthPath::ReadOnlySynchronous),
        ("/sync", HealthPath::Synchronous),
        ("/synchronous", HealthPath::Synchronous),
        ("/quorum", HealthPath::Quorum),
        ("/read-only-quorum", HealthPath::ReadOnlyQuorum),
        ("/async", HealthPath::Asynchronous),
        ("/asynchronous", HealthPath::Asynchronous),
        ("/health", HealthPath::Health),
        ("/liveness", HealthPath::Liveness),
        ("/readiness", HealthPath::Readiness),
    ];
}

impl NodeSnapshot {
    /// True for 200, false for 503.
    pub fn passes(&self, path: HealthPath, lag: Option<&str>) -> bool {
        match path {
            HealthPath::Primary => self.is_writable(),
            HealthPath::Leader => self.runs_as_primary() && self.holds_lease(),
            HealthPath::Replica => self.is_standby() && self.is_within(lag),
            HealthPath::ReadOnly => self.is_writable() || self.is_standby() && self.is_within(lag),
            // The ledger's word covers both ways of confirming: by named standbys and by a quorum of them.
            HealthPath::Synchronous | HealthPath::Quorum => self.is_standby() && self.is_synchronous == Some(true),
            HealthPath::Asynchronous => self.is_standby() && self.is_synchronous != Some(true) && self.is_within(lag),
            HealthPath::ReadOnlySynchronous | HealthPath::ReadOnlyQuorum => {
                self.is_writable() || self.is_standby() && self.is_synchronous == Some(true)
            }
            HealthPath::Health => self.live().is_some(),
            HealthPath::Liveness => self.is_alive,
            HealthPath::Readiness => self.is_writable() || self.is_standby() && self.is_within(lag),
            HealthPath::StandbyLeader => false,
        }
    }

    /// The primary of its epoch whose last write probe flushed. Waiting for a standby is no failure of that probe.
    pub fn is_writable(&self) -> bool {
        let write = &self.report.postgres.probes.write;
        self.runs_as_primary() && self.holds_lease() && write.failing_for.is_none() && write.last_success_age.is_some()
    }

    /// `/patroni`, and the body of every health path.
    pub fn patroni(&self) -> Value {
        let live = self.live();
        let mut document = json!({
            "state": self.state_word(),
            "role": self.role_word(),
            "tags": {
                "nofailover": self.report.tags.no_failover,
                "nosync": self.report.tags.no_sync,
                "failover_priority": self.report.tags.failover_priority,
            },
            "dcs_last_seen": self.controller_seen.map(|at| at.0 / 1_000_000),
            "patroni": {
                "version": self.report.version,
                "scope": self.report.cluster,
                "name": self.report.node,
            },
            "epoch": self.report.standing.highest_epoch,
            "lease_remaining_seconds": self.report.standing.lease_remaining.map(|left| left.as_secs_f64()),
            "lease_renewed_by": self.report.standing.renewed_by,
        });
        if let Some(live) = live {
            document["server_version"] = json!(live.major_version * 10_000);
            document["timeline"] = json!(live.history.timeline);
            document["database_system_identifier"] = json!(live.system_identifier);
            document["postmaster_start_time"] = json!(live.started_at_unix_seconds.map(start_time));
            document["xlog"] = if live.in_recovery {
                json!({
                    "received_location": live.flush_lsn.0,
                    "replayed_location": live.replay_lsn.0,
                    "paused": live.replay_paused,
                })
            } else {
                json!({ "location": live.flush_lsn.0 })
            };
            if live.in_recovery {
                let streams = live.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
                document["replication_state"] = json!(if streams { "streaming" } else { "in archive recovery" });
            } else {
                document["replication"] = live
                    .standbys
                    .iter()
                    .map(
                        |row| json!({ "application_name": row.node, "state": row.state, "sync_state": row.sync_state }),
                    )
                    .collect();
            }
        }
        document
    }

    /// `/cluster`: this node, the primary, and on the primary every connected standby. Others are not known here.
    pub fn cluster(&self) -> Value {
        let own = &self.report;
        let mut members = vec![json!({
            "name": own.node,
            "role": if self.runs_as_primary() && self.holds_lease() { "leader" }
                else if self.is_synchronous == Some(true) { "sync_standby" } else { "replica" },
            "state": self.state_word(),
            "host": own.address.host,
            "port": own.address.port,
            "timeline": self.live().map(|live| live.history.timeline),
        })];
        if let Some((node, address)) = self.primary.as_ref().filter(|(node, _)| *node != own.node) {
            members.push(json!({ "name": node, "role": "leader", "host": address.host, "port": address.port }));
        }
        if let Some(live) = self.live().filter(|live| !live.in_recovery) {
            members.extend(live.standbys.iter().map(|row| {
                json!({
                    "name": row.node,
                    "role": if row.is_synchronous() { "sync_standby" } else { "replica" },
                    "state": row.state,
                    "lag": row.replay_lsn.map(|replayed| live.flush_lsn.bytes_after(replayed)),
                })
            }));
        }
        json!({ "scope": own.cluster, "members": members })
    }

    /// `/history`: every timeline that was left, and where.
    pub fn history(&self) -> Value {
        let forks = self.live().map(|live| live.history.forks.as_slice()).unwrap_or_default();
        forks.iter().map(|fork| json!([fork.timeline, fork.switched_at.0, "promotion"])).collect()
    }

    fn live(&self) -> Option<&LiveReport> {
        self.report.postgres.live.as_ref().filter(|_| self.report.postgres.state == PostgresState::Running)
    }

    fn runs_as_primary(&self) -> bool {
        self.live().is_some_and(|live| !live.in_recovery)
    }

    fn is_standby(&self) -> bool {
        self.live().is_some_and(|live| live.in_recovery)
    }

    fn holds_lease(&self) -> bool {
        self.report.standing.lease_remaining.is_some_and(|left| !left.is_zero())
    }

    /// How far replay is behind the primary, as in Patroni: against the primary's last known position, or what this standby
    /// received if that is more. Where neither is fresh nobody can tell, and a limit that cannot be read is not kept.
    fn is_within(&self, lag: Option<&str>) -> bool {
        let Some(limit) = lag else { return true };
        let (Some(limit), Some(live)) = (parse_bytes(limit), self.live()) else { return false };
        let is_fresh = self.primary_position.is_some_and(|(_, age)| age <= POSITION_FRESH);
        // However old, the position is one that the primary had: being further behind it only understates the lag.
        let primary = self.primary_position.map_or(live.flush_lsn, |(lsn, _)| lsn.max(live.flush_lsn));
        (is_fresh || self.is_streaming()) && primary.bytes_after(live.replay_lsn) <= limit
    }

    fn state_word(&self) -> &'static str {
        match self.report.postgres.state {
            PostgresState::NoData => "uninitialized",
            PostgresState::Stopped => "stopped",
            PostgresState::Starting => "starting",
            PostgresState::Running if self.is_standby() && self.is_streaming() => "streaming",
            PostgresState::Running => "running",
            PostgresState::Unresponsive => "unresponsive",
        }
    }

    fn is_streaming(&self) -> bool {
        self.live().and_then(|live| live.receiver.as_ref()).is_some_and(|receiver| receiver.streaming)
    }

    fn role_word(&self) -> &'static str {
        match self.live() {
            Some(live) if !live.in_recovery => "primary",
            Some(_) => "replica",
            None => "uninitialized",
        }
    }
}

/// `10MB` and the like in bytes, in the units of PostgreSQL's settings; a bare number is bytes.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1_u64 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[expect(clippy::cast_possible_truncation, reason = "microseconds since 1970 fit an i64 for 292 000 years")]
fn start_time(unix_seconds: f64) -> WallTime {
    WallTime((unix_seconds * 1e6) as i64)
}

#[cfg(test)]
mod tests;

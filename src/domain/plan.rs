//! What to do, and why: every decision carries reasons that machines can count and people can read.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::WallTime;
use super::epoch::{Epoch, RecordNumber};
use super::ids::NodeName;
use super::lsn::Lsn;
use super::operation::OperationKind;
use super::record::ClusterRecord;

/// What the controller should do next. Specific enough that execution has no choices left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "intent", rename_all = "snake_case")]
pub enum Intent {
    /// Nothing. Also a decision, also with reasons.
    Hold,
    /// Store this record, by compare-and-swap on the number before it: first epoch, membership, bookkeeping.
    UpdateRecord {
        /// The record to store.
        #[schema(value_type = Object)]
        record: Box<ClusterRecord>,
    },
    /// Start this operation.
    Start {
        /// Which.
        operation: OperationKind,
    },
}

impl Intent {
    /// Label of the metric `stormglass_decision_reasons_total`.
    pub fn label(&self) -> &'static str {
        match self {
            Intent::Hold => "hold",
            Intent::UpdateRecord { .. } => "update_record",
            Intent::Start { operation } => operation.label(),
        }
    }
}

/// An intent with what it rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What to do.
    pub intent: Intent,
    /// Why.
    pub reasons: Vec<Reason>,
    /// What kept it from doing more (guards that refused).
    pub blocked_by: Vec<Reason>,
    /// The record that the decision was made on; stale plans are dropped.
    pub based_on: Option<(Epoch, RecordNumber)>,
    /// What is lost by it, where an operator accepts that something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

/// What a promotion loses, as far as anybody knows. What the primary wrote after it was last heard is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    /// Who would be promoted.
    pub node: NodeName,
    /// WAL that it lacks of what the primary was last known to have flushed; `None` if the primary was never heard.
    pub missing_bytes: Option<u64>,
    /// How far it has received and flushed.
    pub flush_lsn: Lsn,
    /// When the last commit that it has replayed was made, on the primary's clock.
    pub last_commit_at: Option<WallTime>,
    /// The lost primary.
    pub primary: NodeName,
    /// What that was last known to have flushed.
    pub primary_flush_lsn: Option<Lsn>,
    /// When it said so, on its own clock.
    pub primary_seen_at: Option<WallTime>,
    /// The ledger says that the node has every confirmed commit: only what nobody confirmed can be lost.
    #[serde(default)]
    pub holds_every_confirmed_commit: bool,
}

impl Loss {
    /// The number of bytes, in words.
    pub fn amount(&self) -> String {
        match self.missing_bytes {
            Some(bytes) => format!("{bytes} bytes of WAL, and what the primary wrote after it was last heard"),
            None => "an unknown amount of WAL".to_owned(),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} has received up to {}", self.amount(), self.node, self.flush_lsn)?;
        match self.last_commit_at {
            Some(at) => write!(formatter, ", and its last commit is of {at}")?,
            None => formatter.write_str(", and does not know when its last commit was made")?,
        }
        match (self.primary_flush_lsn, self.primary_seen_at) {
            (Some(lsn), Some(at)) => write!(formatter, "; {} had flushed up to {lsn} at {at}", self.primary)?,
            (Some(lsn), None) => {
                write!(formatter, "; {} had flushed up to {lsn} when it was last heard", self.primary)?
            }
            (None, _) => write!(formatter, "; this controller never heard of {} as a primary", self.primary)?,
        }
        if self.holds_every_confirmed_commit {
            formatter.write_str("; no confirmed commit is among it")?;
        }
        Ok(())
    }
}

/// One machine-readable reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// What kind.
    pub code: ReasonCode,
    /// About which node.
    pub node: Option<NodeName>,
    /// The numbers, for people.
    pub detail: String,
}

impl Reason {
    /// A reason about the whole cluster.
    pub fn new(code: ReasonCode, detail: impl Into<String>) -> Self {
        Self { code, node: None, detail: detail.into() }
    }

    /// A reason about one node.
    pub fn about(node: &NodeName, code: ReasonCode, detail: impl Into<String>) -> Self {
        Self { code, node: Some(node.clone()), detail: detail.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(formatter, "{node}: ")?;
        }
        write!(formatter, "{}", self.code.label().replace('_', " "))?;
        if !self.detail.is_empty() {
            write!(formatter, " ({})", self.detail)?;
        }
        Ok(())
    }
}

macro_rules! reason_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $label:literal,)+) => {
        /// Kinds of reasons. The labels are stable: dashboards count them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ReasonCode { $($(#[doc = $doc])+ $variant,)+ }

        impl ReasonCode {
            /// Every code, for documentation and for metrics that start at zero.
            pub const ALL: &[ReasonCode] = &[$(ReasonCode::$variant,)+];

            /// The stable label.
            pub fn label(self) -> &'static str {
                match self { $(ReasonCode::$variant => $label,)+ }
            }
        }
    };
}

reason_codes! {
    /// Primary writable, redundancy as configured.
    Healthy => "healthy",
    /// The agent of the primary says that PostgreSQL is down.
    PostgresDown => "postgres_down",
    /// Writes do not commit although PostgreSQL runs.
    WriteProbeFailing => "write_probe_failing",
    /// New connections are not answered although PostgreSQL runs.
    ConnectProbeFailing => "connect_probe_failing",
    /// No report from the node's agent.
    AgentSilent => "agent_silent",
    /// The primary can certainly not write: its fence is confirmed in the current epoch.
    FenceConfirmed => "fence_confirmed",
    /// The primary can certainly not write: its lease has run out.
    LeaseExpired => "lease_expired",
    /// The primary's lease may still run.
    LeaseMayRun => "lease_may_run",
    /// WAL of the primary still arrives at a standby.
    WalStillArriving => "wal_still_arriving",
    /// No WAL of the primary arrives at a standby any more.
    WalNotArriving => "wal_not_arriving",
    /// The primary's PostgreSQL answers the controller's own new connection.
    PrimaryAnswers => "primary_answers",
    /// It does not.
    PrimaryDoesNotAnswer => "primary_does_not_answer",
    /// Clients' writes through a proxy are committed by the primary.
    ClientPathWorks => "client_path_works",
    /// They are not.
    ClientPathFails => "client_path_fails",
    /// Client connections are nearly, or all, in use.
    ConnectionsExhausted => "connections_exhausted",
    /// Many sessions wait for locks.
    LockPileUp => "lock_pile_up",
    /// A transaction has been open for very long.
    LongTransaction => "long_transaction",
    /// Pages were read whose checksum is wrong.
    ChecksumFailures => "checksum_failures",
    /// A probe passes, and takes unusually long.
    ProbeSlow => "probe_slow",
    /// Holds every confirmed commit.
    HoldsEveryConfirmedCommit => "holds_every_confirmed_commit",
    /// May lack confirmed commits.
    NotEligible => "not_eligible",
    /// Received the most WAL.
    MostWalReceived => "most_wal_received",
    /// Stands in the preferred site.
    PreferredSite => "preferred_site",
    /// Has the higher priority.
    HigherPriority => "higher_priority",
    /// Tagged `no_failover`, or priority 0 or less.
    TaggedNoFailover => "tagged_no_failover",
    /// Too far behind.
    LagOverLimit => "lag_over_limit",
    /// Another cluster's data.
    OtherSystemIdentifier => "other_system_identifier",
    /// Its timeline and positions, whatever follows from them.
    Position => "position",
    /// It promised not to be promoted yet.
    PromiseOutstanding => "promise_outstanding",
    /// Its history forked from the primary's.
    DivergedTimeline => "diverged_timeline",
    /// Replay does not advance, or was paused.
    ReplayBroken => "replay_broken",
    /// PostgreSQL does not run there as a standby.
    NotAStandby => "not_a_standby",
    /// An operator fenced the node.
    OperatorFenced => "operator_fenced",
    /// A rewind or reclone is unfinished.
    HalfRejoined => "half_rejoined",
    /// No node may be promoted.
    NoCandidate => "no_candidate",
    /// Only the old primary itself can go on: it is restarted in a new epoch.
    RestartInPlace => "restart_in_place",
    /// Automatic operations are paused.
    Paused => "paused",
    /// An operator planned it for a time.
    Scheduled => "scheduled",
    /// Another operation is under way.
    OperationUnderWay => "operation_under_way",
    /// No record and not every node has spoken.
    WaitingForEveryNode => "waiting_for_every_node",
    /// More than one node claims to be the primary.
    TwoPrimaries => "two_primaries",
    /// No node has data of a primary.
    NoPrimaryData => "no_primary_data",
    /// First epoch.
    FirstEpoch => "first_epoch",
    /// Membership of the eligible set changes.
    MembershipChange => "membership_change",
    /// The node has to come back as a standby.
    NeedsRejoin => "needs_rejoin",
    /// The last try failed a moment ago.
    RetryLater => "retry_later",
    /// An operator asked.
    OperatorRequest => "operator_request",
    /// The named node is unknown.
    UnknownNode => "unknown_node",
    /// The named node is the primary already.
    AlreadyPrimary => "already_primary",
    /// The primary is healthy: a switchover loses nothing, a failover may.
    PrimaryHealthy => "primary_healthy",
    /// The primary is not healthy: a switchover cannot be lossless.
    PrimaryNotHealthy => "primary_not_healthy",
    /// Confirmed commits would be lost.
    WouldLoseCommits => "would_lose_commits",
    /// A WAL receiver does not advance.
    ReceiverFrozen => "receiver_frozen",
    /// Redundancy is below what is configured.
    NotRedundant => "not_redundant",
    /// A write was refused by the store: another change came first.
    StaleRecord => "stale_record",
    /// The epoch was given out and its holder does not accept writes yet.
    PromotionUnfinished => "promotion_unfinished",
    /// The alert is older than the primary that it would move.
    AlertOutdated => "alert_outdated",
    /// The alert is about another node, or asks for something else.
    AlertAboutAnother => "alert_about_another",
    /// The model expects trouble of the node, and has for long enough.
    PredictedTrouble => "predicted_trouble",
    /// The node runs out of something soon, by its own agent's word.
    RunsOut => "runs_out",
    /// The node's probes take much longer than they used to.
    SlowsDown => "slows_down",
    /// Nothing but the model speaks for trouble.
    Uncorroborated => "uncorroborated",
    /// More than one node is about to be in trouble: moving helps nobody.
    SeveralNodesSick => "several_nodes_sick",
    /// The best candidate is no better place.
    CandidateNotBetter => "candidate_not_better",
    /// A prediction moved the primary too short a time ago.
    PredictionBudget => "prediction_budget",
    /// Predictions only advise, as configured.
    PredictionAdvises => "prediction_advises",
    /// The node's report names an epoch above the record's: the store is older than the cluster.
    StoreOutdated => "store_outdated",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_what_serde_writes() {
        for code in ReasonCode::ALL {
            assert_eq!(serde_json::to_string(code).expect("serialise"), format!("\"{}\"", code.label()));
        }
    }
}

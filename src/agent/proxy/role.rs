//! State of the proxy role and what each event does to it.
//!
//! Invariant: HAProxy is moved under `turn` only, so that two orders never interleave.

mod alone;
mod pausing;
mod upkeep;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::metrics::ProxyMetrics;
use super::pooling::Pooling;
use super::{ProxyParts, judge};
use crate::agent::local::ProbeHistory;
use crate::api::agent::ProxyHandler;
use crate::domain::clock::Moment;
use crate::domain::command::{
    Command, CommandEnvelope, CommandOutput, CommandReply, CommandState, ProxyAssignment, ProxyReply,
};
use crate::domain::ids::Address;
use crate::domain::report::{PathReport, ProxyReport};
use crate::domain::traffic::TrafficReport;
use crate::ports::traffic::{Arrangement, ProxyRecord, Route, TrafficError, TrafficRouter};
use pausing::Ahead;

/// More looks in a row without an answer than this, and HAProxy counts as hung: 3 s, longer than a busy host is late.
const UNANSWERED_MAX: u32 = 3;
/// Without a controller's word for this long the nodes are asked. Controllers answer twice a second.
const CONTROLLER_SILENCE: Duration = Duration::from_secs(2);
/// How long an agent of a node may take to say whether it is the primary.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a verifying write may take, all tries together.
const VERIFY_DEADLINE: Duration = Duration::from_secs(2);

/// How long a hold waits for connections that are just being made; letting a client in takes 2 to 20 ms.
const QUIET_LIMIT: Duration = Duration::from_millis(100);

pub(super) struct ProxyRole {
    parts: ProxyParts,
    metrics: ProxyMetrics,
    pub(super) pooling: Pooling,
    /// Holds that wait for PgBouncer before HAProxy is told.
    pausing: Ahead,
    state: Mutex<State>,
    /// Held while HAProxy is moved.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
    unsettled: Notify,
    rearrange: Notify,
}

struct State {
    /// `None`: nothing was ever assigned, HAProxy is left as it is found.
    record: Option<ProxyRecord>,
    /// As last seen; `None` while HAProxy does not answer.
    route: Option<Route>,
    is_adopted: bool,
    /// Looks in a row to which HAProxy, though there, did not answer.
    unanswered: u32,
    is_failure_logged: bool,
    sequence: u64,
    controller_heard: Moment,
    problems: Problems,
    /// The way to this primary, as the agent's own writes found it.
    path: Option<(Address, ProbeHistory)>,
    /// Reads and applications, as HAProxy was last told.
    arranged: Option<Arrangement>,
    /// Counts what HAProxy was told; the file follows each of them.
    orders: u64,
    /// The last of them that file and HAProxy have in full.
    settled: u64,
    /// Looks so far.
    looks: u32,
    traffic: Option<TrafficReport>,
}

/// What is wrong, by who found it, so that each takes back only its own word.
#[derive(Default, PartialEq, Eq, Clone)]
struct Problems {
    haproxy: Option<String>,
    memory: Option<String>,
    settle: Option<String>,
    alone: Option<String>,
    backends: Option<String>,
    version: Option<String>,
}

impl Problems {
    fn words(&self) -> Option<String> {
        let all = [&self.haproxy, &self.memory, &self.settle, &self.alone, &self.backends, &self.version];
        let all: Vec<&str> = all.into_iter().filter_map(|problem| problem.as_deref()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// What an assignment that says nothing new asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Insist {
    /// Pushed: whoever sent it waits until it is in force.
    Yes,
    /// The answer to a heartbeat: what HAProxy lacks is put right by the next look.
    No,
}

impl State {
    fn is_settling(&self) -> bool {
        self.orders != self.settled
    }
}

impl ProxyRole {
    pub(super) fn new(parts: ProxyParts, record: Option<ProxyRecord>) -> Result<Self, prometheus::Error> {
        let metrics = ProxyMetrics::new()?;
        let state = State {
            record,
            route: None,
            is_adopted: false,
            unanswered: 0,
            is_failure_logged: false,
            sequence: 0,
            controller_heard: parts.clock.now(),
            problems: Problems::default(),
            path: None,
            arranged: None,
            orders: 0,
            settled: 0,
            looks: 0,
            traffic: None,
        };
        let bound = parts.section.pgbouncer.as_ref().map(|pgbouncer| pgbouncer.pause_timeout).unwrap_or_default();
        Ok(Self {
            pooling: Pooling::new(parts.pooler.clone(), bound),
            pausing: Ahead::default(),
            parts,
            metrics,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            unsettled: Notify::new(),
            rearrange: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    pub(super) fn router(&self) -> &Arc<dyn TrafficRouter> {
        &self.parts.router
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) async fn unsettled(&self) {
        self.unsettled.notified().await;
    }

    /// The file is to follow.
    fn unsettle(&self) {
        self.order();
        self.unsettled.notify_one();
    }

    /// HAProxy is about to be told something: from now on it differs from its file.
    fn order(&self) {
        self.state().orders += 1;
    }

    /// What it was told last.
    pub(super) fn orders(&self) -> u64 {
        self.state().orders
    }

    /// The file has followed what HAProxy had been told by then.
    pub(super) fn settled(&self, orders: u64) {
        self.state().settled = orders;
        self.settle_problem(None);
    }

    pub(super) fn settle_problem(&self, problem: Option<String>) {
        self.note(|problems| problems.settle = problem);
    }

    /// Changes the problems; tells the controllers if that made a difference.
    fn note(&self, change: impl FnOnce(&mut Problems)) {
        let mut state = self.state();
        let before = state.problems.clone();
        change(&mut state.problems);
        if state.problems != before {
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Sees where HAProxy leads, starts it or puts it right. True if it answers.
    pub(super) async fn look(&self) -> bool {
        let answers = self.look_where_it_leads().await;
        if answers {
            self.keep_arranged().await;
        }
        answers
    }

    async fn look_where_it_leads(&self) -> bool {
        let wanted = self.arrangement();
        let _turn = self.turn.lock().await;
        let (record, is_adopted) = {
            let state = self.state();
            (state.record.clone(), state.is_adopted)
        };
        let target = record.as_ref().and_then(|record| record.target.as_ref());
        let seen = async {
            if !is_adopted {
                self.router().ensure_running(target, &wanted).await?;
            }
            match self.router().route().await {
                Err(TrafficError::NotRunning { .. }) => {
                    self.router().ensure_running(target, &wanted).await?;
                    self.router().route().await
                }
                other => other,
            }
        };
        match seen.await {
            Ok(route) => {
                {
                    let mut state = self.state();
                    if !std::mem::replace(&mut state.is_adopted, true) {
                        state.arranged = None;
                    }
                    state.unanswered = 0;
                }
                self.saw(Ok(route.clone()));
                match record.as_ref().map(judge::wanted) {
                    Some(wanted) if wanted != route => {
                        if is_adopted {
                            tracing::warn!(?route, ?wanted, "HAProxy leads elsewhere than assigned: putting it right");
                        }
                        self.metrics.drift_repairs_total.inc();
                        self.enforce(&wanted).await.is_ok()
                    }
                    wanted => {
                        if !is_adopted {
                            self.unsettle();
                        }
                        if matches!(wanted, Some(Route::Leads(_))) && !self.pausing.is_any() {
                            self.pooling.want(false);
                        }
                        true
                    }
                }
            }
            Err(error) => {
                let is_hung = {
                    let mut state = self.state();
                    state.is_adopted = false;
                    state.unanswered =
                        if matches!(error, TrafficError::NoAnswer { .. }) { state.unanswered + 1 } else { 0 };
                    state.unanswered > UNANSWERED_MAX
                };
                self.saw(Err(error));
                match record.as_ref().map(judge::wanted) {
                    // A redirect replaces a worker that does not answer.
                    Some(wanted @ Route::Leads(_)) if is_hung => self.enforce(&wanted).await.is_ok(),
                    _ => false,
                }
            }
        }
    }

    /// One heartbeat and what its answer, or its absence, leads to.
    pub(super) async fn heartbeat(&self, timeout: Duration) {
        let report = {
            let mut state = self.state();
            state.sequence += 1;
            self.report_of(&state)
        };
        match self.parts.link.heartbeat(&report, timeout).await {
            Ok(assignment) => {
                self.heard();
                // An older word than stored needs no answer: the controller sees the epoch in the next report.
                if let Err(problem) = self.take(&assignment, Insist::No).await {
                    tracing::debug!(problem, "the answer to a heartbeat was not put in force");
                }
            }
            Err(problem) => {
                let silence = self.parts.clock.now().since(self.state().controller_heard);
                if silence > CONTROLLER_SILENCE {
                    tracing::debug!(problem, ?silence, "no controller answers");
                    self.follow_the_nodes().await;
                }
            }
        }
    }

    fn heard(&self) {
        let now = self.parts.clock.now();
        self.state().controller_heard = now;
        self.note(|problems| problems.alone = None);
    }

    /// Judges an assignment, stores it and puts it in force.
    async fn take(&self, assignment: &ProxyAssignment, insist: Insist) -> Result<(), String> {
        let _ahead = self.pause_ahead(assignment).await;
        let _turn = self.turn.lock().await;
        let (known, route) = {
            let state = self.state();
            (state.record.clone(), state.route.clone())
        };
        let record = judge::judge(&self.parts.cluster, known.as_ref(), assignment)?;
        let wanted = judge::wanted(&record);
        let is_stored = known.as_ref() == Some(&record) && self.state().problems.memory.is_none();
        if is_stored && (insist == Insist::No || route.as_ref() == Some(&wanted)) {
            if insist == Insist::Yes && wanted == Route::Holding {
                self.pooling.want(true);
            }
            return Ok(());
        }
        self.put_in_force(record, is_stored).await
    }

    /// The disk and HAProxy at the same time: clients do not wait for the disk, the answer does. The caller holds `turn`.
    async fn put_in_force(&self, record: ProxyRecord, is_stored: bool) -> Result<(), String> {
        let wanted = judge::wanted(&record);
        let is_moved = {
            let mut state = self.state();
            let is_moved = state.route.as_ref() != Some(&wanted)
                || state.record.as_ref().map(judge::wanted) != Some(wanted.clone());
            state.record = Some(record.clone());
            is_moved
        };
        self.rearrange.notify_one();
        let epoch = i64::try_from(record.epoch.0).unwrap_or(i64::MAX);
        self.metrics.epoch.set(epoch);
        let store = async { if is_stored { Ok(()) } else { self.parts.memory.store(&record).await } };
        let enforced = async { if is_moved { self.enforce(&wanted).await } else { Ok(()) } };
        let (stored, moved) = tokio::join!(store, enforced);
        let stored = stored.map_err(|error| error.to_string());
        if let Err(problem) = &stored {
            tracing::error!(problem, "this proxy cannot store what it was told");
        }
        self.note(|problems| problems.memory = stored.as_ref().err().cloned());
        moved.map_err(|error| error.to_string()).and(stored)
    }

    /// Moves HAProxy and looks where it leads then. The caller holds `turn`.
    async fn enforce(&self, wanted: &Route) -> Result<(), TrafficError> {
        self.order();
        let begun = self.parts.clock.now();
        let moved = match wanted {
            Route::Leads(target) => self.router().redirect(target).await,
            Route::Holding | Route::Closed => self.router().hold().await,
        };
        let took = self.parts.clock.now().since(begun);
        self.metrics.redirect_seconds.observe(took.as_secs_f64());
        let outcome = if moved.is_ok() { "succeeded" } else { "failed" };
        self.metrics.redirects_total.with_label_values(&[outcome]).inc();
        match &moved {
            Ok(()) => {
                tracing::info!(?wanted, ?took, "the write port was moved");
                self.state().is_failure_logged = false;
                // The router has verified it.
                self.saw(Ok(wanted.clone()));
                self.changed.notify_one();
            }
            Err(error) => {
                // Tried again with every look: said once.
                if !std::mem::replace(&mut self.state().is_failure_logged, true) {
                    tracing::error!(%error, ?wanted, "the write port could not be moved");
                }
                self.saw(Err(error.clone()));
            }
        }
        if moved.is_ok() {
            self.pooling.want(!matches!(wanted, Route::Leads(_)));
        }
        self.unsettle();
        moved
    }

    fn saw(&self, seen: Result<Route, TrafficError>) {
        let (route, problem) = match seen {
            Ok(Route::Closed) => {
                (Some(Route::Closed), Some("the write server was taken out of service by hand".to_owned()))
            }
            Ok(route) => (Some(route), None),
            Err(error) => (None, Some(error.to_string())),
        };
        self.metrics.up.set(i64::from(route.is_some()));
        self.metrics.holding.set(i64::from(route == Some(Route::Holding)));
        let mut state = self.state();
        let is_new = state.route != route;
        state.route = route;
        drop(state);
        if is_new {
            self.changed.notify_one();
        }
        self.note(|problems| problems.haproxy = problem);
    }

    fn leads_to(&self) -> Option<Address> {
        match &self.state().route {
            Some(Route::Leads(target)) => Some(target.clone()),
            Some(Route::Holding | Route::Closed) | None => None,
        }
    }

    fn report_of(&self, state: &State) -> ProxyReport {
        ProxyReport {
            cluster: self.parts.cluster.clone(),
            proxy: self.parts.section.name.clone(),
            site: self.parts.site.clone(),
            write_address: self.parts.section.write.clone(),
            sequence: state.sequence,
            incarnation: self.parts.incarnation.clone(),
            write_target: match (&state.route, &state.record) {
                (Some(Route::Leads(target)), _) => Some(target.clone()),
                _ => None,
            },
            holding: state.route == Some(Route::Holding),
            epoch: state.record.as_ref().map(|record| record.epoch).unwrap_or_default(),
            error: state.problems.words(),
            path: state.path.as_ref().map(|(target, history)| PathReport {
                target: target.clone(),
                check: history.report(self.parts.clock.now()),
            }),
            traffic: state
                .traffic
                .as_ref()
                .map(|traffic| TrafficReport { pooler: self.pooling.report(), ..traffic.clone() }),
            protection: Some(self.parts.protection.borrow().clone()),
        }
    }

    async fn verify(&self, envelope: &CommandEnvelope) -> CommandState {
        let refused = |reason: String| CommandState::Refused { reason };
        if envelope.cluster != self.parts.cluster {
            return refused(format!("this proxy serves cluster {}", self.parts.cluster));
        }
        let seen = self.state().record.as_ref().map(|record| record.epoch).unwrap_or_default();
        if envelope.epoch < seen {
            return refused(format!("epoch {} is older than {seen}, which this proxy has seen", envelope.epoch));
        }
        let Command::VerifyWrite { expect } = &envelope.command else {
            return refused("this is a proxy host: it only takes verify_write".to_owned());
        };
        let Some(verifier) = &self.parts.verifier else {
            return CommandState::Failed {
                error: "the agent has no [proxy.verify] section: give it a role and a database to write with"
                    .to_owned(),
            };
        };
        match verifier.verify_write(expect, VERIFY_DEADLINE).await {
            Ok(seen) => CommandState::Succeeded { output: CommandOutput { lsn: None, note: Some(seen) } },
            Err(error) => CommandState::Failed { error },
        }
    }
}

#[async_trait]
impl ProxyHandler for ProxyRole {
    async fn assign(&self, assignment: ProxyAssignment) -> ProxyReply {
        let error = self.take(&assignment, Insist::Yes).await.err();
        if error.is_none() && assignment.hold {
            // Nothing is locked meanwhile: a redirect that comes now overtakes this.
            tokio::join!(self.pooling.done(), self.router().quiet(QUIET_LIMIT));
        }
        if assignment.cluster == self.parts.cluster {
            self.heard();
        }
        ProxyReply { error, report: self.report() }
    }

    async fn command(&self, envelope: CommandEnvelope) -> CommandReply {
        CommandReply { state: self.verify(&envelope).await, report: None }
    }

    fn report(&self) -> ProxyReport {
        self.report_of(&self.state())
    }

    fn metrics(&self) -> String {
        self.metrics.text(self.parts.protection.borrow().certificates())
    }
}

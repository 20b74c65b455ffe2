//! One turn of the loop: move every operation as far as it goes, then decide, until there is nothing left to do at once.

use std::sync::Arc;
use std::time::Duration;

use super::event_loop::{Controller, Event};
use super::state::Wish;
use super::{backup, execute};
use crate::decide;
use crate::decide::request::{self, Request};
use crate::decide::witnesses::{self, Hearing};
use crate::domain::clock::Moment;
use crate::domain::epoch::Epoch;
use crate::domain::evidence::Occasion;
use crate::domain::ids::OperationId;
use crate::domain::operation::{
    JOURNAL_FORMAT, Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState,
};
use crate::domain::plan::{Intent, Loss, Plan};
use crate::domain::policy::Policy;
use crate::domain::record::ClusterRecord;
use crate::domain::view::View;
use crate::operate::{self, Next, Step};
use crate::ports::{Store, Swap};

/// Decisions in one turn. Each starts an operation or a store write, so more than a few mean a loop without progress.
const DECISIONS_MAX: usize = 16;
/// For pushing assignments; the heartbeat brings them anyway.
const PUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// After the store refused a write, before it is asked what it holds.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);

impl Controller {
    /// Acts on the state as it is now. Never waits. Returns how long the next turn may be put off if nothing happens.
    pub(super) fn turn(&mut self) -> Duration {
        let began = self.parts.clock.now();
        self.grant_wish();
        self.drive_operations();
        // One copy of what is known serves the whole turn, until something is begun: with a thousand clusters, copies are what a
        // controller spends most of its time on.
        let mut view = self.view();
        self.note_changes(&view);
        for _ in 0..DECISIONS_MAX {
            self.watch_trouble(&view);
            let plan = decide::decide(&view, &self.state.policy, &self.state.operations);
            self.note_plan(&plan);
            let intent = plan.intent.clone();
            self.state.last_plan = Some(plan.clone());
            match intent {
                Intent::Hold => break,
                Intent::UpdateRecord { record } => {
                    if !self.state.update_in_flight {
                        self.update_record(*record);
                    }
                    break;
                }
                Intent::Start { operation } => {
                    let origin = self.origin_of(&plan);
                    self.begin(operation, &plan, &origin);
                    self.drive_operations();
                    view = self.view();
                }
            }
        }
        self.begin_due_sequences(&view);
        self.show_door(&view);
        self.show_name();
        self.note_strains(&view);
        self.note_exhaustions(&view);
        self.note_risks(&view);
        self.show_gauges(&view);
        let rest = self.rest(&view);
        self.parts.metrics.observe_decision(self.parts.clock.now().since(began));
        rest
    }

    pub(super) fn view(&self) -> View {
        self.state.view(self.parts.clock.now(), self.parts.clock.wall(), self.leads_for())
    }

    /// For how much longer this controller certainly leads; `None`: for ever.
    pub(super) fn leads_for(&self) -> Option<Duration> {
        self.parts.term.leads_until().map(|until| until.since(self.parts.clock.now()))
    }

    /// Remembers when the primary was last seen writable: the beginning of the outage that an operation ends.
    fn watch_trouble(&mut self, view: &View) {
        let writable = view.record.as_ref().is_some_and(|record| {
            decide::primary::condition(view, record, &self.state.policy) == decide::primary::Condition::Writable
        });
        if writable {
            self.state.trouble_since = None;
        } else if self.state.trouble_since.is_none() {
            self.state.trouble_since = Some(view.now);
            self.note_trouble(view);
        }
    }

    /// What an operation is when it begins.
    pub(super) fn planned(&self, mut kind: OperationKind, plan: &Plan, origin: &str) -> Operation {
        let now = self.parts.clock.now();
        if let OperationKind::Drill { manifests, .. } | OperationKind::Restore { manifests, .. } = &mut kind {
            *manifests = backup::newest_manifests(&self.state.manifests);
        }
        let detected_at = match &kind {
            OperationKind::Failover { .. } => self.state.trouble_since.unwrap_or(now),
            _ => now,
        };
        Operation {
            format: JOURNAL_FORMAT,
            id: OperationId(uuid::Uuid::now_v7().to_string()),
            cluster: self.state.cluster.clone(),
            kind,
            status: OperationStatus::Running,
            origin: origin.to_owned(),
            reasons: plan.reasons.clone(),
            epoch_before: self.state.record.as_ref().map_or(Epoch(0), |record| record.epoch),
            epoch_after: None,
            cancel_requested: false,
            detected_at,
            decided_at: now,
            begun_wall: self.parts.clock.wall(),
            ended_at: None,
            ended_wall: None,
            message: None,
            journal: Vec::new(),
            evidence: Vec::new(),
            risks: Default::default(),
            loss: None,
        }
    }

    /// Journals a new operation.
    pub(super) fn begin(&mut self, kind: OperationKind, plan: &Plan, origin: &str) -> Operation {
        let mut operation = self.planned(kind, plan, origin);
        if matches!(operation.kind, OperationKind::Failover { .. }) {
            // It has not touched anything yet, and must not begin to.
            for preparing in self.state.operations.iter_mut().filter(|other| other.only_prepares()) {
                preparing.cancel_requested = true;
            }
        }
        if operation.kind.moves_primary() {
            let holder = self.state.record.as_ref().map(|record| &record.holder);
            operation.risks.before_per_mille = holder.and_then(|holder| self.state.risk_per_mille(holder));
        }
        operation.loss = plan.loss.clone().or_else(|| self.loss_of(&operation.kind));
        keep_evidence(&mut operation, &self.view(), &self.state.policy, Occasion::Decided);
        self.note_began(&operation);
        self.state.operations.push(operation.clone());
        operation
    }

    /// What a failover to another node loses, as far as anybody knows, also where nobody had to accept it.
    fn loss_of(&self, kind: &OperationKind) -> Option<Loss> {
        let (view, record) = (self.view(), self.state.record.as_ref()?);
        match kind {
            OperationKind::Failover { from, to, .. } if from != to => {
                decide::candidate::loss_of(&view, record, &self.state.policy, to)
            }
            _ => None,
        }
    }

    /// Drops operations that only prepare when they are cancelled, or when the primary that they would move is lost.
    fn abandon_preparations(&mut self) {
        if !self.state.operations.iter().any(|operation| !operation.status.is_final() && operation.only_prepares()) {
            return;
        }
        let view = self.view();
        let is_lost = view
            .record
            .as_ref()
            .is_some_and(|record| decide::primary::condition(&view, record, &self.state.policy).is_lost());
        let mut ended = Vec::new();
        for operation in self.state.operations.iter_mut().filter(|operation| !operation.status.is_final()) {
            if !operation.only_prepares() || !(is_lost || operation.cancel_requested) {
                continue;
            }
            (operation.status, operation.message) = if operation.cancel_requested {
                (OperationStatus::Cancelled, Some("cancelled; nothing had been changed".to_owned()))
            } else {
                (OperationStatus::Failed, Some("the primary was lost first; nothing had been changed".to_owned()))
            };
            (operation.ended_at, operation.ended_wall) = (Some(view.now), Some(view.wall));
            ended.push(operation.clone());
        }
        for operation in ended {
            self.state.in_flight.retain(|id| *id != operation.id);
            self.note_ended(&operation);
            self.save_end(operation);
        }
    }

    /// Moves every operation as far as it goes without waiting.
    fn drive_operations(&mut self) {
        self.abandon_preparations();
        let running: Vec<OperationId> = self
            .state
            .operations
            .iter()
            .filter(|operation| !operation.status.is_final() && !self.state.in_flight.contains(&operation.id))
            .map(|operation| operation.id.clone())
            .collect();
        for id in running {
            self.drive(&id);
        }
    }

    fn drive(&mut self, id: &OperationId) {
        loop {
            let view = self.view();
            let now = view.now;
            let wall = view.wall;
            let policy = self.state.policy.clone();
            let Some(operation) = self.state.operation_mut(id) else { return };
            match operate::next(operation, &view, &policy) {
                Next::Satisfied { step, epoch, output } => {
                    let attempt = operation.attempts(step) + 1;
                    operation.journal.push(StepEvent {
                        step,
                        attempt,
                        state: StepState::Succeeded { output },
                        epoch,
                        at: now,
                        wall,
                    });
                    if matches!(step, StepName::AdvanceEpoch | StepName::Reinstate) {
                        operation.epoch_after = Some(epoch);
                    }
                    if step == StepName::Fence {
                        keep_evidence(operation, &view, &policy, Occasion::Fenced);
                    }
                }
                Next::Run(step) => {
                    let event = StepEvent {
                        step: step.name,
                        attempt: step.attempt,
                        state: StepState::Started,
                        epoch: step.epoch,
                        at: now,
                        wall,
                    };
                    // A step that was cut off is asked for again under its own number; the journal already says that it began.
                    if operation.last(step.name) != Some(&event) {
                        operation.journal.push(event);
                        if step.name == StepName::Promote {
                            keep_evidence(operation, &view, &policy, Occasion::Promoted);
                        }
                    }
                    let operation = operation.clone();
                    self.run_step(operation, *step, now);
                    return;
                }
                Next::Wait { .. } => return,
                Next::Undo { why } => {
                    operation.status = OperationStatus::Undoing;
                    operation.message = Some(why);
                }
                Next::End { status, message } => {
                    operation.status = status;
                    operation.message = Some(message);
                    operation.ended_at = Some(now);
                    operation.ended_wall = Some(wall);
                    let ended = operation.clone();
                    self.note_ended(&ended);
                    self.save_end(ended);
                    self.push();
                    return;
                }
            }
        }
    }

    /// Journals the step, carries it out, and reports back as an event.
    fn run_step(&mut self, operation: Operation, step: Step, now: Moment) {
        self.state.in_flight.push(operation.id.clone());
        if step.name == StepName::Promote
            && let operate::Effect::Command { node, .. } = &step.effect
            && let Some(state) = self.state.nodes.get_mut(node)
        {
            // The command carries a lease; it counts from before this moment.
            state.last_grant = Some(now);
        }
        let assignment = self.state.proxy_assignment();
        let outside = execute::Outside {
            cluster: self.state.cluster.clone(),
            store: self.store(),
            journal: self.journal.clone(),
            clock: self.parts.clock.clone(),
            nodes: self.parts.node_control.clone(),
            proxies: self.parts.proxy_control.clone(),
            proxy_names: self.state.proxies.keys().cloned().collect(),
            proxies_heard: self.state.proxies_heard(now),
            proxies_there: match &step.effect {
                operate::Effect::VerifyName { site, .. } => self.state.proxies_in(site),
                _ => Vec::new(),
            },
            sights: self.sights.clone(),
            proxy_assignment: assignment,
            steps: self.parts.sequences.runner.clone(),
            trainer: self.parts.prediction.as_ref().and_then(|it| it.training.as_ref()).map(|it| it.trainer.clone()),
            backups_from_standby: self.parts.backup.as_ref().is_some_and(|section| section.from_standby),
            events: self.events.clone(),
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            let done = execute::step(&outside, &operation, &step).await;
            // The loop only goes away at shutdown; the next controller finds the journal as it is.
            let _ = events
                .send(Event::StepEnded {
                    operation: operation.id,
                    step: step.name,
                    attempt: step.attempt,
                    epoch: step.epoch,
                    state: done.state,
                    reports: done.reports,
                    record: done.record,
                })
                .await;
        });
    }

    /// Writes the outcome into the journal; it reaches the store with the next step, or with the end.
    pub(super) fn step_ended(
        &mut self,
        id: &OperationId,
        step: StepName,
        attempt: u32,
        epoch: Epoch,
        state: StepState,
    ) {
        self.state.in_flight.retain(|other| other != id);
        let (view, policy) = (self.view(), self.state.policy.clone());
        let (now, wall) = (view.now, view.wall);
        // An operation that was dropped while its step ran has nothing more to say.
        let Some(operation) = self.state.operation_mut(id).filter(|operation| !operation.status.is_final()) else {
            return;
        };
        let began = operation.last(step).map(|event| event.at);
        if matches!(step, StepName::AdvanceEpoch | StepName::Reinstate) && matches!(state, StepState::Succeeded { .. })
        {
            operation.epoch_after = Some(epoch);
        }
        operation.journal.push(StepEvent { step, attempt, state: state.clone(), epoch, at: now, wall });
        if matches!(step, StepName::Fence | StepName::Demote) && matches!(state, StepState::Succeeded { .. }) {
            keep_evidence(operation, &view, &policy, Occasion::Fenced);
        }
        let operation = operation.clone();
        if step == StepName::VerifyBackup {
            self.state.manifests.extend(backup::manifests(std::iter::once(&operation)));
        }
        self.note_step(&operation, step, &state, began.map_or(Duration::ZERO, |began| now.since(began)));
    }

    /// An operator's request, planned and, unless it is a dry run, begun.
    pub(super) fn ask(&mut self, request: &Request, origin: &str, dry_run: bool) -> (Plan, Option<Operation>) {
        let view = self.view();
        let plan = request::plan(&view, &self.state.policy, &self.state.operations, request);
        if dry_run {
            return (plan, None);
        }
        let operation = match plan.intent.clone() {
            Intent::Hold => None,
            Intent::Start { operation } => {
                let operation = self.begin(operation, &plan, origin);
                self.save(operation.clone());
                Some(operation)
            }
            Intent::UpdateRecord { record } => {
                self.note_fenced(&record, origin);
                match request {
                    Request::Fence { node } => {
                        self.state.wishes.push_back((Wish::Fence(node.clone()), None));
                        let operation = self.begin(OperationKind::Fence { node: node.clone() }, &plan, origin);
                        self.save(operation.clone());
                        Some(operation)
                    }
                    Request::Unfence { node } => {
                        self.state.wishes.push_back((Wish::Unfence(node.clone()), None));
                        None
                    }
                    Request::Schedule { scheduled } => {
                        self.state.wishes.push_back((Wish::Schedule(Some(scheduled.clone())), None));
                        None
                    }
                    Request::Unschedule => {
                        self.state.wishes.push_back((Wish::Schedule(None), None));
                        None
                    }
                    _ => None,
                }
            }
        };
        (plan, operation)
    }

    /// Stores the oldest wish of an operator, unless something is being stored already.
    fn grant_wish(&mut self) {
        if self.state.update_in_flight {
            return;
        }
        // Whoever asked was told that it failed: it must not happen later.
        self.state.wishes.retain(|(_, reply)| reply.as_ref().is_none_or(|reply| !reply.is_closed()));
        if let (Some((wish, _)), Some(record)) = (self.state.wishes.front(), &self.state.record) {
            let record = wish.apply(record);
            self.state.wish_in_flight = true;
            self.update_record(record);
        }
    }

    /// A record was stored, or not: the wish that it carried is fulfilled, or has another turn.
    pub(super) fn wish_stored(&mut self, stored: bool) {
        let carried = std::mem::take(&mut self.state.wish_in_flight);
        if carried
            && stored
            && let Some((wish, reply)) = self.state.wishes.pop_front()
        {
            self.note_wish(&wish);
            let Some(reply) = reply else { return };
            // The asker may have hung up.
            let _ = reply.send(());
        }
    }

    /// The store as this leader writes it, watched.
    pub(super) fn store(&self) -> Arc<dyn Store> {
        self.watch.over(self.parts.term.store())
    }

    /// Stores a record outside any operation.
    fn update_record(&mut self, record: ClusterRecord) {
        self.state.update_in_flight = true;
        let store = self.store();
        let events = self.events.clone();
        let expected = self.state.record.as_ref().map(|current| current.number);
        let cluster = self.state.cluster.clone();
        tokio::spawn(async move {
            let current = match store.swap_record(expected, &record).await {
                Ok(Swap::Stored) => Some(Box::new(record.clone())),
                Ok(Swap::Conflict(current)) => {
                    // Nothing newer to decide on: the same change would be tried again at once.
                    if current.as_ref().map(|current| current.number) <= expected {
                        tracing::warn!(
                            "a change of the record was not stored, and no other one came first; trying again"
                        );
                        tokio::time::sleep(STORE_PAUSE).await;
                    }
                    current
                }
                Err(error) => {
                    tracing::error!(%error, "the store did not take a change of the record");
                    tokio::time::sleep(STORE_PAUSE).await;
                    // A time-out is not an outcome: what is stored now is what counts.
                    store.load_record(&cluster).await.ok().flatten().map(Box::new)
                }
            };
            let stored = current.as_deref() == Some(&record);
            let _ = events.send(Event::RecordUpdated { record: current, stored }).await;
        });
    }

    /// Tells every agent what it shall be, now instead of with its next heartbeat.
    pub(super) fn push(&mut self) {
        for node in self.state.nodes.keys() {
            let Some(assignment) = self.state.assignment(node) else { continue };
            let (control, node) = (self.parts.node_control.clone(), node.clone());
            tokio::spawn(async move {
                if let Err(error) = control.assign(&node, &assignment, PUSH_TIMEOUT).await {
                    tracing::debug!(%node, %error, "assignment not delivered; the next heartbeat brings it");
                }
            });
        }
        let assignment = self.state.proxy_assignment();
        for proxy in self.state.proxies.keys() {
            let (control, proxy, assignment) = (self.parts.proxy_control.clone(), proxy.clone(), assignment.clone());
            tokio::spawn(async move {
                if let Err(error) = control.assign(&proxy, &assignment, PUSH_TIMEOUT).await {
                    tracing::debug!(%proxy, %error, "assignment not delivered; the next heartbeat brings it");
                }
            });
        }
    }
}

/// Writes down what every witness says at this moment.
fn keep_evidence(operation: &mut Operation, view: &View, policy: &Policy, occasion: Occasion) {
    let heard = witnesses::hear(&Hearing { view, policy, operation }, occasion);
    witnesses::keep(operation, heard);
}

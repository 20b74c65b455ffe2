//! Alerts on their way: stored before they are answered, then carried out one after another, also by the next leader.
//!
//! Whether something is done is `decide`'s and the planner's to say; nothing here relaxes a guard.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::event_loop::Event as LoopEvent;
use super::handler::ControllerHandle;
use super::sequences::SequenceAsked;
use crate::api::authentication::Caller;
use crate::api::webhook::AlertsReply;
use crate::api::wire::Problem;
use crate::decide::alert::{self, Routing};
use crate::decide::request::Request;
use crate::domain::alert::{AcceptedAlert, Alert, AlertAction};
use crate::domain::ids::OperationId;
use crate::domain::operation::{Operation, OperationKind, OperationStatus};
use crate::domain::plan::Plan;
use crate::domain::readiness::Verdict;
use crate::ports::{Card, Drawer, Store, StoreError};
use crate::telemetry::event::Event;

/// Alerts that may wait to be carried out; who brings more waits for the answer.
pub(super) const WAITING_MAX: usize = 4_096;
/// Cards written at the same time: they share a flush.
const WRITES_AT_ONCE: usize = 64;
/// Operations looked through for one that was begun before a crash.
const OPERATIONS_LOOKED_AT: usize = 50;

/// What became of an alert.
struct Outcome {
    word: &'static str,
    detail: String,
    operation: Option<OperationId>,
}

impl Outcome {
    fn new(word: &'static str, detail: impl Into<String>) -> Self {
        Self { word, detail: detail.into(), operation: None }
    }
}

impl ControllerHandle {
    /// Takes the alerts of one post, those of clusters that the caller's token is not for left out.
    pub(super) async fn take_alerts(&self, alerts: Vec<Alert>, caller: &Caller) -> Result<AlertsReply, Problem> {
        let glance = self.glance().await?;
        let epoch = glance.view.record.as_ref().map_or_else(Default::default, |record| record.epoch);
        let now = self.clock().wall();
        let mut reply = AlertsReply::new();
        let mut wanted = Vec::new();
        for alert in alerts {
            // Without the label it is one of this cluster.
            if !caller.may_touch(alert.label("cluster").unwrap_or(self.cluster().as_str())) {
                reply.out_of_scope += 1;
                continue;
            }
            match alert::route(&alert, &self.ways().alerts, self.configured_sequences(), self.cluster(), now) {
                Routing::Act(errands) => wanted.extend(errands.iter().enumerate().map(|(place, errand)| {
                    let accepted = AcceptedAlert {
                        action: errand.action,
                        sequence: errand.sequence.map(str::to_owned),
                        epoch,
                        received: now,
                        who: caller.name.clone(),
                        outcome: None,
                        operation: None,
                        alert: alert.clone(),
                    };
                    (accepted, place == 0)
                })),
                Routing::Ignored => reply.ignored += 1,
                Routing::Resolved => reply.resolved += 1,
                Routing::OutOfTime => reply.out_of_time += 1,
                Routing::OtherCluster => reply.other_cluster += 1,
                Routing::Unmatched => reply.unmatched += 1,
            }
        }
        let store = self.store();
        let mut writes = futures_util::stream::iter(wanted)
            .map(|(accepted, counts)| {
                let store = store.clone();
                async move {
                    let card = card(&accepted)?;
                    let known = store.insert_card(Drawer::Alerts, &card).await.map_err(not_stored)?;
                    Ok::<_, Problem>((accepted, counts, known.is_none()))
                }
            })
            .buffered(WRITES_AT_ONCE);
        let mut failure = None;
        while let Some(written) = writes.next().await {
            match written {
                // What is on disk is carried out, whatever becomes of its neighbours.
                Ok((accepted, counts, true)) => {
                    // An alert with several errands is one alert.
                    reply.accepted += usize::from(counts);
                    self.tell(Event::AlertAccepted {
                        fingerprint: accepted.alert.fingerprint.clone(),
                        name: accepted.alert.name().to_owned(),
                        action: accepted.action.label(),
                    })
                    .await;
                    self.queue_alert(accepted).await?;
                }
                Ok((_, counts, false)) => reply.repeated += usize::from(counts),
                Err(problem) => failure = Some(problem),
            }
        }
        failure.map_or(Ok(reply), Err)
    }

    /// One alert, to its end. An error: the controller stops or does not lead any more, and the next one goes on.
    async fn carry_out(&self, mut accepted: AcceptedAlert) -> Result<(), Problem> {
        let outcome = match self.begun_before(&accepted).await? {
            Some(operation) => {
                Outcome { operation: Some(operation), ..Outcome::new("begun", "by an earlier controller") }
            }
            None => self.act(&accepted).await?,
        };
        accepted.outcome = Some(format!("{}: {}", outcome.word, outcome.detail));
        accepted.operation = outcome.operation.clone();
        self.tell(Event::AlertHandled {
            fingerprint: accepted.alert.fingerprint.clone(),
            name: accepted.alert.name().to_owned(),
            action: accepted.action.label(),
            outcome: outcome.word,
            detail: outcome.detail,
            operation: outcome.operation,
        })
        .await;
        self.store().replace_card(Drawer::Alerts, &card(&accepted)?).await.map_err(not_stored)
    }

    /// The operation that this very alert began before its controller ended.
    async fn begun_before(&self, accepted: &AcceptedAlert) -> Result<Option<OperationId>, Problem> {
        let origin = accepted.origin();
        let operations =
            self.store().list_operations(self.cluster(), OPERATIONS_LOOKED_AT).await.map_err(not_stored)?;
        let is_of_this_errand = |operation: &Operation| match (&operation.kind, &accepted.sequence) {
            (OperationKind::Sequence { name, .. }, Some(wanted)) => name == wanted,
            (OperationKind::Sequence { .. }, None) | (_, Some(_)) => false,
            (_, None) => true,
        };
        let found = operations.into_iter().find(|operation| {
            operation.origin == origin
                && is_of_this_errand(operation)
                && operation.begun_wall >= accepted.received
                && operation.status != OperationStatus::Refused
        });
        Ok(found.map(|operation| operation.id))
    }

    async fn act(&self, accepted: &AcceptedAlert) -> Result<Outcome, Problem> {
        let age = self.clock().wall().since(accepted.alert.starts_at);
        if age > self.ways().alerts.max_age {
            return Ok(Outcome::new("refused", "too old by the time it was to be carried out"));
        }
        match accepted.action {
            AlertAction::Failover | AlertAction::Switchover => {
                let glance = self.glance().await?;
                match alert::request(&accepted.alert, accepted.action, &glance.view) {
                    Ok(request) => {
                        self.plan(request, accepted.origin()).await.map(|(plan, begun)| planned(&plan, begun))
                    }
                    Err(reason) => Ok(Outcome::new("refused", reason.to_string())),
                }
            }
            AlertAction::Drill | AlertAction::Sequence | AlertAction::Retrain
                if alert::is_paused(&self.glance().await?.view) =>
            {
                Ok(Outcome::new("refused", "paused: an alert is no operator, resume first"))
            }
            AlertAction::Drill => {
                self.plan(Request::Drill, accepted.origin()).await.map(|(plan, begun)| planned(&plan, begun))
            }
            AlertAction::Sequence => {
                let name = accepted.sequence.clone().unwrap_or_default();
                let asked = SequenceAsked { name: name.clone(), origin: accepted.origin(), dry_run: false };
                Ok(match self.ask_for_sequence(asked).await? {
                    Ok((plan, begun)) => planned(&plan, begun),
                    Err(_) => Outcome::new("refused", format!("there is no sequence {name:?} any more")),
                })
            }
            AlertAction::DrCheck => {
                let readiness = self.examine().await?;
                let open: Vec<String> = readiness
                    .checks
                    .iter()
                    .filter(|check| check.verdict == Verdict::Failing)
                    .map(|check| format!("{}: {}", check.check, check.detail))
                    .collect();
                let found = if open.is_empty() { "nothing is failing".to_owned() } else { open.join("; ") };
                Ok(Outcome::new("told", format!("readiness {:.2}: {found}", readiness.score)))
            }
            AlertAction::Notify => Ok(Outcome::new(
                "told",
                accepted.alert.summary.clone().unwrap_or_else(|| accepted.alert.name().to_owned()),
            )),
            AlertAction::Retrain => match self.retraining() {
                Ok(request) => self.plan(request, accepted.origin()).await.map(|(plan, begun)| planned(&plan, begun)),
                Err(problem) => Ok(Outcome::new("refused", problem.detail)),
            },
            AlertAction::Ignore => Ok(Outcome::new("refused", "nothing is to be done for it")),
        }
    }

    pub(super) async fn tell(&self, event: Event) {
        // A loop that is gone tells nothing any more.
        let _ = self.inbox().send(LoopEvent::Tell(Box::new(event))).await;
    }
}

/// Carries out what was accepted and not handled before, then whatever comes. Ends with its controller.
pub(super) async fn work(handle: ControllerHandle, mut inbox: mpsc::Receiver<AcceptedAlert>) {
    match waiting(handle.store()).await {
        Ok(waiting) => {
            for accepted in waiting {
                if !carry_out(&handle, accepted).await {
                    return;
                }
            }
        }
        Err(error) => tracing::error!(%error, "alerts accepted by an earlier controller were not read"),
    }
    while let Some(accepted) = inbox.recv().await {
        if !carry_out(&handle, accepted).await {
            return;
        }
    }
}

async fn carry_out(handle: &ControllerHandle, accepted: AcceptedAlert) -> bool {
    let fingerprint = accepted.alert.fingerprint.clone();
    match handle.carry_out(accepted).await {
        Ok(()) => true,
        Err(problem) => {
            tracing::warn!(
                fingerprint,
                problem = problem.detail,
                "alert not carried out; the next leader goes on with it"
            );
            !handle.inbox().is_closed()
        }
    }
}

/// Accepted and not handled, oldest first.
async fn waiting(store: Arc<dyn Store>) -> Result<Vec<AcceptedAlert>, StoreError> {
    let cards = store.list_cards(Drawer::Alerts).await?;
    let mut found: Vec<AcceptedAlert> = cards
        .iter()
        .filter_map(|card| match serde_json::from_str::<AcceptedAlert>(&card.body) {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                tracing::warn!(%error, card = card.key, "an accepted alert is not understood, and left alone");
                None
            }
        })
        .filter(|accepted| accepted.outcome.is_none())
        .collect();
    found.reverse();
    Ok(found)
}

/// What a plan that was asked for came to.
fn planned(plan: &Plan, begun: Option<Operation>) -> Outcome {
    let detail: Vec<String> = plan.blocked_by.iter().chain(&plan.reasons).map(ToString::to_string).collect();
    let word = if plan.blocked_by.is_empty() { "begun" } else { "refused" };
    Outcome { operation: begun.map(|operation| operation.id), ..Outcome::new(word, detail.join("; ")) }
}

fn card(accepted: &AcceptedAlert) -> Result<Card, Problem> {
    let body = serde_json::to_string(accepted).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Card { key: accepted.key(), body })
}

/// Alertmanager sends again what was answered so.
fn not_stored(error: StoreError) -> Problem {
    Problem::unavailable(error.to_string())
}

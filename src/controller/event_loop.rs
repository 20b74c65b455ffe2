//! The loop: one closed set of events, one owner of the state.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::journal::Journal;
use super::name::{self, NameSight, Wanted};
use super::notifications::Outbox;
use super::prediction::{self, Word};
use super::sequences::{SequenceAnswer, SequenceAsked};
use super::state::{NodeState, PredictorState, ProxyState, State, Wish};
use super::told::Told;
use super::watched::StoreWatch;
use super::witness::{self, Door, Knock};
use super::{ConfiguredNode, ControllerParts, ENDED_KEPT, Remembered, backup};
use crate::api::rendered::Rendered;
use crate::api::wire::{ClusterStatus, Problem};
use crate::decide::request::Request;
use crate::domain::clock::{Moment, WallTime};
use crate::domain::command::{HeartbeatReply, ProxyAssignment};
use crate::domain::epoch::Epoch;
use crate::domain::ids::OperationId;
use crate::domain::operation::{Operation, OperationKind, StepName, StepState};
use crate::domain::plan::Plan;
use crate::domain::readiness::RepositoryFacts;
use crate::domain::record::ClusterRecord;
use crate::domain::report::{ProxyReport, Report};
use crate::domain::view::View;
use crate::operate;
use crate::telemetry;

/// While nothing happens, those who look see a copy that may be this old: thousands a second share a few.
const GLANCE_KEPT: Duration = Duration::from_millis(10);

/// What can happen to a controller.
pub(super) enum Event {
    /// A node's agent reports and waits for the answer.
    Heartbeat { report: Box<Report>, reply: oneshot::Sender<HeartbeatReply> },
    /// A proxy's agent reports and waits for the answer.
    ProxyHeartbeat { report: Box<ProxyReport>, reply: oneshot::Sender<ProxyAssignment> },
    /// A step of an operation ended.
    StepEnded {
        operation: OperationId,
        step: StepName,
        attempt: u32,
        epoch: Epoch,
        state: StepState,
        reports: Vec<Report>,
        record: Option<Box<ClusterRecord>>,
    },
    /// A change of the record outside any operation ended; this is the record now.
    RecordUpdated {
        /// As found in the store; `None` if it could not be read.
        record: Option<Box<ClusterRecord>>,
        /// Whether it is the one that was to be stored.
        stored: bool,
    },
    /// The name was looked at.
    NameSeen(Box<NameSight>),
    /// Somebody knocked at the primary's door.
    Knocked(Knock),
    /// The scoring task says something.
    Predicted(Word),
    /// Somebody asks what is going on.
    Look { reply: oneshot::Sender<Arc<Glance>> },
    /// An operator asks for something.
    Ask { request: Request, origin: String, dry_run: bool, reply: oneshot::Sender<(Plan, Option<Operation>)> },
    /// Somebody asks for a sequence.
    Sequence { asked: SequenceAsked, reply: oneshot::Sender<SequenceAnswer> },
    /// An operator pauses or resumes.
    Pause { until: Option<WallTime>, who: String, reply: oneshot::Sender<()> },
    /// What was found of the backup repository.
    Repository(Result<RepositoryFacts, String>),
    /// Something that happened beside the loop.
    Tell(Box<telemetry::Event>),
    /// The store did not take a write, for the first time since it took one.
    StoreFailed { problem: String },
    /// An operator stops an operation. `None`: there is no such operation; an error: why it is too late.
    Cancel { operation: OperationId, reply: oneshot::Sender<Option<Result<Operation, &'static str>>> },
    /// The cluster shall be let go: the loop ends, unless an operation is under way, which is the answer.
    Retire { reply: oneshot::Sender<Option<Operation>> },
}

/// A copy of the state, for answers. Times in it count from when it was made.
pub(super) struct Glance {
    pub view: View,
    pub operations: Vec<Operation>,
    pub name: Option<NameSight>,
    pub predictor: Option<PredictorState>,
    /// The status document, once somebody asked for it.
    pub status: OnceLock<Result<Arc<Rendered<ClusterStatus>>, Problem>>,
}

/// Who looks, and what was shown last, if nothing has happened since.
#[derive(Default)]
struct Looks {
    waiting: Vec<oneshot::Sender<Arc<Glance>>>,
    last: Option<(Moment, Arc<Glance>)>,
}

/// The loop's own task.
pub(super) struct Controller {
    pub parts: ControllerParts,
    pub state: State,
    pub events: mpsc::Sender<Event>,
    pub watch: StoreWatch,
    pub told: Told,
    pub doors: watch::Sender<Option<Door>>,
    pub names: watch::Sender<Option<Wanted>>,
    pub sights: watch::Receiver<Option<NameSight>>,
    pub journal: Arc<Journal>,
    pub outbox: Outbox,
    /// The epoch, for the scoring task.
    pub epochs: watch::Sender<Epoch>,
    /// When the gauges were last brought up to date.
    pub gauges_shown_at: Option<Moment>,
    /// The cluster was let go: nothing is decided any more.
    is_retired: bool,
}

/// Runs until `shutdown`.
pub(super) async fn run(
    parts: ControllerParts,
    watch: StoreWatch,
    remembered: Remembered,
    outbox: Outbox,
    events: mpsc::Sender<Event>,
    mut inbox: mpsc::Receiver<Event>,
    mut shutdown: watch::Receiver<bool>,
) {
    let now = parts.clock.now();
    let state_of = |node: &ConfiguredNode| NodeState {
        site: node.site.clone(),
        agent: node.agent.clone(),
        report: None,
        last_live: None,
        last_grant: None,
        streaming_lost_at: None,
        behind_since: None,
    };
    let nodes: BTreeMap<_, _> = parts.nodes.iter().map(|node| (node.name.clone(), state_of(node))).collect();
    let proxies = parts.proxies.iter().map(|name| (name.clone(), ProxyState { report: None })).collect();
    // A fence that an operator was promised is stored by whoever comes next.
    let is_fenced = |node| remembered.record.as_ref().is_some_and(|record| record.fenced.contains(node));
    let wishes = remembered.operations.iter().filter_map(|operation| match &operation.kind {
        OperationKind::Fence { node }
            if !operation.status.is_final() && operation.last(StepName::Fence).is_none() && !is_fenced(node) =>
        {
            Some((Wish::Fence(node.clone()), None))
        }
        _ => None,
    });
    let wishes = wishes.collect();
    let manifests = backup::manifests(remembered.operations.iter());
    let backups = parts.backup.as_ref().map(|_| backup::facts(&remembered.operations));
    let state = State {
        manifests,
        backups,
        cluster: parts.cluster.clone(),
        policy: parts.policy.clone(),
        record: remembered.record,
        leading_since: now,
        nodes,
        proxies,
        traffic: parts.traffic.clone(),
        operations: remembered.operations,
        in_flight: Vec::new(),
        update_in_flight: false,
        wishes,
        wish_in_flight: false,
        trouble_since: None,
        last_plan: None,
        leader: format!("{}/{}", parts.name, uuid::Uuid::now_v7()),
        proxy_target: None,
        proxy_sequence: 0,
        sighting: None,
        examined_at: None,
        strains: Default::default(),
        name: None,
        outlooks: BTreeMap::new(),
        told_risks: Default::default(),
        shown_exhaustions: Default::default(),
        predictor: parts.prediction.as_ref().map(|_| PredictorState::default()),
    };
    let journal = Arc::new(Journal::new(watch.over(parts.term.store())));
    let (doors, shown) = watch::channel(None);
    tokio::spawn(witness::watch(
        parts.primary_probe.clone(),
        parts.clock.clone(),
        parts.policy.clone(),
        shown,
        events.clone(),
    ));
    let (names, wished) = watch::channel(None);
    let (seen, sights) = watch::channel(None);
    if let Some(name) = &parts.name_service {
        tokio::spawn(name::keep(name.clone(), parts.cluster.clone(), wished, seen, events.clone()));
    }
    let epoch = state.record.as_ref().map_or(Epoch(0), |record| record.epoch);
    let (epochs, shown_epochs) = watch::channel(epoch);
    if let Some(prediction) = parts.prediction.clone() {
        tokio::spawn(prediction::run(prediction::Surroundings {
            prediction,
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
            events: events.clone(),
            epochs: shown_epochs,
        }));
    }
    let mut controller = Controller {
        parts,
        state,
        events,
        watch,
        told: Told::default(),
        doors,
        names,
        sights,
        journal,
        outbox,
        epochs,
        gauges_shown_at: None,
        is_retired: false,
    };
    controller.note_started();
    let mut looks = Looks::default();
    let mut next_turn = Instant::now();
    loop {
        // In a fixed order, so that the same events always give the same turns; none starves.
        let mut is_due = false;
        tokio::select! {
            biased;
            changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { break },
            event = inbox.recv() => match event {
                Some(event) => is_due |= controller.take(event, &mut looks),
                None => break,
            },
            () = sleep_until(next_turn) => is_due = true,
        }
        while let Ok(event) = inbox.try_recv() {
            is_due |= controller.take(event, &mut looks);
        }
        if controller.is_retired {
            break;
        }
        // Every event is a turn, but for those that only look: thousands a second may come, and must not put off what time alone does.
        let now = controller.parts.clock.now();
        if is_due || Instant::now() >= next_turn {
            next_turn = Instant::now() + controller.turn();
            looks.last = None;
        }
        controller.show(&mut looks, now);
    }
    tracing::info!("controller loop ended");
}

impl Controller {
    /// Takes one event in; who only looks waits for [`Self::show`]. True if something may have changed.
    fn take(&mut self, event: Event, looks: &mut Looks) -> bool {
        match event {
            Event::Look { reply } => {
                looks.waiting.push(reply);
                false
            }
            event => {
                self.handle(event);
                true
            }
        }
    }

    /// Shows the state to all who looked: one copy for them together.
    fn show(&mut self, looks: &mut Looks, now: Moment) {
        if looks.waiting.is_empty() {
            return;
        }
        let fresh = looks.last.take().filter(|(made_at, _)| now < made_at.plus(GLANCE_KEPT));
        let (made_at, glance) = fresh.unwrap_or_else(|| (now, self.glance()));
        looks.last = Some((made_at, glance.clone()));
        for reply in looks.waiting.drain(..) {
            // Whoever asked may have left.
            let _ = reply.send(glance.clone());
        }
    }

    fn glance(&mut self) -> Arc<Glance> {
        let view = self.view();
        let (operations, name) = (self.state.operations.clone(), self.state.name.clone());
        Arc::new(Glance { view, operations, name, predictor: self.state.predictor.clone(), status: OnceLock::new() })
    }

    /// Takes one event in. Never waits.
    fn handle(&mut self, event: Event) {
        let now = self.parts.clock.now();
        match event {
            Event::Heartbeat { report, reply } => {
                let report = Arc::from(report);
                self.hear(Arc::clone(&report));
                let leads_for = self.leads_for();
                let answer = self.state.heartbeat_reply(&report.node, now, self.parts.clock.wall(), leads_for);
                self.note_renewal(&report, answer.grant.is_some());
                // A leadership with no time left for a lease is none: an answer would keep the holder from asking its standbys.
                if self.parts.policy.timers_within(leads_for).is_some() {
                    // The agent may have hung up; it will report again.
                    let _ = reply.send(answer);
                }
            }
            Event::ProxyHeartbeat { report, reply } => {
                let late = |(last, _): &(Arc<ProxyReport>, _)| {
                    last.incarnation == report.incarnation && report.sequence < last.sequence
                };
                if let Some(proxy) = self.state.proxies.get_mut(&report.proxy)
                    && !proxy.report.as_ref().is_some_and(late)
                {
                    proxy.report = Some((Arc::from(report), now));
                }
                let _ = reply.send(self.state.proxy_assignment());
            }
            Event::StepEnded { operation, step, attempt, epoch, state, reports, record } => {
                for report in reports {
                    self.hear(Arc::new(report));
                }
                if let Some(record) = record {
                    self.adopt(*record);
                }
                self.step_ended(&operation, step, attempt, epoch, state);
            }
            Event::RecordUpdated { record, stored } => {
                self.state.update_in_flight = false;
                if let Some(record) = record {
                    self.adopt(*record);
                }
                self.wish_stored(stored);
            }
            Event::NameSeen(sight) => self.name_seen(*sight),
            Event::Knocked(knock) => self.knocked(knock),
            Event::Predicted(word) => self.predicted(word),
            Event::Look { reply } => drop(reply.send(self.glance())),
            Event::Ask { request, origin, dry_run, reply } => {
                let answer = self.ask(&request, &origin, dry_run);
                let _ = reply.send(answer);
            }
            Event::Sequence { asked, reply } => {
                let answer = self.ask_sequence(&asked);
                let _ = reply.send(answer);
            }
            Event::Pause { until, who, reply } => {
                self.state.wishes.push_back((Wish::Pause { until, who }, Some(reply)));
            }
            Event::Repository(found) => {
                if let Some(facts) = &mut self.state.backups {
                    facts.repository = Some(found);
                }
            }
            Event::Tell(event) => self.tell(&event),
            Event::StoreFailed { problem } => self.note_store_failed(problem),
            Event::Cancel { operation, reply } => {
                let found = self.state.operation_mut(&operation).map(|operation| {
                    // Asked and answered in one turn: a cancel that is accepted is honoured.
                    if let Some(refusal) = operate::cancel_refusal(operation) {
                        return Err(refusal);
                    }
                    operation.cancel_requested = true;
                    Ok(operation.clone())
                });
                let _ = reply.send(found);
            }
            Event::Retire { reply } => {
                // Asked and answered in one turn: nothing can begin between the answer and the end.
                let under_way = self.state.operations.iter().find(|operation| !operation.status.is_final()).cloned();
                self.is_retired |= under_way.is_none();
                let _ = reply.send(under_way);
            }
        }
        self.state.trim(ENDED_KEPT);
    }

    /// Takes a report in and tells what changed.
    fn hear(&mut self, report: Arc<Report>) {
        let before = self.state.nodes.get(&report.node).and_then(|node| node.report.as_ref());
        let before = before.map(|(last, _)| Arc::clone(last));
        if self.state.hear(Arc::clone(&report), self.parts.clock.now()) {
            self.note_report(before.as_deref(), &report);
        }
    }

    /// Makes `record` the one that everything rests on, and tells agents at once.
    pub(super) fn adopt(&mut self, record: ClusterRecord) {
        let newer = self.state.record.as_ref().is_none_or(|current| record.number > current.number);
        if newer {
            self.note_record(&record);
            if self.state.record.as_ref().is_none_or(|current| record.epoch > current.epoch) {
                for node in self.state.nodes.values_mut() {
                    node.last_grant = None;
                    node.streaming_lost_at = None;
                    node.behind_since = None;
                }
                // What was expected rested on who is the primary.
                self.state.outlooks.clear();
                self.epochs.send_replace(record.epoch);
            }
            self.state.record = Some(record);
            self.push();
        }
    }

    /// Takes in what the scoring task says.
    fn predicted(&mut self, word: Word) {
        let epoch = self.state.record.as_ref().map_or(Epoch(0), |record| record.epoch);
        let Some(predictor) = &mut self.state.predictor else { return };
        match word {
            Word::Loaded(model) => {
                (predictor.model, predictor.refused_model) = (Some(model.clone()), None);
                self.note_model(model);
            }
            Word::Refused(problem) => {
                predictor.refused_model = Some(problem.clone());
                self.note_model_refused(problem);
            }
            Word::Abstains(problem) => {
                predictor.abstains = Some(problem.clone());
                self.note_abstains(problem);
            }
            Word::ChallengerRefused(problem) => self.note_model_refused(format!("challenger: {problem}")),
            Word::Scored { risks, epoch: scored, tallied } => {
                predictor.tallied = tallied;
                let resumed = predictor.abstains.take().and(predictor.model.clone());
                if let Some(model) = resumed {
                    self.note_resumed(model);
                }
                if scored == epoch {
                    let limits = self.risk_limits();
                    self.state.hear_risks(risks, &limits, self.parts.clock.now());
                    if let Some(moved) = self.state.risk_after_move().cloned() {
                        self.save(moved);
                    }
                }
            }
        }
    }
}

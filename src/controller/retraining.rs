//! When a model is trained anew by itself: by schedule, and where the model does not know a node any more.
//!
//! A task beside the loop, which begins operations by the same way as a person. What a retraining does is `operate::retrain`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::ControllerParts;
use super::backup::next_time;
use super::event_loop::{Event, Glance};
use crate::decide::alert;
use crate::decide::request::Request;
use crate::domain::clock::{Moment, WallTime};
use crate::domain::ids::ClusterName;
use crate::domain::operation::OperationKind;
use crate::domain::view::View;
use crate::ports::{Clock, Store, Trainer};

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);
/// A node that is unlike those of the training for so long will stay so.
const DRIFT_LASTS: Duration = Duration::from_secs(600);
/// Between two retrainings that drift asks for: the next model may know the node no better.
const DRIFT_PAUSE: Duration = Duration::from_secs(86_400);
/// Operations looked through for the last retraining.
const LOOKED_THROUGH: usize = 200;

/// How models are trained anew.
#[derive(Clone)]
pub struct Training {
    /// Runs the training program.
    pub trainer: Arc<dyn Trainer>,
    /// A cron expression; `None`: not by the clock.
    pub schedule: Option<String>,
    /// The time zone of the schedule.
    pub time_zone: String,
    /// Also where a node drifts.
    pub on_drift: bool,
    /// How long the training itself may take.
    pub time_limit: Duration,
}

impl Training {
    /// What is asked of the planner.
    pub(super) fn request(&self) -> Request {
        Request::Retrain { time_limit_seconds: self.time_limit.as_secs().max(1) }
    }
}

/// The task that asks for retrainings.
pub(super) struct Keeper {
    training: Training,
    cluster: ClusterName,
    clock: Arc<dyn Clock>,
    events: mpsc::Sender<Event>,
    scheduled_until: WallTime,
    drifts_since: Option<Moment>,
}

impl Keeper {
    /// `None` where nothing is trained by itself.
    pub(super) fn new(parts: &ControllerParts, events: mpsc::Sender<Event>) -> Option<Self> {
        let training = parts.prediction.as_ref()?.training.clone()?;
        if training.schedule.is_none() && !training.on_drift {
            return None;
        }
        Some(Self {
            training,
            cluster: parts.cluster.clone(),
            clock: parts.clock.clone(),
            events,
            scheduled_until: parts.clock.wall(),
            drifts_since: None,
        })
    }

    /// Runs as long as the loop does.
    pub(super) async fn run(mut self, store: Arc<dyn Store>) {
        while !self.events.is_closed() {
            tokio::time::sleep(TICK).await;
            if self.is_scheduled() {
                self.ask("schedule").await;
            }
            if !self.training.on_drift {
                continue;
            }
            let Some(glance) = self.glance().await else { return };
            if self.lasts(drifts(&glance.view)) && self.was_long_ago(store.as_ref()).await {
                self.drifts_since = None;
                self.ask("drift").await;
            }
        }
    }

    async fn glance(&self) -> Option<Arc<Glance>> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Look { reply }).await.ok()?;
        answer.await.ok()
    }

    /// What was due while no controller led is not made up for.
    fn is_scheduled(&mut self) -> bool {
        let Some(cron) = &self.training.schedule else { return false };
        let now = self.clock.wall();
        let due = next_time(cron, &self.training.time_zone, self.scheduled_until).is_some_and(|at| at <= now);
        self.scheduled_until = self.scheduled_until.max(now);
        due
    }

    /// True once a node has been unlike those of the training for long enough.
    fn lasts(&mut self, drifts: bool) -> bool {
        if !drifts {
            self.drifts_since = None;
            return false;
        }
        let now = self.clock.now();
        now.since(*self.drifts_since.get_or_insert(now)) >= DRIFT_LASTS
    }

    async fn was_long_ago(&self, store: &dyn Store) -> bool {
        // Who cannot know trains nothing: it is asked again.
        let Ok(operations) = store.list_operations(&self.cluster, LOOKED_THROUGH).await else { return false };
        let now = self.clock.wall();
        let is_recent = |began: WallTime| now.since(began) < DRIFT_PAUSE;
        !operations.iter().any(|one| matches!(one.kind, OperationKind::Retrain { .. }) && is_recent(one.begun_wall))
    }

    /// Begins one, unless automatic operations are paused or one is under way.
    async fn ask(&self, origin: &str) {
        let Some(glance) = self.glance().await else { return };
        if alert::is_paused(&glance.view) {
            tracing::info!(origin, "no retraining while automatic operations are paused");
            return;
        }
        let (reply, answer) = oneshot::channel();
        let ask = Event::Ask { request: self.training.request(), origin: origin.to_owned(), dry_run: false, reply };
        if self.events.send(ask).await.is_err() {
            return;
        }
        let Ok((plan, _)) = answer.await else { return };
        for reason in &plan.blocked_by {
            tracing::warn!(origin, %reason, "a retraining was not begun");
        }
    }
}

/// True while a node is unlike those of the training.
fn drifts(view: &View) -> bool {
    view.outlooks.values().any(|outlook| outlook.risk.known().is_some_and(|risk| risk.drifts))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::domain::clock::BootId;
    use crate::domain::training::TrainRun;
    use crate::ports::steps::StepError;
    use crate::ports::training::TellProgress;

    /// A clock that is set by hand, in microseconds; both of its hands.
    struct Hand(Mutex<i64>);

    impl Clock for Hand {
        fn now(&self) -> Moment {
            Moment(u64::try_from(self.wall().0).expect("after 1970"))
        }
        fn wall(&self) -> WallTime {
            WallTime(*self.0.lock().expect("no panic"))
        }
        fn boot(&self) -> BootId {
            BootId("boot".to_owned())
        }
    }

    struct Nobody;

    #[async_trait]
    impl Trainer for Nobody {
        async fn run(&self, _: &TrainRun, _: TellProgress<'_>) -> Result<String, StepError> {
            Err(StepError::Failed("nobody trains here".to_owned()))
        }
    }

    fn keeper(clock: &Arc<Hand>) -> Keeper {
        let training = Training {
            trainer: Arc::new(Nobody),
            schedule: Some("0 3 * * sun".to_owned()),
            time_zone: "Europe/Berlin".to_owned(),
            on_drift: true,
            time_limit: Duration::from_secs(60),
        };
        Keeper {
            training,
            cluster: ClusterName::new("main").expect("valid"),
            clock: clock.clone(),
            events: mpsc::channel(1).0,
            scheduled_until: clock.wall(),
            drifts_since: None,
        }
    }

    fn at(text: &str) -> i64 {
        WallTime::try_from(text.to_owned()).expect("a time").0
    }

    #[test]
    fn a_schedule_is_due_once_in_its_time_zone() {
        let clock = Arc::new(Hand(Mutex::new(at("2026-11-28T12:00:00Z"))));
        let mut keeper = keeper(&clock);
        let mut is_due_at = |text: &str| {
            *clock.0.lock().expect("no panic") = at(text);
            keeper.is_scheduled()
        };
        assert!(!is_due_at("2026-11-29T01:59:59Z"));
        assert!(is_due_at("2026-11-29T02:00:00Z"), "three o'clock in Berlin");
        assert!(!is_due_at("2026-11-29T02:00:01Z"));
        assert!(!is_due_at("2026-11-29T01:00:00Z"), "a clock that is set back makes nothing due again");
        assert!(!is_due_at("2026-11-29T02:00:02Z"));
        assert!(is_due_at("2026-12-06T09:00:00Z"), "a week later, however late it is looked");
    }

    #[test]
    fn only_a_drift_that_lasts_counts() {
        let clock = Arc::new(Hand(Mutex::new(at("2026-11-28T12:00:00Z"))));
        let mut keeper = keeper(&clock);
        let mut lasts_after = |seconds: i64, drifts: bool| {
            *clock.0.lock().expect("no panic") += seconds * 1_000_000;
            keeper.lasts(drifts)
        };
        assert!(!lasts_after(0, true));
        assert!(!lasts_after(599, true));
        assert!(!lasts_after(1, false), "it was over for a moment");
        assert!(!lasts_after(1, true));
        assert!(!lasts_after(599, true));
        assert!(lasts_after(1, true));
    }
}

//! Notifications on their way: stored first, then sent by each channel at its own pace, also by the controller that comes next.
//!
//! The loop only puts a notice into a queue and never waits: where the queue is full, the notice is dropped and counted. A message that
//! went out is noted in the store, so that neither a restart nor another leader sends it again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::ControllerParts;
use super::event_loop::Event as LoopEvent;
use super::notes;
use crate::api::notifications::ChannelDocument;
use crate::domain::clock::WallTime;
use crate::domain::epoch::Epoch;
use crate::domain::ids::ClusterName;
use crate::domain::notification::{Channel, Message, Notice};
use crate::ports::{Card, Clock, Drawer, Notifier, NotifyError, Store};
use crate::telemetry::event::Event;
use crate::telemetry::metrics::{ControllerMetrics, NotificationOutcome};
use crate::telemetry::notification;

/// Notices that may wait to be stored.
const WAITING_MAX: usize = 1024;
/// Messages that may wait for one channel.
const LANE_WAITING_MAX: usize = 256;
/// First pause between two attempts; it doubles.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Older news are given up.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// What ended shortly before a controller began may have been told by nobody.
const LOOK_BACK: Duration = Duration::from_secs(600);
/// Operations looked through for that.
const OPERATIONS_LOOKED_AT: usize = 50;

/// One channel, and what sends its messages.
#[derive(Clone)]
pub struct KeptChannel {
    /// What it wants.
    pub channel: Channel,
    /// `email`, `slack` or `json`.
    pub kind: &'static str,
    /// The way to people.
    pub notifier: Arc<dyn Notifier>,
}

/// Every configured channel.
pub type Notifications = Arc<[KeptChannel]>;

/// A message as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Delivery {
    channel: String,
    notice: Notice,
    /// How it ended; `None`: it is still to be sent.
    outcome: Option<String>,
}

impl Delivery {
    fn card(&self) -> Option<Card> {
        let body = serde_json::to_string(self).ok()?;
        Some(Card { key: format!("{}/{}", self.channel, self.notice.key), body })
    }
}

/// How each channel does, for answers.
#[derive(Default)]
pub(super) struct Standing(Mutex<BTreeMap<String, Sight>>);

/// What is known of one channel since this controller began.
#[derive(Debug, Clone, Default)]
struct Sight {
    sent: Option<WallTime>,
    problem: Option<String>,
}

impl Standing {
    /// Notes how an attempt went; true if the channel failed and did not before.
    fn note(&self, channel: &str, at: WallTime, problem: Option<&str>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sight = all.entry(channel.to_owned()).or_default();
        let began = sight.problem.is_none() && problem.is_some();
        sight.problem = problem.map(str::to_owned);
        if problem.is_none() {
            sight.sent = Some(at);
        }
        began
    }

    /// Every channel as the API shows it.
    pub(super) fn list(&self, channels: &[KeptChannel]) -> Vec<ChannelDocument> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |kept: &KeptChannel| {
            let sight = all.get(&kept.channel.name).cloned().unwrap_or_default();
            ChannelDocument {
                name: kept.channel.name.clone(),
                kind: kept.kind.to_owned(),
                on: kept.channel.on.iter().copied().collect(),
                clusters: kept.channel.clusters.clone(),
                last_sent: sight.sent,
                problem: sight.problem,
            }
        };
        channels.iter().map(one).collect()
    }
}

/// What the tasks need.
#[derive(Clone)]
struct Office {
    cluster: ClusterName,
    clock: Arc<dyn Clock>,
    store: Arc<dyn Store>,
    metrics: Arc<ControllerMetrics>,
    events: mpsc::Sender<LoopEvent>,
    standing: Arc<Standing>,
}

/// Where the loop puts what people shall be told.
pub(super) struct Outbox {
    queue: Option<mpsc::Sender<Notice>>,
    channels: Notifications,
    metrics: Arc<ControllerMetrics>,
}

impl Outbox {
    /// Starts the tasks, which end with the loop. Without a channel there are none.
    pub(super) fn open(
        parts: &ControllerParts,
        store: Arc<dyn Store>,
        events: mpsc::Sender<LoopEvent>,
        standing: Arc<Standing>,
    ) -> Self {
        let channels = parts.notifications.clone();
        let metrics = parts.metrics.clone();
        let mut queue = None;
        for kept in channels.iter() {
            metrics.show_channel(&kept.channel.name);
        }
        if !channels.is_empty() {
            let (sender, inbox) = mpsc::channel(WAITING_MAX);
            let office = Office {
                cluster: parts.cluster.clone(),
                clock: parts.clock.clone(),
                store,
                metrics: metrics.clone(),
                events,
                standing,
            };
            tokio::spawn(sort(office, channels.clone(), inbox));
            queue = Some(sender);
        }
        Self { queue, channels, metrics }
    }

    /// Takes what an event says to people. Never waits.
    pub(super) fn take(&self, event: &Event, cluster: &ClusterName, epoch: Epoch, at: WallTime) {
        let Some(queue) = &self.queue else { return };
        let Some(notice) = notification::notice(event, cluster, epoch, at) else { return };
        let wanted: Vec<&KeptChannel> = self.channels.iter().filter(|kept| kept.channel.wants(&notice)).collect();
        if !wanted.is_empty() && queue.try_send(notice).is_err() {
            for kept in wanted {
                self.metrics.count_notification(&kept.channel.name, NotificationOutcome::Dropped);
            }
        }
    }
}

/// Stores each notice for every channel that wants it, and hands it on.
async fn sort(office: Office, channels: Notifications, mut inbox: mpsc::Receiver<Notice>) {
    let mut lanes = BTreeMap::new();
    for kept in channels.iter() {
        let (sender, waiting) = mpsc::channel(LANE_WAITING_MAX);
        tokio::spawn(send(office.clone(), kept.clone(), waiting));
        lanes.insert(kept.channel.name.clone(), sender);
    }
    let hand_on = |delivery: Delivery| {
        let Some(lane) = lanes.get(&delivery.channel) else { return };
        let name = delivery.channel.clone();
        // It stays in the store, and is sent by the next controller if it is not too old by then.
        if lane.try_send(delivery).is_err() {
            office.metrics.count_notification(&name, NotificationOutcome::Dropped);
        }
    };
    for delivery in left_over(&office).await {
        hand_on(delivery);
    }
    let missed = missed(&office).await;
    let mut told = missed.into_iter();
    loop {
        let notice = match told.next() {
            Some(notice) => notice,
            None => tokio::select! {
                () = office.events.closed() => return,
                notice = inbox.recv() => match notice {
                    Some(notice) => notice,
                    None => return,
                },
            },
        };
        for kept in channels.iter().filter(|kept| kept.channel.wants(&notice)) {
            let delivery = Delivery { channel: kept.channel.name.clone(), notice: notice.clone(), outcome: None };
            if is_new(&office, &delivery).await {
                hand_on(delivery);
            }
        }
    }
}

/// Stores a message that is to be sent; false if it was stored before. A store that takes nothing is no reason to be silent.
async fn is_new(office: &Office, delivery: &Delivery) -> bool {
    let Some(card) = delivery.card() else { return true };
    match office.store.insert_card(Drawer::Notifications, &card).await {
        Ok(known) => known.is_none(),
        Err(error) => {
            tracing::warn!(%error, channel = delivery.channel, "a notification is sent without being stored: it may come twice");
            true
        }
    }
}

/// What an earlier controller stored and did not send, oldest first.
async fn left_over(office: &Office) -> Vec<Delivery> {
    let cards = match office.store.list_cards(Drawer::Notifications).await {
        Ok(cards) => cards,
        Err(error) => {
            tracing::warn!(%error, "notifications of an earlier controller were not read");
            return Vec::new();
        }
    };
    let now = office.clock.wall();
    let waiting = |card: &Card| {
        let delivery: Delivery = serde_json::from_str(&card.body).ok()?;
        (delivery.outcome.is_none() && now.since(delivery.notice.at) <= AGE_MAX).then_some(delivery)
    };
    cards.iter().rev().filter_map(waiting).collect()
}

/// What happened so shortly before that nobody may have stored it, oldest first.
async fn missed(office: &Office) -> Vec<Notice> {
    let operations = match office.store.list_operations(&office.cluster, OPERATIONS_LOOKED_AT).await {
        Ok(operations) => operations,
        Err(error) => {
            tracing::warn!(%error, "operations of an earlier controller were not read for notifications");
            return Vec::new();
        }
    };
    let now = office.clock.wall();
    let mut notices = Vec::new();
    for operation in operations.iter().rev() {
        let epoch = operation.epoch_after.unwrap_or(operation.epoch_before);
        let mut add = |event: &Event, at: WallTime| {
            if now.since(at) <= LOOK_BACK {
                notices.extend(notification::notice(event, &office.cluster, epoch, at));
            }
        };
        add(&notes::began(operation), operation.begun_wall);
        if let Some(ended) = operation.ended_wall.filter(|_| operation.status.is_final()) {
            add(&notes::ended(operation), ended);
        }
    }
    notices
}

/// Sends the messages of one channel, one after the other.
async fn send(office: Office, kept: KeptChannel, mut waiting: mpsc::Receiver<Delivery>) {
    loop {
        let delivery = tokio::select! {
            () = office.events.closed() => return,
            delivery = waiting.recv() => delivery,
        };
        let Some(mut delivery) = delivery else { return };
        let message = kept.channel.message(delivery.notice.clone());
        let sent = tokio::select! {
            () = office.events.closed() => return,
            sent = deliver(&office, &kept, &message) => sent,
        };
        let outcome = match &sent {
            Ok(()) => NotificationOutcome::Sent,
            Err(_) => NotificationOutcome::Failed,
        };
        office.metrics.count_notification(&kept.channel.name, outcome);
        delivery.outcome = Some(match sent {
            Ok(()) => format!("sent at {}", office.clock.wall()),
            Err(problem) => format!("given up at {}: {problem}", office.clock.wall()),
        });
        if let Some(card) = delivery.card()
            && let Err(error) = office.store.replace_card(Drawer::Notifications, &card).await
        {
            tracing::warn!(%error, channel = kept.channel.name, "how a notification ended was not stored: it may come twice");
        }
    }
}

/// Tries until it went out, was refused for good, or is no news any more.
async fn deliver(office: &Office, kept: &KeptChannel, message: &Message) -> Result<(), String> {
    let name = &kept.channel.name;
    let mut pause = PAUSE_MIN;
    loop {
        let (problem, is_final) = match kept.notifier.send(message).await {
            Ok(()) => {
                office.standing.note(name, office.clock.wall(), None);
                return Ok(());
            }
            Err(NotifyError::Refused(problem)) => (problem, true),
            Err(NotifyError::Failed(problem)) => (problem, false),
        };
        let now = office.clock.wall();
        // Once for a channel that begins to fail: an event for every attempt would be a storm.
        if office.standing.note(name, now, Some(&problem)) {
            let event = Event::NotificationFailed { channel: name.clone(), problem: problem.clone() };
            let _ = office.events.send(LoopEvent::Tell(Box::new(event))).await;
        }
        if is_final || now.since(message.notice.at) > AGE_MAX {
            return Err(problem);
        }
        office.metrics.count_notification(name, NotificationOutcome::Retried);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

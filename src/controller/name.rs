//! Keeps the name that clients connect to at what the record says: read, compare, write, ask every server, again.
//!
//! A reconciler and no part of any saga: what is wanted follows from the record, so a restart forgets nothing, and nothing waits
//! for it. Invariant: a failure here changes nothing about the database, and a name of a newer epoch is never overwritten.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::event_loop::Event;
use crate::domain::epoch::Epoch;
use crate::domain::ids::{ClusterName, SiteName};
use crate::domain::name::{NameRecord, NameRule, NameVerdict, words};
use crate::ports::name::{NameError, NameService, ServerAnswer};

/// Before the first new attempt; doubled until [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Between attempts, however long it has not worked.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A name that is right is looked at again so often: people and other programs can change it too.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Writing fails because somebody else was faster: the new state is looked at at once, this often.
const CONFLICTS_MAX: u32 = 3;

/// A name, and what keeps it.
#[derive(Clone)]
pub struct KeptName {
    /// The provider.
    pub service: Arc<dyn NameService>,
    /// What the operator wants.
    pub rule: NameRule,
}

/// Where the primary is, once it accepts writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub epoch: Epoch,
    pub site: SiteName,
}

/// What was found, and made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameSight {
    pub wanted: Wanted,
    /// The values that belong to it; empty where nothing is said about the site.
    pub record: NameRecord,
    /// Whether it was written just now.
    pub written: bool,
    /// What is undone, and why; `None`: every server answers what is wanted.
    pub problem: Option<String>,
    pub answers: Vec<ServerAnswer>,
}

/// Works until the loop is gone.
pub(super) async fn keep(
    name: KeptName,
    cluster: ClusterName,
    mut wanted: watch::Receiver<Option<Wanted>>,
    sights: watch::Sender<Option<NameSight>>,
    events: mpsc::Sender<Event>,
) {
    let mut retry = RETRY_FIRST;
    loop {
        let target = wanted.borrow_and_update().clone();
        let pause = match target {
            // Nothing is known yet; a change of what is wanted ends the wait.
            None => LOOK_AGAIN,
            Some(target) => {
                // What was begun for an older wish is dropped: whether it was made is read anew.
                let sight = tokio::select! {
                    biased;
                    changed = wanted.changed() => if changed.is_err() { return } else { retry = RETRY_FIRST; continue },
                    sight = look(&name, &cluster, &target) => sight,
                };
                let is_right = sight.problem.is_none();
                sights.send_replace(Some(sight.clone()));
                if events.send(Event::NameSeen(Box::new(sight))).await.is_err() {
                    return;
                }
                if is_right {
                    retry = RETRY_FIRST;
                    LOOK_AGAIN
                } else {
                    let pause = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    pause
                }
            }
        };
        tokio::select! {
            biased;
            changed = wanted.changed() => if changed.is_err() { return } else { retry = RETRY_FIRST },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One look, with what it takes to make the name right.
async fn look(name: &KeptName, cluster: &ClusterName, target: &Wanted) -> NameSight {
    let mut sight = NameSight {
        wanted: target.clone(),
        record: NameRecord::default(),
        written: false,
        problem: None,
        answers: Vec::new(),
    };
    let Some(record) = name.rule.wanted(cluster, target.epoch, &target.site) else {
        sight.problem = Some(format!("dns.sites says nothing about site {}", target.site));
        return sight;
    };
    sight.record = record;
    match write(name, cluster, target, &sight.record).await {
        Ok(written) => sight.written = written,
        Err(problem) => sight.problem = Some(problem),
    }
    sight.answers = name.service.answers().await;
    if sight.problem.is_none() {
        sight.problem = sight.answers.iter().find_map(|answer| objection(answer, &sight.record));
    }
    sight
}

/// Makes it right where changes are taken; true if it had to be written.
async fn write(name: &KeptName, cluster: &ClusterName, target: &Wanted, record: &NameRecord) -> Result<bool, String> {
    let mut conflicts = 0;
    loop {
        let seen = name.service.read().await.map_err(|error| error.to_string())?;
        match name.rule.verdict(cluster, target.epoch, &seen, record) {
            NameVerdict::Right => return Ok(conflicts > 0),
            NameVerdict::Due => {}
            NameVerdict::Overtaken(epoch) => {
                return Err(format!(
                    "epoch {epoch} has written it, and this controller is in epoch {}: nothing was changed; if the cluster was made \
                     anew, remove the TXT record beside the name",
                    target.epoch
                ));
            }
            NameVerdict::Foreign(text) => {
                return Err(format!(
                    "the TXT record beside it says {text:?}, which is not of this cluster: nothing was changed; give each cluster \
                     a name of its own, or remove that record"
                ));
            }
        }
        match name.service.swap(&seen, record).await {
            Ok(()) => return Ok(true),
            Err(NameError::Conflict) if conflicts < CONFLICTS_MAX => conflicts += 1,
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn objection(answer: &ServerAnswer, record: &NameRecord) -> Option<String> {
    match &answer.answer {
        Ok(seen) if seen.values == record.values => None,
        Ok(seen) => Some(format!("name server {} still answers {}", answer.server, words(&seen.values))),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Mutex, PoisonError};

    use async_trait::async_trait;

    use super::*;
    use crate::domain::name::{NameOccasion, NameValue, companion};

    /// A zone in memory: what real servers do with the same calls is in `tests/dns`.
    #[derive(Default)]
    struct Zone {
        record: Mutex<NameRecord>,
        refusals_left: Mutex<u32>,
        changes_before_swap: Mutex<Vec<NameRecord>>,
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[async_trait]
    impl NameService for Zone {
        async fn read(&self) -> Result<NameRecord, NameError> {
            Ok(lock(&self.record).clone())
        }

        async fn swap(&self, seen: &NameRecord, wanted: &NameRecord) -> Result<(), NameError> {
            let mut left = lock(&self.refusals_left);
            if *left > 0 {
                *left -= 1;
                return Err(NameError::ServerFailure { server: "zone".to_owned() });
            }
            if let Some(other) = lock(&self.changes_before_swap).pop() {
                *lock(&self.record) = other;
            }
            let mut record = lock(&self.record);
            if record.companion != seen.companion {
                return Err(NameError::Conflict);
            }
            *record = wanted.clone();
            Ok(())
        }

        async fn answers(&self) -> Vec<ServerAnswer> {
            vec![ServerAnswer { server: "zone".to_owned(), answer: self.read().await }]
        }
    }

    fn cluster() -> ClusterName {
        ClusterName::new("main").expect("valid")
    }

    fn values(text: &str) -> BTreeSet<NameValue> {
        BTreeSet::from([NameValue::parse(text).expect("valid")])
    }

    fn kept(zone: &Arc<Zone>) -> KeptName {
        let site = |name: &str| SiteName::new(name).expect("valid");
        let rule = NameRule {
            name: "db.example.test".to_owned(),
            ttl: Duration::from_secs(5),
            when: NameOccasion::SiteChange,
            sites: BTreeMap::from([(site("a"), values("10.0.1.1")), (site("b"), values("10.0.2.1"))]),
        };
        KeptName { service: zone.clone(), rule }
    }

    fn wanted(epoch: u64, site: &str) -> Wanted {
        Wanted { epoch: Epoch(epoch), site: SiteName::new(site).expect("valid") }
    }

    fn written(epoch: u64, value: &str) -> NameRecord {
        let companion = BTreeSet::from([companion(&cluster(), Epoch(epoch))]);
        NameRecord { values: values(value), ttl_seconds: 5, companion }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_tried_until_it_is_right_and_follows_every_wish() {
        let zone = Arc::new(Zone::default());
        *lock(&zone.refusals_left) = 3;
        let (wishes, wished) = watch::channel(None);
        let (seen, mut sights) = watch::channel(None);
        let (events, mut inbox) = mpsc::channel(64);
        tokio::spawn(async move { while inbox.recv().await.is_some() {} });
        let task = tokio::spawn(keep(kept(&zone), cluster(), wished, seen, events));
        for (epoch, site, value) in [(1, "a", "10.0.1.1"), (2, "b", "10.0.2.1"), (3, "a", "10.0.1.1")] {
            wishes.send_replace(Some(wanted(epoch, site)));
            let is_done = |sight: &Option<NameSight>| {
                sight.as_ref().is_some_and(|sight| sight.wanted.epoch == Epoch(epoch) && sight.problem.is_none())
            };
            sights.wait_for(is_done).await.expect("it goes on");
            assert_eq!(*lock(&zone.record), written(epoch, value));
        }
        assert_eq!(*lock(&zone.refusals_left), 0, "each refusal was met");
        // Somebody changes the record by hand.
        lock(&zone.record).values = values("10.9.9.9");
        tokio::time::sleep(LOOK_AGAIN * 2).await;
        assert_eq!(*lock(&zone.record), written(3, "10.0.1.1"));
        drop(wishes);
        task.await.expect("it ends with the loop");
    }

    #[tokio::test]
    async fn whoever_was_deposed_overwrites_nothing() {
        let zone = Arc::new(Zone::default());
        *lock(&zone.record) = written(7, "10.0.1.1");
        let sight = look(&kept(&zone), &cluster(), &wanted(6, "b")).await;
        assert!(sight.problem.is_some_and(|problem| problem.contains("epoch 7 has written it")), "it says so");
        assert_eq!(*lock(&zone.record), written(7, "10.0.1.1"));
    }

    #[tokio::test]
    async fn a_newer_epoch_that_comes_between_reading_and_writing_stays() {
        let zone = Arc::new(Zone::default());
        *lock(&zone.record) = written(5, "10.0.1.1");
        *lock(&zone.changes_before_swap) = vec![written(7, "10.0.1.1")];
        let sight = look(&kept(&zone), &cluster(), &wanted(6, "b")).await;
        assert!(sight.problem.is_some(), "{sight:?}");
        assert_eq!(*lock(&zone.record), written(7, "10.0.1.1"));
    }

    #[tokio::test]
    async fn another_clusters_name_stays() {
        let zone = Arc::new(Zone::default());
        let foreign = NameRecord {
            companion: BTreeSet::from(["stormglass cluster=b epoch=1".to_owned()]),
            ..written(1, "10.9.9.9")
        };
        *lock(&zone.record) = foreign.clone();
        let sight = look(&kept(&zone), &cluster(), &wanted(6, "b")).await;
        assert!(sight.problem.is_some_and(|problem| problem.contains("not of this cluster")));
        assert_eq!(*lock(&zone.record), foreign);
    }
}

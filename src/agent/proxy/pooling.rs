//! Keeps the PgBouncer of this host paused while the write port holds, and never longer.
//!
//! Invariant: nobody waits for PgBouncer longer than the bound that was asked for; a newer order overtakes an older one at once;
//! and where it is not certain that a pause has ended, resuming goes on until it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::domain::traffic::PoolerReport;
use crate::ports::traffic::Pooler;

/// A pause that nobody ends is ended after this: longer than any switchover that succeeds. Transactions then wait at HAProxy.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);
/// Between two tries to resume.
const RETRY: Duration = Duration::from_millis(250);

/// The orders, and what came of them.
pub(super) struct Pooling {
    pooler: Option<Arc<dyn Pooler>>,
    /// How long a pause may take before whoever asked for it is answered.
    bound: Duration,
    wanted: watch::Sender<Order>,
    seen: watch::Sender<Seen>,
}

/// The number tells two orders of one kind apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    number: u64,
    pause: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// The order that was carried out, or given up within its bound.
    number: u64,
    report: PoolerReport,
}

impl Pooling {
    pub(super) fn new(pooler: Option<Arc<dyn Pooler>>, bound: Duration) -> Self {
        let wanted = watch::Sender::new(Order { number: 0, pause: false });
        let seen = watch::Sender::new(Seen { number: 0, report: PoolerReport::default() });
        Self { pooler, bound, wanted, seen }
    }

    /// What is known; `None` where there is no PgBouncer.
    pub(super) fn report(&self) -> Option<PoolerReport> {
        self.pooler.as_ref().map(|_| self.seen.borrow().report.clone())
    }

    /// Orders a pause, or its end. Returns at once.
    pub(super) fn want(&self, pause: bool) {
        self.wanted.send_if_modified(|order| {
            let is_new = order.pause != pause;
            if is_new {
                *order = Order { number: order.number + 1, pause };
            }
            is_new
        });
    }

    /// Waits until the last order was carried out, or was given up. Ends within the bound, a little more for the answer.
    pub(super) async fn done(&self) {
        if self.pooler.is_none() {
            return;
        }
        let number = self.wanted.borrow().number;
        let mut seen = self.seen.subscribe();
        let answered = seen.wait_for(|seen| seen.number >= number);
        // `keep` gives up in time; this is for the case that nobody runs it.
        let _too_late = tokio::time::timeout(self.bound * 2, answered).await;
    }

    /// Returns with every change of [`Pooling::report`]; never, where there is no PgBouncer.
    pub(super) async fn changed(&self) {
        let mut seen = self.seen.subscribe();
        if seen.changed().await.is_err() {
            std::future::pending().await
        }
    }

    fn see(&self, number: u64, is_paused: bool, problem: Option<String>) {
        let seen = Seen { number, report: PoolerReport { is_paused, problem } };
        self.seen.send_if_modified(|known| {
            let is_new = *known != seen;
            *known = seen;
            is_new
        });
    }

    /// Carries the orders out, for ever.
    pub(super) async fn keep(&self) {
        let Some(pooler) = &self.pooler else { return std::future::pending().await };
        let mut orders = self.wanted.subscribe();
        // What a former process left paused is resumed first, whatever is wanted: connections wait at HAProxy as well.
        if pooler.may_be_paused().await {
            self.resume(pooler, 0, &mut orders, Some("an earlier process of this agent left it paused")).await;
        }
        loop {
            let order = *orders.borrow_and_update();
            if order.pause {
                tokio::select! {
                    biased;
                    changed = orders.changed() => match changed {
                        Ok(()) => {}
                        Err(_) => return,
                    },
                    () = self.pause(pooler, order.number) => {}
                }
            } else if pooler.may_be_paused().await {
                self.resume(pooler, order.number, &mut orders, None).await;
            } else {
                self.see(order.number, false, None);
            }
            if *self.wanted.borrow() == order
                && !orders.has_changed().unwrap_or(false)
                && orders.changed().await.is_err()
            {
                return;
            }
            // `changed` marks the value as seen: the loop reads it anew.
        }
    }

    /// Pauses, and stays until the pause has lasted too long.
    async fn pause(&self, pooler: &Arc<dyn Pooler>, number: u64) {
        match pooler.pause(self.bound).await {
            Ok(()) => self.see(number, true, None),
            Err(problem) => {
                tracing::warn!(problem, "PgBouncer is not paused, the move goes on without");
                self.see(number, true, Some(problem));
            }
        }
        sleep(PAUSE_LIMIT).await;
        let problem = format!("nobody ended the pause within {PAUSE_LIMIT:?}: resumed, transactions wait at HAProxy");
        tracing::warn!(problem, "PgBouncer");
        while let Err(error) = pooler.resume().await {
            self.see(number, true, Some(error));
            sleep(RETRY).await;
        }
        self.see(number, false, Some(problem));
    }

    /// Resumes until it is certain, or another order comes.
    async fn resume(
        &self,
        pooler: &Arc<dyn Pooler>,
        number: u64,
        orders: &mut watch::Receiver<Order>,
        why: Option<&str>,
    ) {
        if let Some(why) = why {
            tracing::warn!(why, "resuming PgBouncer");
        }
        let mut is_told = false;
        loop {
            let problem = match pooler.resume().await {
                Ok(()) => return self.see(number, false, None),
                Err(problem) => problem,
            };
            if !std::mem::replace(&mut is_told, true) {
                tracing::error!(problem, "PgBouncer may still be paused");
            }
            self.see(number, true, Some(problem));
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_ok() {
                        orders.mark_changed();
                    }
                    return;
                }
                () = sleep(RETRY) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tokio::time::Instant;

    use super::*;

    /// A PgBouncer that does as it is told, late or never.
    #[derive(Default)]
    struct Script {
        /// What was called.
        calls: Mutex<Vec<&'static str>>,
        /// Transactions that never end.
        is_busy: bool,
        /// Resuming fails so often.
        deaf: Mutex<u32>,
        paused: Mutex<bool>,
    }

    #[async_trait]
    impl Pooler for Script {
        async fn pause(&self, within: Duration) -> Result<(), String> {
            self.calls.lock().expect("lock").push("pause");
            *self.paused.lock().expect("lock") = true;
            if self.is_busy {
                sleep(within).await;
                return Err("transactions are open".to_owned());
            }
            Ok(())
        }

        async fn resume(&self) -> Result<(), String> {
            let mut deaf = self.deaf.lock().expect("lock");
            if *deaf > 0 {
                *deaf -= 1;
                return Err("no answer".to_owned());
            }
            self.calls.lock().expect("lock").push("resume");
            *self.paused.lock().expect("lock") = false;
            Ok(())
        }

        async fn may_be_paused(&self) -> bool {
            *self.paused.lock().expect("lock")
        }
    }

    const BOUND: Duration = Duration::from_secs(1);

    fn start(script: Script) -> (Arc<Script>, Arc<Pooling>, tokio::task::JoinHandle<()>) {
        let script = Arc::new(script);
        let pooling = Arc::new(Pooling::new(Some(script.clone()), BOUND));
        let kept = pooling.clone();
        (script, pooling, tokio::spawn(async move { kept.keep().await }))
    }

    fn is_paused(pooling: &Pooling) -> bool {
        pooling.report().expect("there is one").is_paused
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_waited_for_and_ended_by_the_next_order() {
        let (script, pooling, task) = start(Script::default());
        pooling.want(true);
        pooling.done().await;
        assert!(is_paused(&pooling));
        pooling.want(false);
        pooling.done().await;
        assert!(!is_paused(&pooling));
        assert_eq!(*script.calls.lock().expect("lock"), ["pause", "resume"]);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_hangs_is_waited_for_no_longer_than_its_bound_and_overtaken_at_once() {
        let (script, pooling, task) = start(Script { is_busy: true, ..Script::default() });
        let begun = Instant::now();
        pooling.want(true);
        pooling.done().await;
        assert_eq!(begun.elapsed(), BOUND);
        let report = pooling.report().expect("there is one");
        assert!(report.problem.expect("said").contains("transactions are open"));
        pooling.want(false);
        pooling.done().await;
        assert!(!is_paused(&pooling));

        let begun = Instant::now();
        pooling.want(true);
        tokio::task::yield_now().await;
        pooling.want(false);
        pooling.done().await;
        assert!(begun.elapsed() < BOUND / 2, "the release waited for the pause");
        assert!(!*script.paused.lock().expect("lock"));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn resuming_goes_on_until_it_is_certain() {
        let (script, pooling, task) = start(Script { deaf: Mutex::new(3), ..Script::default() });
        pooling.want(true);
        pooling.done().await;
        pooling.want(false);
        while is_paused(&pooling) {
            tokio::time::timeout(BOUND * 3, pooling.changed()).await.expect("it goes on trying");
        }
        assert!(!*script.paused.lock().expect("lock"));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stays_paused_for_ever_and_what_an_earlier_process_left_is_resumed() {
        let (script, pooling, task) = start(Script { paused: Mutex::new(true), ..Script::default() });
        while *script.paused.lock().expect("lock") {
            sleep(RETRY).await;
        }
        pooling.want(true);
        pooling.done().await;
        assert!(is_paused(&pooling));
        sleep(PAUSE_LIMIT + BOUND).await;
        let report = pooling.report().expect("there is one");
        assert!(!report.is_paused && report.problem.expect("said").contains("nobody ended the pause"));
        assert!(!*script.paused.lock().expect("lock"));
        task.abort();
    }
}

//! A standby that runs and will never go on: the primary no longer has the WAL that comes next. Found here and told; what follows from it,
//! a new copy, is the controller's to decide.
//!
//! Never believed without the primary's own word: a standby that is merely cut off keeps its data.

use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::start::Role;
use crate::domain::clock::Moment;
use crate::domain::lsn::Lsn;
use crate::ports::postgres::Upstream;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// A standby stands still for so long before the primary is asked: after a failover it finds its way by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two questions to the primary; each starts programs.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// For how long a standby has stood where it stands, and when the primary was last asked.
#[derive(Debug, Default)]
struct Stillness {
    since: Option<(Lsn, Moment)>,
    asked_at: Option<Moment>,
}

impl Stillness {
    /// Takes where the standby stands still, if it does; true if the primary is to be asked now.
    fn is_worth_asking(&mut self, position: Option<Lsn>, now: Moment) -> bool {
        let Some(position) = position else {
            *self = Self::default();
            return false;
        };
        let since = match self.since {
            Some((before, since)) if before == position => since,
            _ => now,
        };
        self.since = Some((position, since));
        let is_asked = self.asked_at.is_some_and(|at| now.since(at) < ASK_AGAIN);
        if now.since(since) < PATIENCE || is_asked {
            return false;
        }
        self.asked_at = Some(now);
        true
    }
}

impl Agent {
    /// Looks for as long as the agent runs.
    pub(super) async fn stranded_loop(self: &Arc<Self>) {
        let mut stillness = Stillness::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let still = self.stands_still();
            let is_worth_asking = stillness.is_worth_asking(still.as_ref().map(|(_, position)| *position), self.now());
            let Some((upstream, position)) = still.filter(|_| is_worth_asking) else { continue };
            match self.postgres.wal_gone(&upstream, position).await {
                // It may have been brought back, or have found a way, while the question was asked.
                Ok(Some(words)) if self.stands_still() == Some((upstream, position)) => {
                    tracing::error!(problem = words, "the standby cannot go on: it needs a new copy");
                    self.local().stranded = Some(words);
                    self.heartbeat_wanted.notify_one();
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "the primary does not say whether it has the WAL that comes next")
                }
            }
        }
    }

    /// Whom the standby is to follow, and where it stands, while it follows nobody and nobody wants that.
    fn stands_still(&self) -> Option<(Upstream, Lsn)> {
        let mut local = self.local();
        let live = local.live.as_ref()?;
        let streams = live.receiver.as_ref().is_some_and(|receiver| receiver.streaming);
        let is_meant = local.frozen.is_some() || live.replay_paused || local.stopping;
        let is_still = local.role == Some(Role::Standby) && live.in_recovery && !streams && !is_meant;
        let position = live.flush_lsn;
        if !is_still {
            local.stranded = None;
            return None;
        }
        Some((local.following.clone()?, position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_is_asked_once_a_standby_has_stood_still_and_not_all_the_time() {
        let at = |seconds: u64| Moment(seconds * 1_000_000);
        let mut stillness = Stillness::default();
        let mut asked = |position: Option<u64>, seconds| stillness.is_worth_asking(position.map(Lsn), at(seconds));
        assert!(!asked(Some(100), 0));
        assert!(!asked(Some(100), 19));
        assert!(!asked(Some(108), 20), "it moves, by what it finds in its own WAL");
        assert!(!asked(Some(108), 39));
        assert!(asked(Some(108), 40));
        assert!(!asked(Some(108), 69), "asked a moment ago");
        assert!(asked(Some(108), 70));
        assert!(!asked(None, 71), "it streams");
        assert!(!asked(Some(108), 72));
        assert!(asked(Some(108), 92));
    }
}

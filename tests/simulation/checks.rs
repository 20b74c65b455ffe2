//! The rules that hold at every moment, and what clients were told.

use std::collections::BTreeMap;

use stormglass::domain::epoch::Epoch;
use stormglass::domain::policy::DurabilityMode;

use super::world::{HOSTS, Host, State, node};

/// A primary that just got its first lease, or is being killed, may be seen without one for so long.
const UNLEASED_MICROS: u64 = 250_000;

/// After a freeze of the whole host.
const THAW_MICROS: u64 = 200_000;

/// What clients were told, and who was given which epoch.
#[derive(Default)]
pub struct Ledger {
    identity: u64,
    /// Acknowledged commits: (identity, position).
    pub acknowledged: Vec<(u64, usize)>,
    pub last_acknowledged_at: u64,
    /// Longest time without an acknowledged commit, in microseconds.
    pub outage: u64,
    newest_epoch: Epoch,
    promoted: BTreeMap<Epoch, usize>,
    seen_epoch: Epoch,
    /// Somebody was given a lease: from then on nobody writes without one.
    leased: bool,
}

impl Ledger {
    pub fn next_identity(&mut self) -> u64 {
        self.identity += 1;
        1_000 + self.identity
    }
}

impl State {
    /// A client hears that its commit is confirmed.
    pub fn acknowledge(&mut self, host: usize, identity: u64, position: usize, epoch: Epoch) {
        self.ledger.acknowledged.push((identity, position));
        self.ledger.outage = self.ledger.outage.max(self.now() - self.ledger.last_acknowledged_at);
        self.ledger.last_acknowledged_at = self.now();
        if epoch < self.ledger.newest_epoch {
            let newest = self.ledger.newest_epoch;
            self.violate(&format!("{} confirmed a commit in epoch {epoch} after one of epoch {newest}", node(host)));
        }
        self.ledger.newest_epoch = self.ledger.newest_epoch.max(epoch);
    }

    /// It has left recovery, or starts as a primary: it must have the right to, and everything that clients were told.
    pub fn check_new_primary(&mut self, host: usize) {
        let epoch = self.hosts[host].guard.held.map_or(Epoch(0), |held| held.epoch);
        let record = self.store.record.as_ref().map(|record| (record.epoch, record.holder.clone()));
        match record {
            Some((given, holder)) if given == epoch && holder != node(host) => {
                self.violate(&format!("{} promoted in epoch {epoch}, which belongs to {holder}", node(host)));
            }
            Some((given, _)) if given != epoch => {
                self.violate(&format!("{} promoted in epoch {epoch} while the store is in {given}", node(host)));
            }
            _ => {}
        }
        if let Some(other) = self.ledger.promoted.insert(epoch, host).filter(|other| *other != host) {
            self.violate(&format!("{} and {} were both promoted in epoch {epoch}", node(other), node(host)));
        }
        for other in (0..HOSTS).filter(|other| *other != host) {
            if self.has_right(other) {
                self.violate(&format!("{} promoted without proof: the lease of {} runs", node(host), node(other)));
            }
        }
        self.check_nothing_lost(host);
    }

    /// In `async` a commit is confirmed by the primary alone, so some may be missing: they are not asked for again.
    pub fn check_nothing_lost(&mut self, host: usize) {
        let durable = self.settings.durability != DurabilityMode::Async;
        let Some(data) = &self.hosts[host].server.data else { return };
        let has = |(identity, position): &(u64, usize)| {
            position.checked_sub(1).and_then(|last| data.wal.get(last)).map(|record| record.identity) == Some(*identity)
        };
        let before = self.ledger.acknowledged.len();
        self.ledger.acknowledged.retain(has);
        let missing = before - self.ledger.acknowledged.len();
        if missing > 0 && durable {
            self.violate(&format!("{} lacks {missing} acknowledged commits", node(host)));
        }
    }

    /// The store lost everything: epochs that nobody stored may be given out again.
    pub fn forget_stored_epoch(&mut self) {
        self.ledger.seen_epoch = Epoch(0);
    }

    /// A primary goes down; nobody may do that to a healthy one because the control plane is in trouble.
    pub fn check_stopped(&mut self, host: usize, why: &str) {
        let was_primary = self.hosts[host].server.run.as_ref().is_some_and(|run| !run.recovery);
        if self.settings.gentle && self.stormy && was_primary {
            self.violate(&format!("{} was a healthy primary, and was stopped: {why}", node(host)));
        }
    }

    /// A lease that runs, on a host that did not confirm its fence.
    fn has_right(&self, host: usize) -> bool {
        let Some(held) = self.hosts[host].guard.held else { return false };
        let fenced = self.hosts[host].memory.as_ref().is_some_and(|memory| memory.is_fenced_in(held.epoch));
        self.hosts[host].up && !fenced && self.clock(host) < held.deadline
    }

    /// The rules of every moment.
    pub fn check(&mut self) {
        let now = self.now();
        // A host that was not scheduled finds out a moment after it thaws; what it takes from clients until then it cannot
        // confirm, and that is checked where it is confirmed.
        let thaws = |host: &Host| host.thawed_at.is_some_and(|at| now - at < THAW_MICROS);
        let writers: Vec<usize> =
            (0..HOSTS).filter(|host| self.hosts[*host].server.writes(now) && !thaws(&self.hosts[*host])).collect();
        if writers.len() > 1 {
            self.violate(&format!("two writers: {}", names(&writers)));
        }
        let leased: Vec<usize> = (0..HOSTS).filter(|host| self.has_right(*host)).collect();
        if leased.len() > 1 {
            self.violate(&format!("two valid leases: {}", names(&leased)));
        }
        self.ledger.leased |= !leased.is_empty();
        for host in 0..HOSTS {
            let managed = self.hosts[host].memory.as_ref().is_some_and(|memory| memory.highest_epoch > Epoch(0));
            let unleased = self.ledger.leased && managed && writers.contains(&host) && !self.has_right(host);
            let since = &mut self.hosts[host].unleased_since;
            let since = if unleased { *since.get_or_insert(now) } else { since.take().unwrap_or(now) };
            if unleased && now - since > UNLEASED_MICROS {
                self.violate(&format!("{} writes without a lease", node(host)));
            }
        }
        if let Some(record) = &self.store.record {
            let epoch = record.epoch;
            if epoch < self.ledger.seen_epoch {
                self.violate("the stored epoch shrank");
            }
            self.ledger.seen_epoch = epoch;
        }
    }
}

fn names(hosts: &[usize]) -> String {
    hosts.iter().map(|host| node(*host).to_string()).collect::<Vec<_>>().join(" and ")
}

//! Controllers on etcd: the store's contract, the election, and what is left of both when members or leaders go away.
//!
//! Every test runs its own etcd.

#[path = "../store/contract.rs"]
mod contract;
mod controllers;
mod election;
mod outages;
mod secured;
mod server;
mod storing;
#[path = "../support/pki.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use stormglass::adapters::store::etcd::EtcdLeadership;
use stormglass::adapters::system::SystemClock;
use stormglass::domain::clock::Moment;
use stormglass::ports::{Clock, Leader, Leadership, Term};

use server::{Etcd, PATIENCE};

/// The shortest that etcd grants by itself with its usual timers.
const TIME_TO_LIVE: Duration = Duration::from_secs(2);

fn leader(name: &str) -> Leader {
    Leader { name: name.to_owned(), url: format!("http://{name}.example:8432") }
}

/// A controller's part in the election of `etcd`.
fn candidate(etcd: &Etcd, name: &str) -> Arc<EtcdLeadership> {
    candidate_for(etcd, name, TIME_TO_LIVE)
}

fn candidate_for(etcd: &Etcd, name: &str, time_to_live: Duration) -> Arc<EtcdLeadership> {
    let clock = Arc::new(SystemClock::new().expect("this host has a boot id"));
    let leadership = EtcdLeadership::new(&etcd.settings(), leader(name), time_to_live, clock);
    Arc::new(leadership.expect("settings are good"))
}

/// Campaigns until it is elected.
async fn elected(leadership: &EtcdLeadership) -> Arc<dyn Term> {
    tokio::time::timeout(PATIENCE, leadership.lead()).await.expect("elected in time").expect("elected")
}

fn now() -> Moment {
    SystemClock::new().expect("this host has a boot id").now()
}

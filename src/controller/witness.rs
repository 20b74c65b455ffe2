//! Knocks at the primary's door again and again, beside the loop and never in its way.
//!
//! Judges nothing: what was seen goes into the view.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::event_loop::{Controller, Event};
use crate::domain::clock::Moment;
use crate::domain::ids::Address;
use crate::domain::policy::Policy;
use crate::domain::view::View;
use crate::domain::witness::{Sighting, probe_interval, probe_timeout};
use crate::ports::{Clock, PrimaryProbe};

/// Whose door, and how urgently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Door {
    pub address: Address,
    pub is_agent_silent: bool,
}

/// One knock.
pub(super) struct Knock {
    pub address: Address,
    pub asked_at: Moment,
    pub result: Result<(), String>,
}

/// Knocks until nobody tells it where any more.
pub(super) async fn watch(
    probe: Arc<dyn PrimaryProbe>,
    clock: Arc<dyn Clock>,
    policy: Policy,
    mut doors: watch::Receiver<Option<Door>>,
    events: mpsc::Sender<Event>,
) {
    loop {
        let door = doors.borrow_and_update().clone();
        let Some(door) = door else {
            match doors.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let asked_at = clock.now();
        let result = probe.probe(&door.address, probe_timeout(&policy)).await;
        let knock = Knock { address: door.address.clone(), asked_at, result };
        if events.send(Event::Knocked(knock)).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            changed = doors.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(probe_interval(&policy, door.is_agent_silent)) => {}
        }
    }
}

impl Controller {
    /// Says where to knock.
    pub(super) fn show_door(&self, view: &View) {
        let door = view.record.as_ref().map(|record| Door {
            address: record.holder_address.clone(),
            is_agent_silent: view.report(&record.holder).is_none(),
        });
        self.doors.send_if_modified(|known| {
            let is_new = *known != door;
            *known = door;
            is_new
        });
    }

    /// Takes in what was seen.
    pub(super) fn knocked(&mut self, knock: Knock) {
        let before = self.state.sighting.take().filter(|before| before.address == knock.address);
        let answered_at = match &knock.result {
            Ok(()) => Some(knock.asked_at),
            Err(_) => before.and_then(|before| before.answered_at),
        };
        self.state.sighting = Some(Sighting {
            address: knock.address,
            asked_at: knock.asked_at,
            problem: knock.result.err(),
            answered_at,
        });
    }
}

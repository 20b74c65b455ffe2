//! What is kept in order beside the write port's target: reads, applications, drift; and the write that a client would make.
//!
//! Nothing here holds `turn`: a redirect never waits for it.

use super::*;

/// Every so many looks HAProxy is compared with what is wanted: once a second.
const LOOKS_PER_INSPECTION: u32 = 4;

impl ProxyRole {
    /// Reads and applications as they are to be now.
    pub(super) fn arrangement(&self) -> Arrangement {
        let state = self.state();
        let backends = state.record.as_ref().and_then(|record| record.backends.as_ref());
        judge::arrangement(&self.parts.site, &self.parts.section.nodes, backends)
    }

    /// Returns when HAProxy is to be told of reads and applications.
    pub(in crate::agent::proxy) async fn rearranged(&self) {
        self.rearrange.notified().await;
    }

    /// Tells HAProxy what changed, and looks from time to time whether somebody else changed something.
    pub(super) async fn keep_arranged(&self) {
        let wanted = self.arrangement();
        let (is_arranged, is_inspection) = {
            let mut state = self.state();
            state.looks = state.looks.wrapping_add(1);
            (state.arranged.as_ref() == Some(&wanted), state.looks.is_multiple_of(LOOKS_PER_INSPECTION))
        };
        if !is_arranged {
            self.arrange(wanted.clone()).await;
        }
        if is_inspection || self.state().traffic.is_none() {
            self.inspect(wanted).await;
        }
    }

    async fn arrange(&self, wanted: Arrangement) {
        self.order();
        let outcome = self.router().arrange(&wanted).await;
        let problem = outcome.err().map(|error| error.to_string());
        if problem.is_none() {
            self.state().arranged = Some(wanted);
        }
        self.note(|problems| problems.backends = problem);
        self.unsettle();
    }

    async fn inspect(&self, wanted: Arrangement) {
        // Until the file has followed, a difference is only work under way.
        let was_settling = self.state().is_settling();
        let Ok(seen) = self.router().inspect().await else {
            // The next look says that HAProxy does not answer.
            return;
        };
        let (drift, is_changed) = {
            let mut state = self.state();
            let before = state.traffic.clone();
            let mut traffic = before.clone().unwrap_or_default();
            let is_settling = was_settling || state.is_settling();
            let drift = if is_settling { Vec::new() } else { seen.drift };
            if !drift.is_empty() && drift != traffic.drift {
                traffic.repairs += 1;
                traffic.last_repair = Some(drift.join("; "));
            }
            traffic.drift = drift.clone();
            traffic.haproxy_version = seen.version;
            traffic.active_site = seen.active_site;
            traffic.is_settled = seen.is_settled && !is_settling;
            traffic.applications = seen.applications;
            let is_changed = before.as_ref() != Some(&traffic);
            state.traffic = Some(traffic);
            (drift, is_changed)
        };
        self.note(|problems| problems.version = seen.problem);
        if is_changed {
            self.changed.notify_one();
        }
        if !drift.is_empty() {
            tracing::warn!(drift = drift.join("; "), "HAProxy is not as it should be: putting it right");
            self.metrics.drift_repairs_total.inc();
            self.arrange(wanted).await;
        }
    }

    /// One write through the write port. Says at once when the way opens or closes.
    pub(in crate::agent::proxy) async fn check_path(&self, timeout: Duration) {
        let Some(verifier) = &self.parts.verifier else { return };
        let Some(target) = self.leads_to() else {
            self.state().path = None;
            return;
        };
        let began = self.parts.clock.now();
        let result = verifier.try_write(&target, timeout).await;
        let now = self.parts.clock.now();
        // A write that was under way while the port was moved says nothing of either primary.
        if self.leads_to().as_ref() != Some(&target) {
            return;
        }
        let mut state = self.state();
        if state.path.as_ref().is_none_or(|(known, _)| *known != target) {
            state.path = Some((target, ProbeHistory::default()));
        }
        let changed = state.path.as_mut().is_some_and(|(_, history)| history.record(&result, began, now));
        drop(state);
        if changed {
            if let Err(problem) = result {
                tracing::warn!(problem, "a client's write does not get through");
            }
            self.changed.notify_one();
        }
    }
}

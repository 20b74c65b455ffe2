//! The order of a hold: PgBouncer first, then HAProxy.
//!
//! How PgBouncer is paused, and for how long, is not decided here.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// How many pauses are ordered for a hold that HAProxy does not know of yet: they are not to be taken back because it leads on.
#[derive(Debug, Default)]
pub(super) struct Ahead(AtomicU32);

/// One of them, until it is dropped: also where whoever asked hangs up.
pub(super) struct AheadGuard<'a>(&'a AtomicU32);

impl Ahead {
    pub(super) fn begin(&self) -> AheadGuard<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        AheadGuard(&self.0)
    }

    pub(super) fn is_any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

impl Drop for AheadGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl ProxyRole {
    /// Pauses PgBouncer before HAProxy holds. The other way round the hold keeps PgBouncer's next login waiting, the pause ends that
    /// login, and PgBouncer takes this for a server that is down: for `server_login_retry` after the move nobody is served.
    /// Nothing is locked meanwhile: a redirect that comes now overtakes this.
    pub(super) async fn pause_ahead(&self, assignment: &ProxyAssignment) -> Option<AheadGuard<'_>> {
        self.parts.pooler.as_ref()?;
        let known = self.state().record.clone();
        let is_hold = |record: &ProxyRecord| judge::wanted(record) == Route::Holding;
        let record = judge::judge(&self.parts.cluster, known.as_ref(), assignment).ok()?;
        if !is_hold(&record) || known.as_ref().is_some_and(is_hold) {
            return None;
        }
        let ahead = self.pausing.begin();
        self.pooling.want(true);
        self.pooling.done().await;
        Some(ahead)
    }
}

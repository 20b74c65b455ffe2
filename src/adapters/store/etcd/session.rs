//! One candidacy: a lease of etcd, the key that hangs on it, and the moment until which both certainly live.
//!
//! Invariant: `leads_until` counts from the moment that the last confirmed keep-alive was *sent*, and a keep-alive is confirmed
//! only when a linearizable read has shown the key afterwards: an etcd leader that was cut off from the others still answers
//! keep-alives for a moment, but no such read.

use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Error, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::watch;

use super::connection::{CallError, Connection};
use super::keys::Keys;
use crate::domain::clock::Moment;
use crate::ports::Clock;
use crate::ports::leadership::Leader;
use crate::ports::store::StoreError;

/// Keep-alives in one time to live. So many that a lost one does not shorten any lease of PostgreSQL.
const KEEP_ALIVES: u32 = 8;
/// A farewell is not worth waiting for longer; the lease ends by itself.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// A candidacy that lives, or has ended.
pub(super) struct Session {
    connection: Arc<Connection>,
    clock: Arc<dyn Clock>,
    lease: i64,
    key: String,
    revision: i64,
    time_to_live: Duration,
    standing: watch::Sender<Standing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// Lives until then, whatever happens to the connection.
    Until(Moment),
    /// Counts no more.
    Ended(String),
}

/// What one keep-alive brought.
enum Round {
    /// Confirmed; it was sent then.
    Alive(Moment),
    /// etcd forgot the lease, or somebody removed the key.
    Gone(&'static str),
}

impl Session {
    /// Takes a lease, hangs a key on it, and keeps both alive until the last reference is dropped.
    pub async fn open(
        connection: Arc<Connection>,
        keys: &Keys,
        clock: Arc<dyn Clock>,
        candidate: &Leader,
        time_to_live: Duration,
    ) -> Result<Arc<Self>, StoreError> {
        const ACTION: &str = "stand for the leadership";
        let seconds = i64::try_from(time_to_live.as_secs()).unwrap_or(i64::MAX);
        let sent = clock.now();
        let granted =
            connection.read(ACTION, |mut client| async move { client.lease_grant(seconds, None).await }).await?;
        let lease = granted.id();
        // etcd may grant longer than it was asked for; what the other controllers count with is what was configured.
        let confirmed = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0)).min(time_to_live);
        let key = keys.leader(lease);
        let value = serde_json::to_vec(candidate)
            .map_err(|error| connection.failed(ACTION, format!("the own name has no JSON form: {error}")))?;
        let transaction = Txn::new()
            .when(vec![Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then(vec![TxnOp::put(key.as_str(), value, Some(PutOptions::new().with_lease(lease)))])
            .or_else(vec![TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()))]);
        let answer = connection
            .write(ACTION, |mut client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        let revision = if answer.succeeded() {
            answer.header().map(|header| header.revision())
        } else {
            // A former try had landed.
            answer.op_responses().into_iter().find_map(|response| match response {
                TxnOpResponse::Get(found) => found.kvs().first().map(|pair| pair.create_revision()),
                _ => None,
            })
        };
        let revision = revision.ok_or_else(|| connection.failed(ACTION, "etcd did not say what it wrote"))?;
        let (standing, _) = watch::channel(Standing::Until(sent.plus(confirmed)));
        let session = Arc::new(Self { connection, clock, lease, key, revision, time_to_live: confirmed, standing });
        tokio::spawn(keep_alive(Arc::downgrade(&session)));
        Ok(session)
    }

    /// The candidate's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The revision that created it: no other key ever has the same.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The condition of every write.
    pub fn is_ours(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.revision)
    }

    /// The moment until which nobody else can lead; long ago if the session has ended.
    pub fn lives_until(&self) -> Moment {
        match &*self.standing.borrow() {
            Standing::Until(until) => *until,
            Standing::Ended(_) => Moment::default(),
        }
    }

    /// Ends it, for whatever reason; the first one counts.
    pub fn end(&self, reason: &str) {
        self.standing.send_if_modified(|standing| {
            let lives = matches!(standing, Standing::Until(_));
            if lives {
                tracing::warn!(lease = format!("{:x}", self.lease), reason, "the session with etcd has ended");
                *standing = Standing::Ended(reason.to_owned());
            }
            lives
        });
    }

    /// Returns the reason once it has ended.
    pub async fn ended(&self) -> String {
        let mut standing = self.standing.subscribe();
        loop {
            let until = match &*standing.borrow_and_update() {
                Standing::Ended(reason) => return reason.clone(),
                Standing::Until(until) => *until,
            };
            let left = until.since(self.clock.now());
            if left.is_zero() {
                self.end("no keep-alive was confirmed within its time to live");
                continue;
            }
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return "it was closed".to_owned() },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Gives the lease back, and with it the key.
    pub async fn resign(&self) {
        self.end("resigned");
        farewell(&self.connection, self.lease).await;
    }

    async fn round(&self) -> Result<Round, CallError> {
        let interval = self.time_to_live / KEEP_ALIVES;
        let within = self.lives_until().since(self.clock.now()).max(interval);
        let answer = self
            .connection
            .call(within, interval.max(Duration::from_millis(250)), |mut client| {
                let (lease, key) = (self.lease, self.key.clone());
                let sent = self.clock.now();
                async move {
                    match client.lease_keep_alive(lease).await {
                        Ok(_) => {}
                        Err(Error::LeaseKeepAliveError(_)) => return Ok(None),
                        Err(error) => return Err(error),
                    }
                    let found = client.get(key, Some(GetOptions::new().with_keys_only())).await?;
                    Ok(Some((sent, found.kvs().first().map(|pair| pair.create_revision()))))
                }
            })
            .await;
        match answer {
            Ok(Some((sent, Some(revision)))) if revision == self.revision => Ok(Round::Alive(sent)),
            Ok(Some(_)) => Ok(Round::Gone("its leader key is gone")),
            Ok(None) => Ok(Round::Gone("etcd does not know its lease any more")),
            Err(error) if error.is_not_found => Ok(Round::Gone("etcd does not know its lease any more")),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // So that nobody waits for the time to live of a session that is not used any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (connection, lease) = (self.connection.clone(), self.lease);
            runtime.spawn(async move { farewell(&connection, lease).await });
        }
    }
}

async fn farewell(connection: &Connection, lease: i64) {
    let revoked = connection
        .call(FAREWELL_TIMEOUT, FAREWELL_TIMEOUT, |mut client| async move { client.lease_revoke(lease).await })
        .await;
    if let Err(error) = revoked
        && !error.is_not_found
    {
        tracing::debug!(problem = error.problem, "the lease was not given back; it ends by itself");
    }
}

async fn keep_alive(session: Weak<Session>) {
    loop {
        let interval = {
            let Some(session) = session.upgrade() else { return };
            if session.lives_until().since(session.clock.now()).is_zero() {
                return session.end("no keep-alive was confirmed within its time to live");
            }
            match session.round().await {
                Ok(Round::Alive(sent)) => {
                    let until = sent.plus(session.time_to_live);
                    session.standing.send_if_modified(|standing| match standing {
                        // A process that was paused finds its time over, whatever etcd answered before.
                        Standing::Until(former) if until > *former => {
                            *former = until;
                            true
                        }
                        _ => false,
                    });
                }
                Ok(Round::Gone(why)) => return session.end(why),
                Err(error) => tracing::warn!(problem = error.problem, "keep-alive not confirmed by etcd"),
            }
            session.time_to_live / KEEP_ALIVES
        };
        tokio::time::sleep(interval).await;
    }
}

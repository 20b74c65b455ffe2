//! The election: of all candidates' keys the oldest leads, as everywhere in etcd's own clients (`etcdctl elect` shows it).
//!
//! Who leads is observed all the time, by watch and by question, also by those who do not stand.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, SortOrder, SortTarget, WatchOptions, WatchStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::EtcdStore;
use super::connection::{Connection, EtcdSettings};
use super::keys::Keys;
use super::session::Session;
use super::write::Writer;
use crate::domain::clock::Moment;
use crate::ports::Clock;
use crate::ports::leadership::{Leader, Leadership, Term};
use crate::ports::store::{Store, StoreError};

/// Questions about who leads in one time to live, for where a watch has silently gone dead.
const LOOKS: u32 = 4;
/// How long beginning a watch may take.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1);

/// The election of controllers in etcd.
pub struct EtcdLeadership {
    connection: Arc<Connection>,
    keys: Keys,
    clock: Arc<dyn Clock>,
    candidate: Leader,
    time_to_live: Duration,
    seen: watch::Receiver<Seen>,
    look: Arc<Notify>,
    observer: JoinHandle<()>,
}

/// What was seen of the election, and when.
#[derive(Debug, Clone, Default)]
struct Seen {
    oldest: Option<Candidate>,
    at: Option<Moment>,
}

#[derive(Debug, Clone)]
struct Candidate {
    key: String,
    revision: i64,
    leader: Leader,
}

impl EtcdLeadership {
    /// Observes the election from now on; stands only in [`Leadership::lead`]. Needs a runtime.
    pub fn new(
        settings: &EtcdSettings,
        candidate: Leader,
        time_to_live: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        let connection = Arc::new(Connection::new(settings)?);
        let keys = Keys::new(&settings.prefix);
        let (sender, seen) = watch::channel(Seen::default());
        let look = Arc::new(Notify::new());
        let observer = Observer {
            connection: connection.clone(),
            folder: keys.leaders(),
            clock: clock.clone(),
            pause: time_to_live / LOOKS,
            look: look.clone(),
            sender,
        };
        let observer = tokio::spawn(observer.run());
        Ok(Self { connection, keys, clock, candidate, time_to_live, seen, look, observer })
    }

    /// Who leads, asked now; `None` if nobody does.
    pub async fn observe(&self, within: Duration) -> Result<Option<Leader>, StoreError> {
        let mut seen = self.seen.clone();
        seen.borrow_and_update();
        self.look.notify_one();
        let answer = timeout(within, seen.wait_for(|seen| seen.at.is_some())).await;
        match answer {
            Ok(Ok(seen)) => Ok(seen.oldest.as_ref().map(|candidate| candidate.leader.clone())),
            _ => Err(self.connection.failed("ask who leads", format!("no answer within {within:?}"))),
        }
    }
}

impl Drop for EtcdLeadership {
    fn drop(&mut self) {
        self.observer.abort();
    }
}

#[async_trait]
impl Leadership for EtcdLeadership {
    async fn lead(&self) -> Result<Arc<dyn Term>, StoreError> {
        let session =
            Session::open(self.connection.clone(), &self.keys, self.clock.clone(), &self.candidate, self.time_to_live)
                .await?;
        let mut seen = self.seen.clone();
        self.look.notify_one();
        let is_ours = |seen: &Seen| {
            seen.oldest
                .as_ref()
                .is_some_and(|oldest| oldest.key == session.key() && oldest.revision == session.revision())
        };
        tokio::select! {
            won = seen.wait_for(is_ours) => if won.is_err() {
                return Err(self.connection.failed("stand for the leadership", "the election is not observed any more"));
            },
            reason = session.ended() => {
                return Err(self.connection.failed("stand for the leadership", reason));
            }
        }
        // An old sight is as good as a new one: once the oldest, a key is the oldest for as long as it lives.
        let store = EtcdStore {
            connection: self.connection.clone(),
            keys: self.keys.clone(),
            writer: Some(Writer::new(session.clone())),
        };
        let store = Arc::new(store);
        store.claim_layout(store.writer("open")?).await?;
        Ok(Arc::new(EtcdTerm { session, store }))
    }

    fn leader(&self) -> Option<Leader> {
        let seen = self.seen.borrow();
        let at = seen.at?;
        let is_fresh = self.clock.now().since(at) <= self.time_to_live;
        seen.oldest.as_ref().filter(|_| is_fresh).map(|candidate| candidate.leader.clone())
    }
}

struct EtcdTerm {
    session: Arc<Session>,
    store: Arc<EtcdStore>,
}

#[async_trait]
impl Term for EtcdTerm {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn leads_until(&self) -> Option<Moment> {
        Some(self.session.lives_until())
    }

    async fn ended(&self) {
        self.session.ended().await;
    }

    async fn resign(&self) {
        self.session.resign().await;
    }
}

/// Looks who leads.
struct Observer {
    connection: Arc<Connection>,
    folder: String,
    clock: Arc<dyn Clock>,
    pause: Duration,
    look: Arc<Notify>,
    sender: watch::Sender<Seen>,
}

impl Observer {
    async fn run(self) {
        let mut stream: Option<WatchStream> = None;
        loop {
            let at = self.clock.now();
            match self.oldest().await {
                Ok((oldest, revision)) => {
                    self.sender.send_replace(Seen { oldest, at: Some(at) });
                    if stream.is_none() {
                        stream = self.watch_from(revision + 1).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "who leads is not known");
                    stream = None;
                }
            }
            let changed = async {
                match &mut stream {
                    // The first message only says that the watch began.
                    Some(stream) => loop {
                        match stream.message().await {
                            Ok(Some(message)) if message.events().is_empty() && !message.canceled() => {}
                            Ok(Some(message)) => break !message.canceled(),
                            _ => break false,
                        }
                    },
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                goes_on = changed => goes_on,
                () = tokio::time::sleep(self.pause) => true,
                () = self.look.notified() => true,
            };
            if !goes_on {
                stream = None;
            }
        }
    }

    /// The oldest candidate, and the revision at which it was.
    async fn oldest(&self) -> Result<(Option<Candidate>, i64), StoreError> {
        let options = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
        let found = self
            .connection
            .read("ask who leads", |mut client| {
                let (folder, options) = (self.folder.clone(), options.clone());
                async move { client.get(folder, Some(options)).await }
            })
            .await?;
        let revision = found.header().map_or(0, |header| header.revision());
        let oldest = found.kvs().first().map(|pair| Candidate {
            key: String::from_utf8_lossy(pair.key()).into_owned(),
            revision: pair.create_revision(),
            leader: serde_json::from_slice(pair.value()).unwrap_or_else(|_| Leader {
                // Somebody else campaigns below our prefix.
                name: String::from_utf8_lossy(pair.value()).into_owned(),
                url: String::new(),
            }),
        });
        Ok((oldest, revision))
    }

    async fn watch_from(&self, revision: i64) -> Option<WatchStream> {
        let begun = self.connection.call(WATCH_TIMEOUT, WATCH_TIMEOUT, |mut client| {
            let options = WatchOptions::new().with_prefix().with_start_revision(revision);
            let folder = self.folder.clone();
            async move { client.watch(folder, Some(options)).await }
        });
        begun.await.ok()
    }
}

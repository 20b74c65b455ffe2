//! etcd as three controllers use it: one leader key that belongs to a session with a time to live, and writes that land only while
//! the writer's own session holds that key.
//!
//! The sessions end by etcd's clock; a leader counts by its own, from before it asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use stormglass::domain::clock::Moment;
use stormglass::ports::clock::Clock;
use stormglass::ports::leadership::Leader;
use stormglass::ports::{Leadership, Sole, Store, StoreError, Term};
use tokio::sync::oneshot;

use super::controllers::ControllerPort;
use super::network::{Place, rest, travel};
use super::signal;
use super::store::StoreTrouble;
use super::world::State;

/// A session that is not kept alive ends after this.
pub const LEADERSHIP_TTL: Duration = Duration::from_secs(4);
/// How often a leader keeps its session alive, and others try to lead.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A request that takes longer has an unknown outcome.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// What a slow store adds.
const SLOW: Duration = Duration::from_millis(700);

/// Who holds the leader key.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    pub number: u64,
    pub ends_at: u64,
}

fn ttl_micros() -> u64 {
    u64::try_from(LEADERSHIP_TTL.as_micros()).expect("short")
}

impl State {
    fn current_session(&mut self) -> Option<Session> {
        let now = self.now();
        self.store.leader = self.store.leader.filter(|session| now < session.ends_at);
        self.store.leader
    }

    pub fn is_leading_session(&mut self, number: u64) -> bool {
        self.current_session().is_some_and(|session| session.number == number)
    }

    fn campaign(&mut self) -> Option<u64> {
        if self.current_session().is_some() {
            return None;
        }
        self.store.sessions += 1;
        let number = self.store.sessions;
        self.store.leader = Some(Session { number, ends_at: self.now() + ttl_micros() });
        Some(number)
    }

    fn keep_alive(&mut self, number: u64) -> bool {
        let kept = self.is_leading_session(number);
        let ends_at = self.now() + ttl_micros();
        if let Some(session) = self.store.leader.as_mut().filter(|session| session.number == number) {
            session.ends_at = ends_at;
        }
        kept
    }

    /// A new majority counts every session from its own beginning.
    pub fn majority_is_back(&mut self) {
        let ends_at = self.now() + ttl_micros();
        if let Some(session) = self.store.leader.as_mut() {
            session.ends_at = ends_at;
        }
    }
}

impl ControllerPort {
    /// One request to etcd: it may land without an answer, or after nobody waits for one any more.
    pub async fn etcd<T: Send + 'static>(
        &self,
        action: &'static str,
        act: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.process.pass().await;
        let (sender, answer) = oneshot::channel();
        let (world, here) = (self.world.clone(), Place::Controller(self.index));
        tokio::spawn(async move {
            let Some(there) = travel(&world, here, Place::Store) else { return };
            let (takes, trouble, lands) = {
                let mut state = world.lock();
                (state.random.millis(0, 4), state.store.trouble, state.random.percent(50))
            };
            rest(there + takes + if trouble == StoreTrouble::Slow { SLOW } else { Duration::ZERO }).await;
            let trouble = world.lock().store.trouble;
            if trouble == StoreTrouble::Fails || trouble == StoreTrouble::Unknown && !lands {
                return;
            }
            let done = act(&mut world.lock());
            if trouble == StoreTrouble::Unknown {
                return;
            }
            let Some(back) = travel(&world, Place::Store, here) else { return };
            rest(back).await;
            // Whoever asked may have given up.
            let _ = sender.send(done);
        });
        let began = tokio::time::Instant::now();
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        if let Ok(Err(_)) = answered {
            tokio::time::sleep_until(began + REQUEST_TIMEOUT).await;
        }
        self.process.pass().await;
        match answered {
            Ok(Ok(done)) => Ok(done),
            _ => Err(StoreError::Unknown {
                action,
                location: "etcd".to_owned(),
                problem: "no answer in time".to_owned(),
            }),
        }
    }
}

/// A controller's part in the election; a single one always leads.
pub struct Election(ControllerPort);

impl Election {
    pub fn new(port: ControllerPort) -> Self {
        Self(port)
    }
}

#[async_trait]
impl Leadership for Election {
    async fn lead(&self) -> Result<Arc<dyn Term>, StoreError> {
        let port = &self.0;
        port.process.pass().await;
        if port.world.lock().controllers.len() == 1 {
            return Ok(Arc::new(Sole::new(Arc::new(port.clone()))));
        }
        loop {
            let asked_at = port.now();
            if let Ok(Some(session)) = port.etcd("campaign", State::campaign).await {
                let port = ControllerPort { session: Some(session), ..port.clone() };
                return Ok(SessionTerm::begin(port, session, asked_at.plus(LEADERSHIP_TTL)));
            }
            let pause = port.world.lock().random.millis(300, 700);
            tokio::time::sleep(pause).await;
        }
    }

    fn leader(&self) -> Option<Leader> {
        None
    }
}

/// A term that lasts as long as its session is certainly alive.
struct SessionTerm {
    port: ControllerPort,
    session: u64,
    until: Mutex<Moment>,
    over: signal::Sender<bool>,
}

impl SessionTerm {
    fn begin(port: ControllerPort, session: u64, until: Moment) -> Arc<Self> {
        let over = signal::channel(false).0;
        let term = Arc::new(Self { port, session, until: Mutex::new(until), over });
        tokio::spawn(term.clone().keep());
        term
    }

    fn until(&self) -> Moment {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep(self: Arc<Self>) {
        let session = self.session;
        while !self.over.get() {
            let left = self.until().since(self.port.now());
            tokio::time::sleep(KEEP_ALIVE.min(left)).await;
            self.port.process.pass().await;
            let asked_at = self.port.now();
            match self.port.etcd("keep the session alive", move |state| state.keep_alive(session)).await {
                Ok(true) => {
                    let until = asked_at.plus(LEADERSHIP_TTL);
                    *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
                }
                Ok(false) => break,
                Err(_) if self.port.now() >= self.until() => break,
                Err(_) => {}
            }
        }
        self.over.send_replace(true);
    }
}

#[async_trait]
impl Term for SessionTerm {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.port.clone())
    }

    fn leads_until(&self) -> Option<Moment> {
        Some(self.until())
    }

    async fn ended(&self) {
        let mut over = self.over.subscribe();
        let _ = over.wait_for(|over| over).await;
    }

    async fn resign(&self) {
        let session = self.session;
        let given_back = self.port.etcd("resign", move |state| {
            state.store.leader = state.store.leader.filter(|current| current.number != session);
        });
        // If it does not land, the session ends by itself.
        let _ = given_back.await;
        self.over.send_replace(true);
    }
}

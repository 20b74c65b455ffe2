//! The thread that owns the connection, and the queue in front of it.
//!
//! What waits in the queue together is committed together: one flush for a swap and the events around it.
//! Each piece of work has a savepoint of its own, so that one that fails takes nothing of the others with it.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::file::{Opened, explain, release_memory};
use crate::ports::store::StoreError;

/// Pieces of work that may wait; more wait outside the queue.
const QUEUE_LENGTH: usize = 256;
/// Pieces of work in one commit at most, so that the first one need not wait for an endless row of others.
const BATCH_LENGTH: usize = 64;
/// A disk that takes longer than this for a flush is sick; what became of the call is then unknown.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// After this much quiet memory is given back, and the log is written back into the file: two more flushes that no failover should
/// wait for.
const QUIET: Duration = Duration::from_millis(500);
/// Commits after which a quiet moment is used for that.
const COMMITS_BEFORE_CHECKPOINT: u32 = 64;

/// Why a piece of work was not done: by the database, or by a rule of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{}", explain(.0))]
    Database(rusqlite::Error),
    #[error("{0}")]
    Rule(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// A commit that failed.
struct CommitFailure {
    problem: String,
    /// The disk failed in the act: the commit may be found in the log after a crash.
    perhaps_written: bool,
}

impl CommitFailure {
    fn nothing_written(problem: String) -> Self {
        Self { problem, perhaps_written: false }
    }
}

/// A piece of work with its way back to the caller.
trait Work: Send {
    /// Does it; true if what it wrote shall be kept.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Has it fail without being done, or although it was.
    fn fail(&mut self, error: rusqlite::Error);
    /// Answers the caller, once the commit has an outcome.
    fn answer(self: Box<Self>, commit_failure: Option<&CommitFailure>);
}

struct Call<T, F> {
    work: Option<F>,
    result: Option<Result<T, Failure>>,
    sender: oneshot::Sender<Result<T, StoreError>>,
    action: &'static str,
    location: String,
    /// Its place in the queue.
    _place: OwnedSemaphorePermit,
}

impl<T: Send, F: FnOnce(&Connection) -> Result<T, Failure> + Send> Work for Call<T, F> {
    fn run(&mut self, connection: &Connection) -> bool {
        self.result = self.work.take().map(|work| work(connection));
        matches!(self.result, Some(Ok(_)))
    }

    fn fail(&mut self, error: rusqlite::Error) {
        self.result = Some(Err(Failure::Database(error)));
    }

    fn answer(self: Box<Self>, commit_failure: Option<&CommitFailure>) {
        let Call { result, sender, action, location, .. } = *self;
        let failed = |problem: String, location| StoreError::Failed { action, location, problem };
        let answer = match (result, commit_failure) {
            (Some(Ok(value)), None) => Ok(value),
            (Some(Err(failure)), _) => Err(failed(failure.to_string(), location)),
            (Some(Ok(_)), Some(CommitFailure { problem, perhaps_written: true })) => {
                Err(StoreError::Unknown { action, location, problem: problem.clone() })
            }
            (_, Some(CommitFailure { problem, .. })) => Err(failed(problem.clone(), location)),
            (None, None) => Err(failed("it was not begun".to_owned(), location)),
        };
        // A caller that no longer waits needs no answer.
        let _ = sender.send(answer);
    }
}

/// The way to the thread.
pub(super) struct Queue {
    /// `None` only while it is dropped.
    sender: Option<mpsc::Sender<Box<dyn Work>>>,
    places: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
    location: String,
}

impl Queue {
    pub(super) fn begin(opened: Opened, location: String) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || run(opened, &receiver))
            .map_err(|error| StoreError::Failed {
                action: "start the thread",
                location: location.clone(),
                problem: error.to_string(),
            })?;
        let places = Arc::new(Semaphore::new(QUEUE_LENGTH));
        Ok(Self { sender: Some(sender), places, thread: Some(thread), location })
    }

    /// Has `work` done in a transaction. A caller that stops waiting does not stop the work.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let failed = |problem: String| StoreError::Failed { action, location: self.location.clone(), problem };
        let unknown = |problem: String| StoreError::Unknown { action, location: self.location.clone(), problem };
        let late = || format!("no answer within {CALL_TIMEOUT:?}: look at the disk that the file is on");
        let ended = || "its thread has ended: restart the controller".to_owned();

        let queue = self.sender.as_ref().ok_or_else(|| failed(ended()))?;
        let place = match tokio::time::timeout(CALL_TIMEOUT, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(failed(ended())),
            Err(_) => return Err(failed(late())),
        };
        let (sender, receiver) = oneshot::channel();
        let location = self.location.clone();
        let call = Call { work: Some(work), result: None, sender, action, location, _place: place };
        queue.send(Box::new(call)).map_err(|_| failed(ended()))?;
        match tokio::time::timeout(CALL_TIMEOUT, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unknown(ended())),
            Err(_) => Err(unknown(late())),
        }
    }
}

impl Drop for Queue {
    /// Finishes what waits and gives the file back, so that whoever opens it next finds it free.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(location = self.location, "the store's thread panicked");
        }
    }
}

fn run(mut opened: Opened, receiver: &mpsc::Receiver<Box<dyn Work>>) {
    let mut commits: u32 = 0;
    loop {
        let first = match receiver.recv_timeout(QUIET) {
            Ok(first) => first,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if commits >= COMMITS_BEFORE_CHECKPOINT {
                    checkpoint(&opened.connection);
                    commits = 0;
                }
                if let Err(error) = release_memory(&opened.connection) {
                    tracing::debug!(%error, "the store keeps its memory until the next quiet moment");
                }
                match receiver.recv() {
                    Ok(first) => first,
                    Err(mpsc::RecvError) => return,
                }
            }
        };
        let mut batch = vec![first];
        while batch.len() < BATCH_LENGTH
            && let Ok(next) = receiver.try_recv()
        {
            batch.push(next);
        }
        commit_together(&mut opened.connection, batch);
        commits = commits.saturating_add(1);
    }
}

fn commit_together(connection: &mut Connection, mut batch: Vec<Box<dyn Work>>) {
    let failure = match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
        Err(error) => Some(CommitFailure::nothing_written(explain(&error))),
        Ok(transaction) => run_and_commit(transaction, &mut batch).err(),
    };
    for work in batch {
        work.answer(failure.as_ref());
    }
}

fn run_and_commit(mut transaction: Transaction<'_>, batch: &mut [Box<dyn Work>]) -> Result<(), CommitFailure> {
    for work in batch {
        match transaction.savepoint() {
            Ok(savepoint) => {
                if work.run(&savepoint)
                    && let Err(error) = savepoint.commit()
                {
                    work.fail(error);
                }
            }
            Err(error) => work.fail(error),
        }
        // Some errors (disk full, I/O) make SQLite undo the whole transaction. Whatever came after would commit by itself.
        if transaction.is_autocommit() {
            return Err(CommitFailure::nothing_written(
                "the disk failed under another write of the same commit; nothing was written".to_owned(),
            ));
        }
    }
    transaction.commit().map_err(|error| CommitFailure {
        problem: explain(&error),
        perhaps_written: matches!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure)),
    })
}

fn checkpoint(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        tracing::warn!(%error, "write the store's log back into its file; it is tried again later");
    }
}

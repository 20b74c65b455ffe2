//! Makes the port's errors, and bounds what may hang.

use std::fmt::Display;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::ports::postgres::PostgresError;

/// How the error begins where not even a thread can be had.
pub(super) const NO_THREAD: &str = "no thread for it";

/// What the kernel shows of a thread's name.
const THREAD_NAME_MAX: usize = 15;

pub(super) fn failed(action: &'static str, problem: impl Display) -> PostgresError {
    PostgresError::Failed { action, problem: problem.to_string() }
}

/// What the client library reports, told apart: no server, a server that is not ready, an error.
pub(super) fn from_client(action: &'static str, error: &tokio_postgres::Error) -> PostgresError {
    let Some(server) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string());
        return PostgresError::NotAccepting { action, problem: cause };
    };
    let code = server.code();
    let mut problem = server.message().to_owned();
    for more in [server.detail(), server.hint()].into_iter().flatten() {
        problem = format!("{problem}; {more}");
    }
    if is_shutting_down(code) || *code == SqlState::CANNOT_CONNECT_NOW {
        return PostgresError::NotAccepting { action, problem };
    }
    if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        problem = format!("{problem}; check superuser and superuser_password, and the local lines of pg_hba.conf");
    }
    failed(action, problem)
}

fn is_shutting_down(code: &SqlState) -> bool {
    *code == SqlState::ADMIN_SHUTDOWN || *code == SqlState::CRASH_SHUTDOWN
}

/// True if a held connection was lost, so that a new one may do better.
pub(super) fn is_lost(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(|server| is_shutting_down(server.code()))
}

/// Bounds `work`. What runs on a blocking thread goes on there; its result is no longer waited for.
pub(super) async fn within<T>(
    timeout: Duration,
    action: &'static str,
    work: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(PostgresError::NoAnswer { action, timeout }))
}

/// Runs file work on a thread of its own: one that hangs with a disk takes no thread from anybody else, least of all from a fence.
pub(super) async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, PostgresError> + Send + 'static,
) -> Result<T, PostgresError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let worker = move || {
        // Who asked may have stopped waiting.
        let _ = sender.send(work());
    };
    let name: String = action.chars().take(THREAD_NAME_MAX).collect();
    std::thread::Builder::new()
        .name(name)
        .spawn(worker)
        .map_err(|error| failed(action, format!("{NO_THREAD}: {error}; see the limits of processes and memory")))?;
    receiver.await.unwrap_or_else(|_| Err(failed(action, "the worker ended")))
}

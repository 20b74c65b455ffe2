//! Work on PostgreSQL's disk that is asked for again and again: on threads of its own, with a deadline, never two of a kind.
//!
//! A call that hangs in the kernel cannot be taken back. It keeps its lane until the disk answers, and whoever asks meanwhile is
//! told that it does not: nothing piles up, and nobody else's threads are used up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::errors::{blocking, failed};
use crate::ports::postgres::PostgresError;

/// One kind of work.
#[derive(Debug)]
pub(super) struct Lane(Arc<Semaphore>);

impl Default for Lane {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Lane {
    /// Does `work` once the work before it has ended; an error if both together take longer than `timeout`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        action: &'static str,
        work: impl FnOnce() -> Result<T, PostgresError> + Send + 'static,
    ) -> Result<T, PostgresError> {
        let turn = async {
            let permit = self.0.clone().acquire_owned().await.expect("no lane is ever closed");
            blocking(action, move || {
                let result = work();
                drop(permit);
                result
            })
            .await
        };
        let silent = || {
            let problem = format!("the disk did not answer within {timeout:?}: see what the kernel says about it");
            Err(failed(action, problem))
        };
        tokio::time::timeout(timeout, turn).await.unwrap_or_else(|_| silent())
    }
}

/// Every kind.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Is there data?
    pub presence: Lane,
    /// `pg_control`.
    pub control: Lane,
    /// The write beside the data.
    pub room: Lane,
    /// Space left.
    pub space: Lane,
    /// Memory left.
    pub memory: Lane,
    /// Files of a start.
    pub start: Lane,
    /// The managed configuration.
    pub configuration: Lane,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    /// Threads of this process that are named after `action`.
    fn threads(action: &str) -> usize {
        let name: String = action.chars().take(15).collect();
        fs::read_dir("/proc/self/task")
            .expect("readable")
            .filter_map(Result::ok)
            .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name))
            .count()
    }

    #[tokio::test]
    async fn a_hung_call_is_one_thread_however_often_it_is_asked_again() {
        // Opening a pipe that nobody writes to hangs as a stalled disk does: in the kernel, without an end.
        let directory = tempfile::tempdir().expect("temp");
        let pipe = directory.path().join("postmaster.pid");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo exists").success());
        let lane = Lane::default();
        let read = |timeout| {
            let pipe = pipe.clone();
            lane.run(timeout, "lane hangs", move || fs::read_to_string(pipe).map_err(|error| failed("read", error)))
        };
        for _ in 0..10 {
            let error = read(SHORT).await.expect_err("nobody writes");
            assert!(error.to_string().contains("did not answer"), "{error}");
        }
        assert_eq!(threads("lane hangs"), 1);
        // The disk answers again.
        let writer = pipe.clone();
        let writes = tokio::task::spawn_blocking(move || {
            fs::write(&writer, "7\n").expect("read by the call that hung");
            fs::remove_file(&writer).expect("there");
            fs::write(&writer, "8\n").expect("an ordinary file now");
        });
        writes.await.expect("written");
        assert_eq!(read(LONG).await.expect("answers"), "8\n");
        assert_eq!(lane.run(LONG, "lane goes on", || Ok(9)).await, Ok(9));
    }
}

//! Waits for the end of a process that need not be a child, by event instead of polling.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Pause between two looks where the kernel gives no descriptor (none left, or no pidfd at all).
const FALLBACK_PAUSE: Duration = Duration::from_millis(5);

/// Returns when process `pid` has ended, at once if it is gone already. A zombie has ended.
pub async fn wait_for_exit(pid: i32) {
    loop {
        match open(pid) {
            Ok(None) => return,
            Ok(Some(descriptor)) => {
                if descriptor.readable().await.is_ok() {
                    return;
                }
            }
            Err(error) => tracing::debug!(pid, %error, "no pidfd: looking again instead of waiting for the event"),
        }
        tokio::time::sleep(FALLBACK_PAUSE).await;
    }
}

/// `None`: there is no such process.
#[expect(deprecated, reason = "its successor is unsafe for types that may lend a foreign descriptor; OwnedFd cannot")]
fn open(pid: i32) -> std::io::Result<Option<AsyncFd<OwnedFd>>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => AsyncFd::with_interest(descriptor, Interest::READABLE).map(Some),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn waits_for_the_end_and_not_longer() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep exists");
        let pid = i32::try_from(child.id()).expect("a pid fits");
        let early = tokio::time::timeout(Duration::from_millis(30), wait_for_exit(pid)).await;
        assert!(early.is_err(), "the process still runs");
        child.kill().expect("own child");
        tokio::time::timeout(Duration::from_secs(10), wait_for_exit(pid)).await.expect("a zombie has ended");
        child.wait().expect("own child");
        tokio::time::timeout(Duration::from_secs(10), wait_for_exit(pid)).await.expect("a reaped process has ended");
    }
}

//! A shutdown that waits for no repository.
//!
//! PostgreSQL switches to a new WAL segment when it shuts down and waits until its archiver has brought the last one away. Clients
//! wait as long. While the stop file is there, `archive_command` ends with 255, which ends the archiver; a segment that is on its way
//! is cut off. What is left out, the next primary brings: it has the same WAL.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::errors::{blocking, failed, within};
use super::files::{remove, write_atomically};
use super::settings::Setup;
use crate::adapters::system::family;

const ACTION: &str = "suspend archiving";

/// A small file is written; a stalled disk is not waited for.
const SUSPEND_TIMEOUT: Duration = Duration::from_millis(200);

/// Between two looks at what archives.
const LOOK: Duration = Duration::from_millis(20);

/// The program of `archive_command`, as the kernel names its process.
const PROGRAM: &str = "pgbackrest";

/// Before a start: a primary archives.
pub(super) fn resume(setup: &Setup) -> io::Result<()> {
    match &setup.settings.archive_stop_file {
        Some(file) => remove(file),
        None => Ok(()),
    }
}

/// Before a shutdown. Without it the shutdown takes longer, and nothing else.
pub(super) async fn suspend(setup: &Arc<Setup>) {
    let here = setup.clone();
    let written = blocking(ACTION, move || match &here.settings.archive_stop_file {
        Some(file) => {
            write_atomically(file, "shutting down\n", here.owner).map(drop).map_err(|error| failed(ACTION, error))
        }
        None => Ok(()),
    });
    if let Err(error) = within(SUSPEND_TIMEOUT, ACTION, written).await {
        tracing::warn!(%error, "the shutdown waits until the last WAL is archived");
    }
}

/// Ends what is on its way to the repository, again and again. Never returns.
pub(super) async fn cut_short(setup: &Arc<Setup>) {
    if setup.settings.archive_stop_file.is_none() {
        return std::future::pending().await;
    }
    loop {
        let here = setup.clone();
        let cut = blocking(ACTION, move || {
            for pid in family::scan(&here.family).map_err(|error| failed(ACTION, error))? {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name.trim() == PROGRAM {
                    family::signal(&here.family, pid, Signal::KILL).map_err(|error| failed(ACTION, error))?;
                }
            }
            Ok(())
        });
        if let Err(error) = cut.await {
            tracing::debug!(%error, "what is on its way to the repository is left alone");
        }
        tokio::time::sleep(LOOK).await;
    }
}

//! Faults of the disk and of memory: limits of a control group that get tighter, bite by bite, until they are lifted.
//! The limit is there from before the fault, as in a container: one that came with it would be a step, and nothing that grows.
//!
//! What a limit is and how it is lifted is in `lab::confinement`; here is only how it shrinks.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::Advice;
use tokio::task::JoinHandle;

use super::growth::BITE;
use crate::domain::clock::Moment;
use crate::lab::clock;
use crate::lab::confinement::{Confined, Resource};

/// Writes a second that the disk begins at first: more than the lab's load needs.
const WRITES_PER_SECOND_FIRST: f64 = 500.0;
/// Memory for files that there is at first, beside what the processes hold: more than the load touches within a minute.
const SPARE_BYTES_FIRST: f64 = 32.0 * 1024.0 * 1024.0;

/// Confines, and tightens from the moment of `began` on; in a thread of its own: to take memory back may take the kernel a while.
pub(super) fn start(
    confined: Arc<Confined>,
    resource: Resource,
    data: &Path,
    grows_for: Duration,
    began: Arc<OnceLock<Moment>>,
    stop: Arc<AtomicBool>,
) -> JoinHandle<anyhow::Result<()>> {
    let data = data.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut is_first = true;
        while !stop.load(Ordering::Acquire) {
            if !confined.tighten(allowed(resource, share_passed(began.get(), clock::now(), grows_for)))? {
                break;
            }
            // What was read before belongs to nobody in the group: it is read again, by those who need it.
            if is_first && resource == Resource::Memory {
                forget_pages(&data).context("let the pages of the data go")?;
            }
            is_first = false;
            sleep(BITE);
        }
        Ok(())
    })
}

/// How much of its time a fault has had; nothing before it began.
fn share_passed(began: Option<&Moment>, now: Moment, grows_for: Duration) -> f64 {
    began.map_or(0.0, |began| now.since(*began).as_secs_f64() / grows_for.as_secs_f64())
}

/// What is allowed when `share` of the time has passed: memory shrinks evenly, as if another program took it; a disk becomes slower by
/// the same factor in each second, down to one write a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below the greatest")]
fn allowed(resource: Resource, share: f64) -> u64 {
    let left = (1.0 - share).clamp(0.0, 1.0);
    match resource {
        Resource::Memory => (SPARE_BYTES_FIRST * left) as u64,
        Resource::Writes => WRITES_PER_SECOND_FIRST.powf(left).round() as u64,
    }
}

/// Lets every page of the files below a directory go that is not dirty.
fn forget_pages(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        // A server removes files all the time.
        let Ok(entry) = entry else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            // The same is true of its directories.
            let _ = forget_pages(&entry.path());
        } else if kind.is_file()
            && let Ok(file) = fs::File::open(entry.path())
        {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).context("advise the kernel")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_only_gets_tighter_and_ends_with_next_to_nothing() {
        for (resource, last) in [(Resource::Memory, 0), (Resource::Writes, 1)] {
            let limits: Vec<u64> = (0..=60).map(|second| allowed(resource, f64::from(second) / 55.0)).collect();
            assert!(limits.windows(2).all(|pair| pair[1] <= pair[0]), "{limits:?}");
            assert!(limits[0] > 400 && limits[60] == last, "{limits:?}");
        }
    }

    #[test]
    fn nothing_gets_tighter_before_the_fault_begins() {
        let (grows_for, now) = (Duration::from_secs(50), Moment(100_000_000));
        assert_eq!(share_passed(None, now, grows_for), 0.0);
        assert_eq!(share_passed(Some(&now), now, grows_for), 0.0);
        assert_eq!(share_passed(Some(&Moment(75_000_000)), now, grows_for), 0.5);
    }

    #[test]
    fn pages_of_files_in_directories_are_let_go() {
        let temporary = tempfile::tempdir().expect("directory");
        fs::create_dir(temporary.path().join("base")).expect("made");
        fs::write(temporary.path().join("base/1"), "page").expect("written");
        forget_pages(temporary.path()).expect("let go");
        assert!(forget_pages(&temporary.path().join("missing")).is_err());
        assert_eq!(fs::read_to_string(temporary.path().join("base/1")).expect("there"), "page");
    }
}

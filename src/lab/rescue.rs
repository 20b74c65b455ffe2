//! The way out of `lab run`: whatever happens (an error, Ctrl-C, a panic, a hang), its lab is stopped and removed in time.
//!
//! Only synchronous code here: it must work while the runtime does not.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::down;
use super::place;

/// `lab run` ends within 240 s. The scenario gets this much of it; the rest is for taking the lab down.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(215);

/// Each further run of the same scenario.
const FURTHER_RUN_PATIENCE: Duration = Duration::from_secs(60);

/// After the scenario's time: the runtime hangs, the thread takes over.
const WATCHDOG_GRACE: Duration = Duration::from_secs(10);

/// The lab that a panic or the watchdog takes down; `None` once nobody needs to.
static AT_RISK: OnceLock<Mutex<Option<(PathBuf, u32)>>> = OnceLock::new();

/// A lab that does not outlive its run.
pub struct Rescue {
    patience: Duration,
}

impl Rescue {
    /// Watches over the lab that is going to be in `directory`.
    pub fn arm(directory: &Path, uid: u32, runs: u32) -> Self {
        Self::arm_for(directory, uid, SCENARIO_PATIENCE + FURTHER_RUN_PATIENCE * runs.saturating_sub(1))
    }

    /// The same, for whoever knows how long it may take.
    pub fn arm_for(directory: &Path, uid: u32, patience: Duration) -> Self {
        *at_risk().lock().unwrap_or_else(PoisonError::into_inner) = Some((directory.to_owned(), uid));
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            former(panic);
            // Under `panic = "abort"` nothing runs after this hook.
            let _ = take_down();
        }));
        let own = directory.to_owned();
        let watchdog = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            std::thread::sleep(patience + WATCHDOG_GRACE);
            if take_down_if(|directory| directory == own).is_some() {
                super::say("the lab hung and was taken down");
                std::process::exit(1);
            }
        });
        if watchdog.is_err() {
            super::say("no thread for the watchdog: a hang would have to be ended by hand");
        }
        Self { patience }
    }

    /// How long the scenario may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Takes the lab down now, or leaves it running.
    pub fn finish(self, keep: bool) -> anyhow::Result<()> {
        if keep {
            disarm();
            return Ok(());
        }
        take_down().unwrap_or(Ok(()))
    }
}

impl Drop for Rescue {
    fn drop(&mut self) {
        // After `finish` there is nothing left to do.
        let _ = take_down();
    }
}

fn at_risk() -> &'static Mutex<Option<(PathBuf, u32)>> {
    AT_RISK.get_or_init(|| Mutex::new(None))
}

fn disarm() -> Option<(PathBuf, u32)> {
    disarm_if(|_| true)
}

fn disarm_if(is_meant: impl FnOnce(&Path) -> bool) -> Option<(PathBuf, u32)> {
    // A panic may happen while another thread holds the lock only for the length of a copy.
    at_risk().lock().unwrap_or_else(PoisonError::into_inner).take_if(|(directory, _)| is_meant(directory))
}

/// `None` if there is nothing to take down.
fn take_down() -> Option<anyhow::Result<()>> {
    take_down_if(|_| true)
}

/// The same for one lab of several in a row: its watchdog outlives it, and must not take the next one for it.
fn take_down_if(is_meant: impl FnOnce(&Path) -> bool) -> Option<anyhow::Result<()>> {
    let (directory, uid) = disarm_if(is_meant)?;
    Some(if place::is_lab_of(&directory, uid) {
        down::take_down(&directory, uid).map(|_| ())
    } else {
        // It failed before there was a lab; an empty directory is all that can be left.
        let _ = std::fs::remove_dir(&directory);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_takes_down_its_own_lab_and_not_the_next_one() {
        let place = tempfile::tempdir().expect("a directory");
        let (first, second) = (place.path().join("first"), place.path().join("second"));
        std::fs::create_dir(&second).expect("made");
        *at_risk().lock().expect("no panic") = Some((second.clone(), u32::MAX));
        assert!(take_down_if(|directory| directory == first).is_none() && second.exists());
        assert!(take_down_if(|directory| directory == second).is_some_and(|down| down.is_ok()) && !second.exists());
        assert!(take_down().is_none(), "once");
    }
}

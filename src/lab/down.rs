//! Stops everything of a lab and removes it: what the manifest lists, and whatever else runs in its directory.
//!
//! Synchronous, and without memory of the process that built the lab, so that a panic hook, a watchdog and a later
//! `lab down` can all use it. Invariant: only processes of the lab's user are signalled, each by pid and start time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::bail;
use rustix::process::Signal;

use super::clock;
use super::manifest::Manifest;
use super::place;
use super::process::{self, Process, ProcessIdentity};

/// Time for PostgreSQL to end by itself, so that it removes its shared memory; then it is killed.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(3);

/// After this, what still lives cannot be killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Programs that a lab starts, itself or through its agents. Others in the directory (a shell, `less` on a log) stay.
const PROGRAMS: [&str; 14] = [
    "stormglass",
    "postgres",
    "initdb",
    "pg_ctl",
    "pg_basebackup",
    "pg_rewind",
    "pg_controldata",
    "haproxy",
    "pgbouncer",
    "prometheus",
    "prometheus-alertmanager",
    "alertmanager",
    "prometheus-postgres-exporter",
    "postgres_exporter",
];

/// Stops every process of the lab in `directory`. Returns how many there were.
pub fn stop(directory: &Path, uid: u32) -> anyhow::Result<usize> {
    let mut seen: BTreeMap<ProcessIdentity, String> = BTreeMap::new();
    let began = clock::now();
    let mut empty_scans = 0;
    while empty_scans < 2 {
        let found = processes(directory, uid);
        if found.is_empty() {
            empty_scans += 1;
            sleep(Duration::from_millis(5));
            continue;
        }
        empty_scans = 0;
        let elapsed = clock::now().since(began);
        if elapsed > PATIENCE {
            let left: Vec<String> =
                found.iter().map(|process| format!("{} (pid {})", process.program(), process.identity.pid)).collect();
            bail!(
                "these processes of the lab survive SIGKILL: {}; look at them with ps, then run lab down again",
                left.join(", ")
            );
        }
        for process in &found {
            seen.insert(process.identity, process.program());
            if process.program() != "postgres" || elapsed > POSTGRES_PATIENCE {
                process.identity.signal(Signal::KILL);
            } else if is_postmaster(process, &found) {
                process.identity.signal(Signal::QUIT);
                process.identity.signal(Signal::CONT);
            } else if process.state == 'T' {
                process.identity.signal(Signal::CONT);
            }
        }
        sleep(Duration::from_millis(20));
    }
    Ok(seen.len())
}

/// Stops the lab in `directory` and removes its files. Returns how many processes were stopped.
pub fn take_down(directory: &Path, uid: u32) -> anyhow::Result<usize> {
    if !place::is_lab_of(directory, uid) {
        bail!("there is no lab of user {} in {}", place::user_name(uid), directory.display());
    }
    let stopped = stop(directory, uid)?;
    place::remove(directory, uid)?;
    Ok(stopped)
}

/// Takes down what dead `lab run`s of this user left behind. Returns the directories.
pub fn sweep(uid: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place::temporary_directory()) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(place::RUN_PREFIX))
        .map(|entry| entry.path())
        .filter(|directory| is_abandoned(directory, uid))
        .filter(|directory| take_down(directory, uid).is_ok())
        .collect()
}

fn is_abandoned(directory: &Path, uid: u32) -> bool {
    place::is_lab_of(directory, uid)
        && Manifest::read(directory)
            .ok()
            .flatten()
            .is_some_and(|manifest| manifest.runner.is_some_and(|runner| !runner.is_alive()))
}

/// Every process of the lab: listed ones that still are what was listed, and those found by where they work.
fn processes(directory: &Path, uid: u32) -> Vec<Process> {
    let listed: Vec<ProcessIdentity> = Manifest::read(directory)
        .ok()
        .flatten()
        .map(|manifest| manifest.processes.iter().filter_map(|entry| entry.identity).collect())
        .unwrap_or_default();
    let spared = own_line();
    process::all_of(uid)
        .into_iter()
        .filter(|process| !spared.contains(&process.identity.pid))
        .filter(|process| {
            listed.contains(&process.identity)
                || (PROGRAMS.contains(&process.program().as_str()) && process.belongs_to(directory))
        })
        .collect()
}

fn is_postmaster(process: &Process, family: &[Process]) -> bool {
    !family.iter().any(|other| other.identity.pid == process.parent && other.program() == "postgres")
}

/// This process and those it descends from.
fn own_line() -> Vec<u32> {
    let mut line = vec![std::process::id()];
    while let Some(process) = line.last().and_then(|pid| Process::read(*pid)) {
        if process.parent <= 1 || line.contains(&process.parent) {
            break;
        }
        line.push(process.parent);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::lab::layout::Layout;
    use crate::lab::manifest::ProcessEntry;
    use crate::lab::random::Random;

    fn sleeper(directory: &Path) -> std::process::Child {
        Command::new("sleep").arg("600").current_dir(directory).stdin(Stdio::null()).spawn().expect("start sleep")
    }

    #[test]
    fn down_stops_what_is_listed_and_spares_what_merely_stands_there() {
        let temporary = tempfile::tempdir().expect("directory");
        let directory = temporary.path().join("lab");
        fs::create_dir(&directory).expect("made");
        let uid = rustix::process::getuid().as_raw();
        let (mut listed, mut bystander, mut recycled) = (sleeper(&directory), sleeper(&directory), sleeper(&directory));

        let mut manifest = Manifest::new(Layout::find(&directory, &mut Random::new(1)).expect("layout"), uid);
        let mut list = |identity| {
            manifest.processes.push(ProcessEntry {
                name: "sleep".into(),
                command: Vec::new(),
                log: "/dev/null".into(),
                identity,
            });
        };
        list(None);
        list(ProcessIdentity::of(listed.id()));
        let other = ProcessIdentity::of(recycled.id()).expect("identity");
        list(Some(ProcessIdentity { started_ticks: other.started_ticks + 1, ..other }));
        manifest.write().expect("written");

        assert_eq!(take_down(&directory, uid).expect("down"), 1);
        assert!(!listed.wait().expect("reaped").success());
        assert!(bystander.try_wait().expect("asked").is_none(), "a bystander was killed");
        assert!(recycled.try_wait().expect("asked").is_none(), "a recycled pid was killed");
        assert!(!directory.exists());
        for mut child in [bystander, recycled] {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
        assert!(take_down(&directory, uid).is_err(), "there is none any more");
    }

    #[test]
    fn a_program_of_the_lab_that_no_manifest_lists_is_found_by_its_directory() {
        let temporary = tempfile::tempdir().expect("directory");
        let directory = temporary.path().join("lab");
        fs::create_dir(&directory).expect("made");
        let uid = rustix::process::getuid().as_raw();
        Manifest::new(Layout::find(&directory, &mut Random::new(2)).expect("layout"), uid).write().expect("written");
        // A program under the name of one that agents start.
        let program = directory.join("haproxy");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut child = Command::new(&program).arg("600").current_dir("/").spawn().expect("start");
        assert_eq!(take_down(&directory, uid).expect("down"), 1);
        assert!(!child.wait().expect("reaped").success());
    }
}

//! All processes of one PostgreSQL: found by effective user and working directory, and killed until none can run again.
//!
//! A killed postmaster leaves backends that still commit, so a fence is about the whole family. Synchronous, reads `/proc`
//! only and sends signals only: a stalled disk delays nothing, and the guard process can use it as it is.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::clock::boot_time;
use crate::ports::agent::KillFamily;

/// Pause between two scans. A scan of a busy host costs one or two milliseconds itself.
const SCAN_PAUSE: Duration = Duration::from_millis(1);

/// What the kernel appends to the name of a directory that was removed or replaced.
const DELETED_SUFFIX: &[u8] = b" (deleted)";

/// What tells the processes of one PostgreSQL from all others.
///
/// Every process of PostgreSQL works in its data directory, and so do the programs that it starts (`archive_command`).
/// A shell of the same user in that directory counts too: rather kill a shell than overlook a backend.
///
/// A directory that is renamed, or whose filesystem is detached, under a running PostgreSQL takes the path along and not the
/// processes: they go on, and commit. So the directory that members were found in by its path is known by its inode from then on.
/// Clones share what they learn.
#[derive(Debug, Clone)]
pub struct Family {
    user: u32,
    data_directory: PathBuf,
    home: Arc<Mutex<Option<Inode>>>,
}

/// Device and number.
type Inode = (u32, u32, u64);

/// Processes that were still able to run when the time was over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("processes of the PostgreSQL in {} are not proven gone after SIGKILL: {processes:?}", data_directory.display())]
pub struct Left {
    /// Their process ids; empty if `/proc` could not be read.
    pub processes: Vec<i32>,
    /// The data directory they work in.
    pub data_directory: PathBuf,
}

impl Family {
    /// The family of the PostgreSQL whose processes run as `user` (a uid) in `data_directory`, a canonical path.
    pub fn new(user: u32, data_directory: PathBuf) -> Self {
        Self { user, data_directory, home: Arc::default() }
    }

    /// Resolves `data_directory` and takes its owner as the user, as PostgreSQL itself insists on.
    pub fn of_directory(data_directory: &Path) -> io::Result<Self> {
        let canonical = fs::canonicalize(data_directory)?;
        Ok(Self::new(fs::metadata(&canonical)?.uid(), canonical))
    }

    /// The canonical data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// True if process `pid` belongs to the family and may run again.
    pub fn contains(&self, pid: i32) -> bool {
        // The caller itself may stand in the data directory; killing it would end the fence half-way.
        if u32::try_from(pid) == Ok(std::process::id()) {
            return false;
        }
        let process = PathBuf::from(format!("/proc/{pid}"));
        // A zombie has no working directory any more, so it ends here: it is gone.
        let Ok(directory) = fs::read_link(process.join("cwd")) else { return false };
        let is_here = self.is_own_directory(&directory);
        let home = self.home();
        if !is_here && home.is_none() {
            return false;
        }
        let inode = inode_of(&process.join("cwd"));
        if !is_here && (inode.is_none() || inode != home) {
            return false;
        }
        let is_member = match fs::read_to_string(process.join("status")) {
            Ok(text) => {
                let status = Status::parse(&text);
                status.effective_user == Some(self.user) && !status.can_never_run_again()
            }
            Err(error) => !is_gone(&error),
        };
        if is_member && is_here {
            *self.home.lock().unwrap_or_else(PoisonError::into_inner) = inode;
        }
        is_member
    }

    fn home(&self) -> Option<Inode> {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody is left: the number may be given to a stranger's directory from now on.
    fn forget_home(&self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_own_directory(&self, directory: &Path) -> bool {
        let found = directory.as_os_str().as_bytes();
        let own = self.data_directory.as_os_str().as_bytes();
        found.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest == DELETED_SUFFIX)
    }
}

/// What a working directory is, whatever it is called now. The kernel has it in memory, so no disk is asked.
fn inode_of(link: &Path) -> Option<Inode> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, link, flags, StatxFlags::INO).ok()?;
    Some((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// What `/proc/PID/status` says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    state: Option<char>,
    effective_user: Option<u32>,
    pending: u64,
}

impl Status {
    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "State" => status.state = value.chars().next(),
                "Uid" => status.effective_user = value.split_whitespace().nth(1).and_then(|uid| uid.parse().ok()),
                "SigPnd" | "ShdPnd" => status.pending |= u64::from_str_radix(value, 16).unwrap_or_default(),
                _ => {}
            }
        }
        status
    }

    fn is_pending(&self, signal: Signal) -> bool {
        self.pending & (1 << (signal.as_raw() - 1)) != 0
    }

    /// A zombie, or in uninterruptible sleep with SIGKILL pending: the kernel ends it before it returns to its own code.
    fn can_never_run_again(&self) -> bool {
        match self.state {
            Some('Z' | 'X' | 'x') => true,
            Some('D') => self.is_pending(Signal::KILL),
            _ => false,
        }
    }
}

/// True if the process ended while it was looked at. Any other error (no file descriptor left) proves nothing.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Processes of the family that may run (again). An unreadable `/proc` (no file descriptor left) is an error and never an
/// empty family: that would confirm a fence that did not happen.
pub fn scan(family: &Family) -> io::Result<Vec<i32>> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if family.contains(pid) {
            members.push(pid);
        }
    }
    Ok(members)
}

impl KillFamily for Family {
    fn kill_family(&self, timeout: Duration) -> Result<Duration, String> {
        kill_until_gone(self, timeout).map_err(|left| left.to_string())
    }

    fn look(&self) {
        if let Err(error) = scan(self) {
            tracing::warn!(%error, "cannot look for PostgreSQL's processes");
        }
    }
}

/// SIGKILL to the family until two scans in a row find nobody. Returns how long it took.
///
/// Two scans, because a process forked during the first may have got a number that the first had passed already.
pub fn kill_until_gone(family: &Family, timeout: Duration) -> Result<Duration, Left> {
    let begin = boot_time();
    let mut was_empty = false;
    loop {
        let members = scan(family);
        let is_empty = members.as_ref().is_ok_and(Vec::is_empty);
        if is_empty && was_empty {
            family.forget_home();
            return Ok(boot_time().saturating_sub(begin));
        }
        was_empty = is_empty;
        let members = members.unwrap_or_default();
        for pid in &members {
            // A failure shows in the next scan.
            let _ = signal(family, *pid, Signal::KILL);
        }
        if boot_time().saturating_sub(begin) >= timeout && !is_empty {
            return Err(Left { processes: members, data_directory: family.data_directory.clone() });
        }
        std::thread::sleep(SCAN_PAUSE);
    }
}

/// Sends `signal` to `pid` if it belongs to the family. Looks again after it holds the process by a descriptor, so that a
/// number that was used again meanwhile hits no stranger. False: there is no such process of the family.
pub fn signal(family: &Family, pid: i32, signal: Signal) -> io::Result<bool> {
    let Some(raw) = Pid::from_raw(pid) else { return Ok(false) };
    let descriptor = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !family.contains(pid) {
        return Ok(false);
    }
    match pidfd_send_signal(&descriptor, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// True if process `pid` sleeps with no signal `signal` waiting for it: whatever the signal asked for has been seen to.
pub fn has_taken(pid: i32, signal: Signal) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
        let status = Status::parse(&text);
        status.state == Some('S') && !status.is_pending(signal)
    })
}

/// Postmasters among `members`, from the process table alone: run `postgres`, are no child of another member, and have not
/// renamed themselves as their children do. None among members means orphans.
pub fn postmasters(members: &[i32]) -> Vec<i32> {
    members.iter().copied().filter(|pid| is_postmaster(*pid, members)).collect()
}

fn is_postmaster(pid: i32, members: &[i32]) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let (Ok(command), Ok(status)) = (fs::read(process.join("cmdline")), fs::read_to_string(process.join("status")))
    else {
        return false;
    };
    let mut arguments = command.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let runs_postgres = matches!(program.rsplit(|byte| *byte == b'/').next(), Some(b"postgres" | b"postmaster"));
    let is_single_user = arguments.next() == Some(b"--single");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<i32>().ok());
    runs_postgres && !is_single_user && parent.is_some_and(|parent| !members.contains(&parent))
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;

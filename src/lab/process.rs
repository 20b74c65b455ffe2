//! Processes as /proc shows them. A process is its pid *and* its start time, so that a recycled pid is never signalled.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Identity of a process for as long as the host is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number, which the kernel gives out again.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to its start.
    pub started_ticks: u64,
}

/// What the lab wants to know of a process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Who it is.
    pub identity: ProcessIdentity,
    /// Its parent's number.
    pub parent: u32,
    /// Whose it is.
    pub uid: u32,
    /// Cut to 15 bytes by the kernel.
    pub name: String,
    /// `R`, `S`, `D`, `T` (stopped), `Z` (zombie)…
    pub state: char,
    /// The program; `None` where the kernel does not tell.
    pub executable: Option<PathBuf>,
    /// Its working directory; `None` where the kernel does not tell.
    pub working_directory: Option<PathBuf>,
    /// Its arguments, the program first.
    pub arguments: Vec<String>,
}

impl ProcessIdentity {
    /// The identity of process `pid`, if there is one.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, started_ticks: stat.started_ticks })
    }

    /// True while it can still do something, or still holds its sockets. A zombie can and does not, unless some of its threads are
    /// still on their way out: the first one is a zombie before the others are gone.
    pub fn is_alive(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|text| parse_stat(&text))
            .is_some_and(|stat| stat.started_ticks == self.started_ticks && (stat.state != 'Z' || self.has_threads()))
    }

    fn has_threads(self) -> bool {
        fs::read_dir(format!("/proc/{}/task", self.pid)).is_ok_and(|threads| threads.count() > 1)
    }

    /// How much processor time it has used, in seconds; `None` if it is gone.
    pub fn processor_seconds(self) -> Option<f64> {
        let stat = parse_stat(&fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?)?;
        let is_it = stat.started_ticks == self.started_ticks;
        is_it.then(|| stat.used_ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Sends `signal` to exactly this process. False if it is gone, or if the pid belongs to another one by now.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return false;
        };
        // The descriptor pins the process; the start time is compared after that, so that nothing can slip in between.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        self.is_alive() && pidfd_send_signal(&descriptor, signal).is_ok()
    }
}

impl Process {
    /// Reads what /proc says about `pid`.
    pub fn read(pid: u32) -> Option<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let stat = parse_stat(&fs::read_to_string(folder.join("stat")).ok()?)?;
        let uid = fs::metadata(&folder).ok()?.uid();
        let arguments = fs::read(folder.join("cmdline")).unwrap_or_default();
        Some(Self {
            identity: ProcessIdentity { pid, started_ticks: stat.started_ticks },
            parent: stat.parent,
            uid,
            name: stat.name,
            state: stat.state,
            executable: fs::read_link(folder.join("exe")).ok().map(without_deletion_mark),
            working_directory: fs::read_link(folder.join("cwd")).ok().map(without_deletion_mark),
            arguments: arguments
                .split(|byte| *byte == 0)
                .filter(|part| !part.is_empty())
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .collect(),
        })
    }

    /// File name of the program, else the kernel's short name.
    pub fn program(&self) -> String {
        self.executable
            .as_deref()
            .and_then(Path::file_name)
            .map_or_else(|| self.name.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// True if it can still do something.
    pub fn is_alive(&self) -> bool {
        self.state != 'Z'
    }

    /// True if it works in `directory` or names a path below it in its arguments.
    pub fn belongs_to(&self, directory: &Path) -> bool {
        let inside = |path: &Path| path.starts_with(directory);
        self.working_directory.as_deref().is_some_and(inside)
            || self.executable.as_deref().is_some_and(inside)
            || self.arguments.iter().any(|argument| {
                let path = argument.split_once('=').map_or(argument.as_str(), |(_, value)| value);
                inside(Path::new(path))
            })
    }
}

/// Every process of user `uid` that is not a zombie.
pub fn all_of(uid: u32) -> Vec<Process> {
    let Ok(folder) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    folder
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()))
        .filter_map(Process::read)
        .filter(|process| process.uid == uid && process.is_alive())
        .collect()
}

/// The PostgreSQL processes on `data_directory`: the postmaster first, so that a signal to all in this order finds no
/// postmaster that still starts others.
pub fn postgres_family(uid: u32, data_directory: &Path) -> Vec<Process> {
    let mut family: Vec<Process> = all_of(uid)
        .into_iter()
        .filter(|process| {
            process.program() == "postgres" && process.working_directory.as_deref() == Some(data_directory)
        })
        .collect();
    let members: Vec<u32> = family.iter().map(|process| process.identity.pid).collect();
    family.sort_by_key(|process| {
        (members.contains(&process.parent), process.identity.started_ticks, process.identity.pid)
    });
    family
}

/// Every process of a host: those that work below its directory, or name a path below it.
pub fn of_host(uid: u32, directory: &Path) -> Vec<Process> {
    all_of(uid).into_iter().filter(|process| process.belongs_to(directory)).collect()
}

/// Kills every process of a host, as a power cut does. Whoever replaces another one dies in the next round.
pub fn kill_all_of(uid: u32, directory: &Path) {
    // Everything stops first, so that nobody can replace anybody.
    for signal in [Signal::STOP, Signal::STOP, Signal::KILL, Signal::KILL] {
        for process in of_host(uid, directory) {
            process.identity.signal(signal);
        }
    }
}

struct Stat {
    name: String,
    state: char,
    parent: u32,
    started_ticks: u64,
    used_ticks: u64,
}

/// The name is in parentheses and may itself hold spaces and parentheses: fields are counted from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    Some(Stat {
        name,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        // Fields 14 and 15 of the line; the first one after the name is field 3.
        used_ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
        // Field 22.
        started_ticks: fields.get(19)?.parse().ok()?,
    })
}

fn without_deletion_mark(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let fields = "S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 200";
        let stat = parse_stat(&format!("42 (odd ) (name) {fields}")).expect("parsed");
        assert_eq!((stat.name.as_str(), stat.state, stat.parent, stat.started_ticks), ("odd ) (name", 'S', 7, 98765));
        assert!(parse_stat("42 (short) S 1").is_none());
    }

    #[test]
    fn a_recycled_pid_is_not_signalled() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("start sleep");
        let identity = ProcessIdentity::of(child.id()).expect("identity");
        let recycled = ProcessIdentity { started_ticks: identity.started_ticks + 1, ..identity };
        assert!(!recycled.is_alive());
        assert!(!recycled.signal(Signal::KILL));
        assert!(identity.is_alive(), "the wrong process was hit");
        assert!(identity.signal(Signal::KILL));
        child.wait().expect("reap");
        assert!(!identity.is_alive());
        assert!(!identity.signal(Signal::KILL));
    }

    #[test]
    fn belonging_is_by_directory_or_by_argument() {
        let mut process = Process::read(std::process::id()).expect("own process");
        process.executable = None;
        process.working_directory = Some("/srv/lab/n1".into());
        process.arguments = vec!["postgres".into()];
        assert!(process.belongs_to(Path::new("/srv/lab")));
        assert!(!process.belongs_to(Path::new("/srv/la")));
        process.working_directory = Some("/".into());
        assert!(!process.belongs_to(Path::new("/srv/lab")));
        process.arguments.push("--config.file=/srv/lab/prometheus.yml".into());
        assert!(process.belongs_to(Path::new("/srv/lab")));
    }
}

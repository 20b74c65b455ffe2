//! PostgreSQL refuses to run as root: started by root, the lab runs again as an ordinary user and hands its results back.
//!
//! Invariant: as root nothing of a lab is started; root's part is to copy, to wait and to copy back, and to make what only root can.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, bail};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::LabCommand;
use super::namespaces;
use super::place::{self, User};
use super::up::own_program;

/// True if this process is root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user that a lab of this process belongs to.
pub fn lab_user() -> anyhow::Result<User> {
    if !is_root() {
        let uid = rustix::process::geteuid().as_raw();
        return Ok(User { name: place::user_name(uid), uid, gid: rustix::process::getegid().as_raw() });
    }
    let users = place::users();
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| users.iter().find(|user| user.name == *name && user.uid != 0))
        .cloned()
        .context("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody: run the lab as an ordinary user")
}

/// What a service file says with `LimitNICE=-10`: agents and controllers may run before others. Without it they run as they are.
pub(super) fn allow_priority() {
    /// The kernel counts from 20 down: 30 allows the nice value -10.
    const NICE_LIMIT: u64 = 30;
    let limit = Rlimit { current: Some(NICE_LIMIT), maximum: Some(NICE_LIMIT) };
    if let Err(error) = setrlimit(Resource::Nice, limit) {
        tracing::debug!(%error, "the lab's services run at ordinary priority");
    }
}

/// Runs the same command as `user`, in the middle of namespaces if asked to, and returns its exit code.
pub async fn run_as(user: &User, command: &LabCommand, in_namespaces: bool) -> anyhow::Result<u8> {
    let stay = Stay::make(user)?;
    allow_priority();
    let mut child = if in_namespaces {
        let (program, arguments) = namespaces::around(user, &stay.program());
        let mut child = Command::new(program);
        child.args(arguments);
        child
    } else {
        let mut child = Command::new(stay.program());
        child.uid(user.uid).gid(user.gid);
        child
    };
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut results = None;
    let report = match command {
        LabCommand::Run(run) => Some(&run.report),
        LabCommand::Chaos(chaos) => Some(&chaos.report),
        _ => None,
    };
    match command {
        LabCommand::Run(_) | LabCommand::Chaos(_) => {
            child.args(without_option(given, "--report"));
            if let Some(wanted) = report.and_then(Option::as_ref) {
                let inside = stay.directory.join("report.json");
                child.arg("--report").arg(&inside);
                results = Some((inside, std::path::absolute(wanted).context("find the report's place")?));
            }
        }
        // Root does these itself.
        LabCommand::Link(_) | LabCommand::Network { .. } | LabCommand::Application { .. } => {
            child.args(given);
        }
        LabCommand::Up { directory, .. } | LabCommand::Down { directory } | LabCommand::Status { directory } => {
            child.args(without_option(given, "--directory"));
            if let Some(directory) = directory {
                child.arg("--directory").arg(std::path::absolute(directory).context("find the lab's directory")?);
            }
        }
    }
    stay.furnish(&mut child, user);
    let status = wait(child.spawn().with_context(|| format!("run the lab as user {}", user.name))?).await?;
    if let Some((inside, wanted)) = results
        && inside.exists()
    {
        hand_over(&inside, &wanted)?;
    }
    Ok(code_of(status))
}

/// Waits for the lab's process. Signals are for that one, which cleans up; from a terminal it gets Ctrl-C by itself.
pub(super) async fn wait(mut running: Child) -> anyhow::Result<ExitStatus> {
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    loop {
        tokio::select! {
            status = running.wait() => return status.context("wait for the lab"),
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {
                let identity = running.id().and_then(super::process::ProcessIdentity::of);
                identity.inspect(|identity| { identity.signal(rustix::process::Signal::TERM); });
            }
        }
    }
}

/// The arguments without `option` and its value, which this process replaces by one that holds anywhere.
fn without_option(arguments: Vec<OsString>, option: &str) -> Vec<OsString> {
    let joined = format!("{option}=");
    let mut kept = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == option {
            arguments.next();
        } else if !argument.to_string_lossy().starts_with(&joined) {
            kept.push(argument);
        }
    }
    kept
}

/// Copies a result to where the caller asked for it.
fn hand_over(inside: &Path, wanted: &Path) -> anyhow::Result<()> {
    // The user owns the directory: what lies there is read as a plain file or not at all.
    if !fs::symlink_metadata(inside).is_ok_and(|data| data.is_file()) {
        bail!("{} is no file", inside.display());
    }
    let text = fs::read(inside).with_context(|| format!("read {}", inside.display()))?;
    if let Some(folder) = wanted.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make the directory {}", folder.display()))?;
    }
    fs::write(wanted, text).with_context(|| format!("write {}", wanted.display()))
}

pub(super) fn code_of(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// A copy of this program where the user can execute it, for as long as this process waits.
pub(super) struct Stay {
    directory: PathBuf,
}

impl Stay {
    pub(super) fn make(user: &User) -> anyhow::Result<Self> {
        let random = uuid::Uuid::now_v7().as_u128() as u64;
        let directory = place::temporary_directory().join(format!("stormglass-as-{}-{random:016x}", user.name));
        fs::create_dir(&directory).with_context(|| format!("make the directory {}", directory.display()))?;
        let stay = Self { directory };
        let own = own_program()?;
        fs::copy(&own, stay.program()).with_context(|| format!("copy {}", own.display()))?;
        fs::set_permissions(stay.program(), fs::Permissions::from_mode(0o755)).context("make the copy executable")?;
        for path in [stay.program(), stay.directory.clone()] {
            chown(&path, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} away", path.display()))?;
        }
        Ok(stay)
    }

    pub(super) fn program(&self) -> PathBuf {
        self.directory.join("stormglass")
    }

    /// What the user finds around a command, in place of what root has.
    pub(super) fn furnish(&self, command: &mut Command, user: &User) {
        command
            // Where the caller stands may be closed to the user.
            .current_dir("/")
            .env("HOME", &self.directory)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("TMPDIR", place::temporary_directory())
            .env_remove("XDG_RUNTIME_DIR");
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_dropped_however_it_was_written() {
        let cut = |line: &[&str]| {
            let given = line.iter().map(OsString::from).collect();
            without_option(given, "--report")
                .into_iter()
                .map(|part| part.into_string().expect("UTF-8"))
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(&["lab", "run", "x", "--report", "a", "--seed", "1"]), ["lab", "run", "x", "--seed", "1"]);
        assert_eq!(cut(&["lab", "run", "--report=a", "x"]), ["lab", "run", "x"]);
        assert_eq!(cut(&["lab", "run", "x", "--report"]), ["lab", "run", "x"]);
    }

    #[test]
    fn a_result_is_handed_over_as_a_plain_file_only() {
        let temporary = tempfile::tempdir().expect("directory");
        let (inside, wanted) = (temporary.path().join("report.json"), temporary.path().join("a/b/report.json"));
        fs::write(&inside, "{}").expect("written");
        hand_over(&inside, &wanted).expect("handed over");
        assert_eq!(fs::read_to_string(&wanted).expect("there"), "{}");
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink("/etc/shadow", &link).expect("linked");
        assert!(hand_over(&link, &wanted).is_err());
    }
}

//! Runs programs as PostgreSQL's user and says in words what went wrong with them.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::PgBackRest;
use crate::ports::backup::BackupError;

/// Longest part of a complaint that is repeated.
const COMPLAINT_LENGTH_MAX: usize = 600;

/// pgBackRest's exit code if another run holds a lock that this one needs (`ERROR_LOCK_ACQUIRE`).
const LOCKED: i32 = 50;
/// How long a run waits for such a lock. Runs that need it are over within seconds, but for backups, which are not waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How long after a refusal the lock is tried again.
const LOCK_LOOK: Duration = Duration::from_millis(200);

/// What pgBackRest's complaints contain, and what to do. The first that fits is said.
const HINTS: [(&str, &str); 15] = [
    // Whatever else it complains of, it did not see the repository.
    ("unable to connect", "the repository, or a host of it, is out of reach: see the network and the endpoint"),
    (
        "key/value found outside of section",
        "the repository is encrypted with another passphrase: correct cipher_passphrase",
    ),
    ("CryptoError", "the repository is encrypted with another passphrase, or damaged: correct cipher_passphrase"),
    ("cipher header invalid", "the repository is not encrypted, or damaged: correct cipher_passphrase"),
    ("zlib threw error", "a file in the repository is damaged: take another backup, or restore from another one"),
    ("lz4 error", "a file in the repository is damaged: take another backup, or restore from another one"),
    ("LZ4", "a file in the repository is damaged: take another backup, or restore from another one"),
    ("error restoring", "a file in the repository is damaged: take another backup, or restore from another one"),
    (
        "has a stanza-create been performed",
        "the repository is not there, or was never used: see repository and whether it is mounted",
    ),
    (
        "unable to open missing file",
        "the repository is not there, or was never used: see repository and whether it is mounted",
    ),
    ("Permission denied", "give PostgreSQL's user access to the repository"),
    ("unable to find hostname", "the certificate names another host than the endpoint"),
    ("certificate", "the server's certificate is not trusted: see ca_file"),
    ("unable to acquire lock", "another run of pgBackRest is under way: wait for it"),
    ("No space left", "free space"),
];

impl PgBackRest {
    /// A command of pgBackRest with this cluster's configuration.
    pub(super) fn pgbackrest(&self, file: &Path, command: &str) -> Command {
        let mut run = self.program(&self.settings.program);
        run.arg(format!("--config={}", file.display()));
        run.arg(format!("--stanza={}", self.settings.stanza));
        run.arg(command);
        run
    }

    /// Any program, as PostgreSQL's user, with an environment of its own: `PGBACKREST_…` and `PG…` of the agent's would change
    /// what it does.
    pub(super) fn program(&self, program: &Path) -> Command {
        let mut run = Command::new(program);
        run.env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .env("HOME", &self.settings.directory)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .current_dir("/");
        if self.owner.switch {
            run.uid(self.owner.uid).gid(self.owner.gid);
        }
        run
    }
}

/// What it printed, if it succeeded in time. If another run of pgBackRest holds its lock, it is begun anew until that one has ended, for
/// [`LOCK_PATIENCE`] at most: the agent itself makes the repository ready by more than one way, and a DBA has a shell.
pub(super) async fn output(
    mut command: Command,
    action: &'static str,
    timeout: Duration,
) -> Result<Vec<u8>, BackupError> {
    let mut ended = run_once(&mut command, action, timeout).await?;
    let patience_ends = Instant::now() + LOCK_PATIENCE;
    while ended.status.code() == Some(LOCKED) && Instant::now() < patience_ends {
        tracing::debug!(action, "waiting for another run of pgBackRest");
        sleep(LOCK_LOOK).await;
        ended = run_once(&mut command, action, timeout).await?;
    }
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let said = [ended.stdout, ended.stderr].concat();
    let code = ended.status.code().map_or_else(|| ended.status.to_string(), |code| format!("exit code {code}"));
    Err(BackupError::new(action, format!("{code}: {}", complaint(&String::from_utf8_lossy(&said)))))
}

async fn run_once(command: &mut Command, action: &'static str, timeout: Duration) -> Result<Output, BackupError> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let ended = tokio::time::timeout(timeout, command.output()).await.map_err(|_| {
        BackupError::new(action, format!("no end within {timeout:?}: see whether the repository answers"))
    })?;
    ended.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            BackupError::new(action, format!("{name} is not there: install it (Debian: pgbackrest)"))
        }
        _ => BackupError::new(action, format!("{name}: {error}")),
    })
}

/// What went wrong, on one line, with a hint where the trouble is a well-known one. What an unreadable file contained is left out.
pub(super) fn complaint(text: &str) -> String {
    let printable = |line: &str| line.chars().all(|letter| !letter.is_control() && letter != '\u{FFFD}');
    let trimmed = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("HINT:"));
    let lines: Vec<&str> = trimmed.filter(|line| printable(line)).collect();
    let from = lines.iter().position(|line| line.contains("ERROR:")).unwrap_or(lines.len().saturating_sub(4));
    let said: String = lines[from..].join(" | ").chars().take(COMPLAINT_LENGTH_MAX).collect();
    match HINTS.iter().find(|(sign, _)| text.contains(sign)) {
        Some((_, hint)) if said.is_empty() => (*hint).to_owned(),
        Some((_, hint)) => format!("{said} ({hint})"),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_say_what_to_do_and_never_what_was_encrypted() {
        let text = "ERROR: [029]: unable to load info file '/repo/backup.info':\n       FormatError: key/value found outside of section at line 1: N6\u{1}\u{FFFD}\n       HINT: has a stanza-create been performed?\n";
        let said = complaint(text);
        assert!(said.contains("another passphrase") && said.contains("unable to load info file"), "{said}");
        assert!(!said.contains("N6") && !said.contains("HINT"), "{said}");
        let said = complaint("ERROR: [055]: unable to load info file\n HINT: has a stanza-create been performed?");
        assert!(said.contains("whether it is mounted"), "{said}");
        let refused = "ERROR: [049]: HostConnectError: unable to connect to 'localhost:1'\n HINT: has a stanza-create been performed?";
        assert!(complaint(refused).contains("out of reach"), "{}", complaint(refused));
        assert_eq!(complaint("strange"), "strange");
    }
}

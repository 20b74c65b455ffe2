//! The backup repository by way of pgBackRest: the real program, its output read, its errors in words.
//!
//! Decisions never enter. Nothing here writes into the node's data directory: copies are made elsewhere, and run closed.

mod checks;
mod copy;
mod info;
mod preflight;
mod run;
mod settings;
mod standby;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

pub use settings::{BackupSettings, CheckSettings, LedgerTable, PeerSettings, RepositoryPlace, stop_file};

use crate::adapters::postgres::FileOwner;
use crate::domain::backup::{
    BackupType, Continuity, DrillMark, RecoveryTarget, Repository, RestorePlan, WalSegment, is_label,
};
use crate::domain::ids::SystemIdentifier;
use crate::domain::lsn::{History, Lsn};
use crate::ports::backup::{BackupError, BackupRepository, Progress, Verified};
use crate::ports::postgres::DataChange;
use info::Info;
use run::output;

/// A question to the repository; pgBackRest itself gives up on a connection after its `io-timeout`, several times.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(180);
/// Proving that WAL arrives: pgBackRest's `archive-timeout` and what it needs around it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);
/// Whoever asks for the list waits no longer for what is only shown beside it.
const CONTINUITY_TIMEOUT: Duration = Duration::from_secs(3);
/// A backup, or reading one back, of a large database.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The repository of one node.
pub struct PgBackRest {
    settings: BackupSettings,
    owner: FileOwner,
}

impl PgBackRest {
    /// Writes the configuration, for PostgreSQL's user alone. Asks nobody.
    pub fn new(settings: BackupSettings, owner: FileOwner) -> Result<Self, BackupError> {
        let backup = Self { settings, owner };
        backup.write_files().map_err(|(path, error)| {
            BackupError::new("write pgBackRest's configuration", format!("{}: {error}", path.display()))
        })?;
        Ok(backup)
    }

    fn write_files(&self) -> Result<(), (PathBuf, std::io::Error)> {
        let directory = &self.settings.directory;
        for directory in [directory.clone(), directory.join("lock"), directory.join("log"), directory.join("spool")] {
            self.make_directory(&directory).map_err(|error| (directory, error))?;
        }
        for (file, with_peers) in [(self.settings.file(), false), (self.settings.standby_file(), true)] {
            let text = self.settings.render(with_peers);
            self.write_private(&file, &text).map_err(|error| (file, error))?;
        }
        Ok(())
    }

    /// Makes a directory of PostgreSQL's user.
    fn make_directory(&self, directory: &Path) -> std::io::Result<()> {
        if let Some(parent) = directory.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        self.hand_over(directory)
    }

    /// Replaces a file that only PostgreSQL's user reads. Whoever reads it meanwhile finds the old or the new one.
    fn write_private(&self, file: &Path, text: &str) -> std::io::Result<()> {
        use std::io::Write as _;
        let temporary = file.with_extension("new");
        let _left_by_a_crash = fs::remove_file(&temporary);
        let mut out = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        out.write_all(text.as_bytes())?;
        self.hand_over(&temporary)?;
        fs::rename(&temporary, file)
    }

    fn hand_over(&self, path: &Path) -> std::io::Result<()> {
        if self.owner.switch { chown(path, Some(self.owner.uid), Some(self.owner.gid)) } else { Ok(()) }
    }

    async fn info(&self, action: &'static str, label: Option<&str>) -> Result<Info, BackupError> {
        let mut command = self.pgbackrest(&self.settings.file(), "info");
        command.arg("--output=json");
        if let Some(label) = label {
            command.arg(format!("--set={label}"));
        }
        let printed = output(command, action, QUESTION_TIMEOUT).await?;
        info::parse(&printed).map_err(|problem| BackupError::new(action, problem))
    }

    async fn manifest(&self, action: &'static str, label: &str) -> Result<Vec<u8>, BackupError> {
        let mut get = self.pgbackrest(&self.settings.file(), "repo-get");
        get.arg(format!("backup/{}/{label}/backup.manifest", self.settings.stanza));
        output(get, action, QUESTION_TIMEOUT).await
    }

    /// Whether the WAL goes on from the newest backup to the end.
    async fn continuity(&self, action: &'static str, info: &Info) -> Continuity {
        let Ok(set) = info.repository.choose(&RecoveryTarget::Latest) else { return Continuity::Unknown };
        match self.archive(action, info).await {
            Ok(archive) => match archive.reach(set, &RecoveryTarget::Latest) {
                Ok(_) => Continuity::Whole,
                Err(problem) => Continuity::Broken { problem },
            },
            Err(error) => {
                tracing::debug!(%error, "nobody knows whether the WAL has a gap");
                Continuity::Unknown
            }
        }
    }

    /// Every segment in the repository, and the histories.
    async fn archive(&self, action: &'static str, info: &Info) -> Result<crate::domain::backup::Archive, BackupError> {
        let Some(id) = &info.archive_id else {
            return Err(BackupError::new(action, "the repository holds no WAL of this database"));
        };
        let place = format!("archive/{}/{id}", self.settings.stanza);
        let mut list = self.pgbackrest(&self.settings.file(), "repo-ls");
        list.args(["--recurse", "--output=json"]).arg(&place);
        let printed = output(list, action, QUESTION_TIMEOUT).await?;
        let (segments, files) = info::parse_archive(&printed).map_err(|problem| BackupError::new(action, problem))?;
        let mut histories = std::collections::BTreeMap::new();
        for file in files {
            let name = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".history");
            let Ok(timeline) = u32::from_str_radix(name, 16) else { continue };
            let mut get = self.pgbackrest(&self.settings.file(), "repo-get");
            get.arg(format!("{place}/{file}"));
            let text = output(get, action, QUESTION_TIMEOUT).await?;
            histories.insert(timeline, info::parse_history(&String::from_utf8_lossy(&text)));
        }
        Ok(info::archive(segments, histories, &info.repository.backups))
    }
}

#[async_trait]
impl BackupRepository for PgBackRest {
    async fn prepare(&self) -> Result<(), BackupError> {
        const ACTION: &str = "make the repository ready";
        let command = self.pgbackrest(&self.settings.file(), "stanza-create");
        output(command, ACTION, QUESTION_TIMEOUT).await.map(drop)
    }

    async fn prove_archiving(&self) -> Result<(), BackupError> {
        const ACTION: &str = "prove that WAL arrives in the repository";
        let command = self.pgbackrest(&self.settings.file(), "check");
        output(command, ACTION, CHECK_TIMEOUT).await.map(drop)
    }

    async fn fill_archive(&self) -> Result<usize, BackupError> {
        const ACTION: &str = "bring the WAL that the former primary did not archive";
        let info = self.info(ACTION, None).await?;
        let archive = self.archive(ACTION, &info).await?;
        let wal = self.settings.data_directory.join("pg_wal");
        let (mut own, mut histories) = (Vec::new(), Vec::new());
        let entries =
            fs::read_dir(&wal).map_err(|error| BackupError::new(ACTION, format!("{}: {error}", wal.display())))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(segment) = name.parse::<WalSegment>() {
                own.push(segment);
            } else if let Some(timeline) =
                name.strip_suffix(".history").and_then(|name| u32::from_str_radix(name, 16).ok())
            {
                histories.push(timeline);
            }
        }
        let Some(newest) = histories.into_iter().max() else { return Ok(0) };
        let file = wal.join(format!("{newest:08X}.history"));
        let text = fs::read_to_string(&file)
            .map_err(|error| BackupError::new(ACTION, format!("{}: {error}", file.display())))?;
        let forks = info::parse_history(&text);
        let missing = missing_of(&own, &forks, &archive, info.repository.first_segment);
        for segment in &missing {
            let mut push = self.pgbackrest(&self.settings.file(), "archive-push");
            push.arg(format!("pg_wal/{segment}")).current_dir(&self.settings.data_directory);
            output(push, ACTION, QUESTION_TIMEOUT).await?;
        }
        Ok(missing.len())
    }

    async fn list(&self) -> Result<Repository, BackupError> {
        const ACTION: &str = "list the backups";
        let (info, newest_wal_at) = tokio::join!(self.info(ACTION, None), checks::newest_wal_at(self));
        let info = info?;
        // A large archive in a slow bucket is not waited for: who asks wants to see the backups.
        let looked = tokio::time::timeout(CONTINUITY_TIMEOUT, self.continuity(ACTION, &info)).await;
        Ok(Repository { newest_wal_at, continuity: looked.unwrap_or_default(), ..info.repository })
    }

    async fn backup(&self, backup_type: BackupType, from_standby: bool) -> Result<(String, String), BackupError> {
        const ACTION: &str = "take a backup";
        let file = if from_standby { self.settings.standby_file() } else { self.settings.file() };
        let before = self.info(ACTION, None).await?.repository;
        let mut command = self.pgbackrest(&file, "backup");
        command.arg(format!("--type={backup_type}"));
        output(command, ACTION, BACKUP_TIMEOUT).await?;
        let after = self.info(ACTION, None).await?.repository;
        let known = |label: &str| before.backups.iter().any(|set| set.label == label);
        let made = after.backups.into_iter().rev().find(|set| !known(&set.label)).ok_or_else(|| {
            BackupError::new(ACTION, "pgBackRest ended well, and there is no new backup in the repository")
        })?;
        let words = format!(
            "{}, {} bytes of database in {} bytes, consistent at {}",
            made.backup_type, made.database_bytes, made.repository_bytes, made.stop_lsn
        );
        Ok((made.label, words))
    }

    async fn verify(&self, label: &str) -> Result<Verified, BackupError> {
        const ACTION: &str = "read the backup back";
        if !is_label(label) {
            return Err(BackupError::new(ACTION, format!("{label:?} is no name of a backup")));
        }
        let mut command = self.pgbackrest(&self.settings.file(), "verify");
        // Without text output pgBackRest 2.45 ends well whatever it finds.
        command.args(["--output=text", "--log-level-console=off"]);
        let printed = output(command, ACTION, BACKUP_TIMEOUT).await?;
        let said = String::from_utf8_lossy(&printed).into_owned();
        if let Some(problem) = checks::verdict(&said, label) {
            return Err(BackupError::new(ACTION, problem));
        }
        let manifest = self.manifest(ACTION, label).await?;
        let files = manifest.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"pg_data/")).count() as u64;
        Ok(Verified { manifest_sha256: digest(&manifest), files })
    }

    async fn compare_manifest(&self, label: &str, recorded: &str) -> Result<(), BackupError> {
        const ACTION: &str = "compare the backup's manifest with the one that was read back";
        let found = digest(&self.manifest(ACTION, label).await?);
        if found == recorded {
            return Ok(());
        }
        Err(BackupError::new(
            ACTION,
            format!(
                "the manifest of {label} has the SHA-256 {found}, and had {recorded} when the backup was taken: somebody changed it \
                 since; restore an earlier backup with --to-time, and take a new one: stormglass backup --type full"
            ),
        ))
    }

    fn scratch_directory(&self) -> PathBuf {
        self.settings.drill_directory.clone()
    }

    async fn plan(
        &self,
        target: &RecoveryTarget,
        directory: &Path,
        in_place: bool,
        expected: Option<SystemIdentifier>,
    ) -> Result<RestorePlan, BackupError> {
        preflight::plan(self, target, directory, in_place, expected).await
    }

    async fn restore(&self, label: &str, directory: &Path, progress: Progress<'_>) -> Result<(), BackupError> {
        copy::restore(self, label, directory, progress).await
    }

    async fn bring_standby(
        &self,
        expected: SystemIdentifier,
        history: &History,
        change: &dyn DataChange,
        progress: Progress<'_>,
    ) -> Result<(String, WalSegment), BackupError> {
        standby::bring(self, expected, history, change, progress).await
    }

    async fn recover(&self, directory: &Path, target: &RecoveryTarget, stays: bool) -> Result<Lsn, BackupError> {
        copy::recover(self, directory, target, stays).await
    }

    async fn check(&self, directory: &Path, mark: &DrillMark) -> Result<Vec<String>, BackupError> {
        checks::check(self, directory, mark).await
    }

    async fn remove(&self, directory: &Path) -> Result<(), BackupError> {
        copy::remove(self, directory).await
    }

    async fn release(&self, directory: &Path) -> Result<(), BackupError> {
        copy::release(directory)
    }

    async fn mark(&self) -> Result<DrillMark, BackupError> {
        checks::mark(self).await
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Segments of earlier timelines that are here, belong to this history, and are not in the repository. What is older than the first
/// one there was removed on purpose.
fn missing_of(
    own: &[WalSegment],
    forks: &[crate::domain::lsn::Fork],
    archive: &crate::domain::backup::Archive,
    first: Option<WalSegment>,
) -> Vec<WalSegment> {
    let size = archive.segment_bytes;
    let mut missing: Vec<WalSegment> = own
        .iter()
        .filter(|segment| {
            let number = segment.number(size);
            let Some(place) = forks.iter().position(|fork| fork.timeline.0 == segment.timeline) else { return false };
            let began = place.checked_sub(1).map_or(0, |before| forks[before].switched_at.0 / size);
            let is_old = first.is_none_or(|first| number < first.number(size));
            let is_whole = number < forks[place].switched_at.0 / size;
            number >= began && is_whole && !is_old && !archive.segments.contains_key(segment)
        })
        .copied()
        .collect();
    missing.sort();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::backup::Archive;
    use crate::domain::clock::WallTime;
    use crate::domain::lsn::{Fork, Timeline};

    #[test]
    fn only_whole_segments_of_this_history_that_nobody_has_are_brought() {
        let size = 16 << 20;
        let segment = |timeline: u32, number: u64| WalSegment::of(timeline, number, size);
        let forks = [
            Fork { timeline: Timeline(1), switched_at: Lsn(5 * size + 9) },
            Fork { timeline: Timeline(2), switched_at: Lsn(8 * size) },
        ];
        let archive = Archive {
            segments: [segment(1, 2), segment(1, 3)].map(|there| (there, WallTime(0))).into(),
            segment_bytes: size,
            ..Archive::default()
        };
        let own = [(1, 1), (1, 3), (1, 4), (1, 5), (1, 6), (2, 4), (2, 5), (2, 7), (2, 8), (3, 8)];
        let own: Vec<WalSegment> = own.into_iter().map(|(timeline, number)| segment(timeline, number)).collect();
        let missing = missing_of(&own, &forks, &archive, Some(segment(1, 2)));
        // 1/1 is older than the archive, 1/3 is there, 1/5 is not whole on its timeline, 2/4 belongs to timeline 1, 3 is current.
        assert_eq!(missing, [segment(1, 4), segment(2, 5), segment(2, 7)]);
    }
}

//! Backups, copies and restores as commands of controllers; and what a primary does for its repository by itself.
//!
//! What takes long changes nothing of the live PostgreSQL and waits for nobody who does. Only putting data aside does, and that a
//! node which may write refuses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::commands::{Outcome, Trouble};
use super::start::Role;
use super::tasks::Progress;
use crate::domain::backup::{BackupType, CopyPlace, DrillMark, MANIFEST_MARK, RecoveryTarget, Repository};
use crate::domain::command::{Command, CommandEnvelope, CommandOutput};
use crate::domain::epoch::Epoch;
use crate::domain::ids::OperationId;
use crate::ports::BackupRepository;
use crate::ports::backup::BackupError;

/// Between two looks whether this node became the primary.
const LOOK: Duration = Duration::from_secs(2);

/// After a promotion the hosts have other things to do first.
const SETTLE: Duration = Duration::from_secs(10);

/// A repository that does not answer is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

impl From<BackupError> for Trouble {
    fn from(error: BackupError) -> Self {
        Trouble::Failed(error.to_string())
    }
}

fn noted(note: impl ToString) -> CommandOutput {
    CommandOutput { lsn: None, note: Some(note.to_string()) }
}

impl Agent {
    fn repository(&self) -> Result<&Arc<dyn BackupRepository>, Trouble> {
        self.backup.as_ref().ok_or_else(|| {
            let why = format!("the agent of {} has no [backup]: add it to its configuration", self.settings.node);
            Trouble::Refused(why)
        })
    }

    /// What is in the repository, for whoever asks.
    pub(super) async fn backups(&self) -> Result<Repository, String> {
        let repository = self.repository().map_err(|trouble| match trouble {
            Trouble::Refused(why) | Trouble::Failed(why) => why,
        })?;
        repository.list().await.map_err(|error| error.to_string())
    }

    /// A command that concerns the repository and copies, and not the live data; `None` for any other.
    pub(super) async fn repository_command(
        self: &Arc<Self>,
        envelope: &CommandEnvelope,
        progress: &Progress,
    ) -> Option<Outcome> {
        Some(match &envelope.command {
            Command::PrepareRepository => self.prepare_repository(progress).await,
            Command::Backup { backup_type } => {
                progress.tell(format!("taking a {backup_type} backup"));
                self.take_backup(*backup_type).await
            }
            Command::VerifyBackup { label } => {
                progress.tell(format!("reading {label} back"));
                self.verify_backup(label).await
            }
            Command::MarkLedger => {
                progress.tell("waiting until WAL is archived");
                self.mark_ledger().await
            }
            Command::CheckRestore { target, place, manifests } => {
                progress.tell("asking the repository");
                self.check_restore(target, place, manifests).await
            }
            Command::RestoreCopy { plan, place } => {
                let told = progress.clone();
                let tell = move |text| told.tell(text);
                self.restore_copy(&plan.label, place, &tell).await
            }
            Command::RecoverCopy { target, place } => {
                progress.tell(format!("replaying WAL to {target}"));
                self.recover_copy(target, place).await
            }
            Command::CheckCopy { mark } => {
                progress.tell("checking every table and index");
                self.check_copy(mark).await
            }
            Command::RemoveCopy { place } => self.remove_copy(place).await,
            _ => return None,
        })
    }

    async fn prepare_repository(&self, progress: &Progress) -> Outcome {
        let repository = self.repository()?;
        if !self.local().is_primary() {
            return Err(Trouble::Refused(
                "the node is not the primary: only that one can speak for the database".to_owned(),
            ));
        }
        progress.tell("making the repository ready");
        repository.prepare().await?;
        progress.tell("waiting for WAL to arrive in the repository");
        repository.prove_archiving().await?;
        Ok(noted("WAL arrives in the repository"))
    }

    async fn take_backup(&self, backup_type: BackupType) -> Outcome {
        let repository = self.repository()?;
        let from_standby = self.local().role == Some(Role::Standby);
        let (label, words) = repository.backup(backup_type, from_standby).await?;
        Ok(noted(format!("{label}: {words}")))
    }

    async fn verify_backup(&self, label: &str) -> Outcome {
        let verified = self.repository()?.verify(label).await?;
        Ok(noted(format!("{label}: {} files read back, {MANIFEST_MARK}{}", verified.files, verified.manifest_sha256)))
    }

    async fn mark_ledger(&self) -> Outcome {
        let repository = self.repository()?;
        if !self.local().is_primary() {
            return Err(Trouble::Refused("the node is not the primary any more".to_owned()));
        }
        let mark = repository.mark().await?;
        Ok(CommandOutput { lsn: Some(mark.lsn), note: Some(mark.to_string()) })
    }

    async fn check_restore(
        &self,
        target: &RecoveryTarget,
        place: &CopyPlace,
        manifests: &BTreeMap<String, String>,
    ) -> Outcome {
        let repository = self.repository()?;
        let directory = self.copy_directory(place)?;
        let expected = self.keeper.read(|memory| memory.assignment.as_ref().map(|last| last.system_identifier));
        let plan = repository.plan(target, &directory, *place == CopyPlace::Beside, expected).await?;
        if let Some(recorded) = manifests.get(&plan.label) {
            repository.compare_manifest(&plan.label, recorded).await?;
        }
        Ok(noted(plan))
    }

    async fn restore_copy(&self, label: &str, place: &CopyPlace, tell: &(dyn Fn(String) + Send + Sync)) -> Outcome {
        let repository = self.repository()?;
        let directory = self.copy_directory(place)?;
        tell(format!("restoring {label}"));
        if *place == CopyPlace::Scratch {
            // What an earlier drill left is of no use.
            repository.remove(&directory).await?;
        }
        repository.restore(label, &directory, tell).await?;
        Ok(noted(format!("{label}: restored into {}", directory.display())))
    }

    async fn recover_copy(&self, target: &RecoveryTarget, place: &CopyPlace) -> Outcome {
        let repository = self.repository()?;
        let directory = self.copy_directory(place)?;
        let lsn = repository.recover(&directory, target, *place == CopyPlace::Scratch).await?;
        if matches!(place, CopyPlace::Into { .. }) {
            repository.release(&directory).await?;
        }
        Ok(CommandOutput { lsn: Some(lsn), note: Some(format!("replayed to {target}")) })
    }

    async fn check_copy(&self, mark: &DrillMark) -> Outcome {
        let directory = self.copy_directory(&CopyPlace::Scratch)?;
        let checks = self.repository()?.check(&directory, mark).await?;
        Ok(noted(checks.join("; ")))
    }

    async fn remove_copy(&self, place: &CopyPlace) -> Outcome {
        let directory = self.copy_directory(place)?;
        self.repository()?.remove(&directory).await?;
        Ok(noted(format!("{} is gone", directory.display())))
    }

    fn copy_directory(&self, place: &CopyPlace) -> Result<PathBuf, Trouble> {
        Ok(match place {
            CopyPlace::Scratch => self.repository()?.scratch_directory().join("copy"),
            CopyPlace::Into { directory } => PathBuf::from(directory),
            CopyPlace::Beside => {
                let data = &self.settings.data_directory;
                // The real place: beside a symbolic link may be another filesystem.
                let data = std::fs::canonicalize(data).unwrap_or_else(|_| {
                    let parent = data.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
                    parent.zip(data.file_name()).map_or_else(|| data.clone(), |(parent, name)| parent.join(name))
                });
                let mut name = data.into_os_string();
                name.push(".stormglass-restored");
                PathBuf::from(name)
            }
        })
    }

    /// Stops PostgreSQL and renames its data. Only for a restore that replaces the whole cluster.
    pub(super) async fn set_aside(self: &Arc<Self>, operation: &OperationId) -> Outcome {
        self.may_put_aside()?;
        self.stop_for_rejoin().await?;
        let aside = self.postgres.set_aside(&aside_name(operation)).await?;
        self.local().is_empty = true;
        self.refresh_control().await;
        Ok(noted(match aside {
            Some(path) => format!("the former data lie in {}", path.display()),
            None => "there were no data".to_owned(),
        }))
    }

    /// The same, and the restored copy takes the place.
    pub(super) async fn adopt_copy(self: &Arc<Self>, operation: &OperationId) -> Outcome {
        self.may_put_aside()?;
        let copy = self.copy_directory(&CopyPlace::Beside)?;
        self.stop_for_rejoin().await?;
        let aside = self.postgres.adopt_copy(&copy, &aside_name(operation)).await?;
        // Whatever was half-way with the former data is over.
        self.keeper.change(|memory| memory.half_rejoined = false).await?;
        self.local().is_empty = false;
        self.refresh_control().await;
        self.repository()?.release(&copy).await?;
        Ok(noted(match aside {
            Some(path) => format!("restored data are in place; the former ones lie in {}", path.display()),
            None => "restored data are in place; there were no others".to_owned(),
        }))
    }

    fn may_put_aside(&self) -> Result<(), Trouble> {
        self.repository()?;
        let local = self.local();
        if local.is_primary() || local.leases.valid(self.now()).is_some() {
            return Err(Trouble::Refused("the node is the primary: fence it first".to_owned()));
        }
        Ok(())
    }

    /// A primary makes the repository know its database, and brings what its predecessor could not archive any more.
    pub(super) async fn repository_loop(self: &Arc<Self>) {
        let Some(repository) = self.backup.clone() else { return };
        let mut served: Option<Epoch> = None;
        loop {
            let leased = self.local().leases.valid(self.now()).map(|lease| lease.epoch);
            let epoch = leased.filter(|_| self.local().is_primary());
            let Some(epoch) = epoch.filter(|epoch| served != Some(*epoch)) else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            if epoch > Epoch(1) && served.is_some() {
                tokio::time::sleep(SETTLE).await;
            }
            let done = async {
                repository.prepare().await?;
                repository.fill_archive().await
            };
            match done.await {
                Ok(count) => {
                    if count > 0 {
                        tracing::warn!(count, "brought WAL that the former primary had not archived");
                    }
                    served = Some(epoch);
                }
                Err(error) => {
                    tracing::warn!(%error, "the repository is not ready");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn aside_name(operation: &OperationId) -> String {
    format!("aside-{operation}")
}

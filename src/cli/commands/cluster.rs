//! `cluster`: which clusters the controller keeps, as what, one more, one less.

use serde::Deserialize as _;
use serde_json::Value;

use super::Session;
use super::mutate::lost_answer;
use crate::api::client::ClientError;
use crate::api::clusters::{ClusterAddRequest, ClusterRemoveRequest};
use crate::api::wire::ClusterStatus;
use crate::cli::arguments::{ClusterCommand, DefinitionFile};
use crate::cli::exit::{Exit, Failure};
use crate::cli::render;

impl Session<'_> {
    pub(super) async fn kept(&mut self, command: ClusterCommand) -> Result<Exit, Failure> {
        match command {
            ClusterCommand::List => {
                let raw = self.client.get("/api/v1/clusters").await?;
                let all = Vec::<ClusterStatus>::deserialize(&raw).map_err(|error| {
                    let message = format!("the answer is not understood, versions may differ: {error}");
                    Failure::new(Exit::ControllerError, message)
                })?;
                self.emit(&raw, |look| render::cluster::list(&all, look))?;
                Ok(Exit::Done)
            }
            ClusterCommand::Show { cluster } => {
                let cluster = self.cluster(cluster.as_deref()).await?;
                let definition = self.client.definition(&cluster).await?;
                self.emit(&definition.raw, |look| render::cluster::show(&definition.value, look))?;
                Ok(Exit::Done)
            }
            ClusterCommand::Add { file } => self.add_cluster(&file).await,
            ClusterCommand::Remove { cluster } => self.remove_cluster(&cluster).await,
        }
    }

    async fn add_cluster(&mut self, file: &DefinitionFile) -> Result<Exit, Failure> {
        let definition = match file {
            DefinitionFile::StandardInput => self
                .console
                .read_all()
                .map_err(|error| Failure::new(Exit::Usage, format!("read standard input: {error}")))?,
            DefinitionFile::File(path) => std::fs::read_to_string(path)
                .map_err(|error| Failure::new(Exit::Usage, format!("read {}: {error}", path.display())))?,
        };
        let request = ClusterAddRequest { definition, dry_run: self.global.dry_run };
        let reply = self.client.add_cluster(&request).await.map_err(lost)?;
        if self.global.dry_run {
            let plan = render::plan::render(&reply.value, &[], self.look_of_notes());
            self.emit(&reply.raw, |_| plan)?;
            return Ok(Exit::Done);
        }
        self.tell(&reply.raw, &reply.value.message, &reply.value.expect)?;
        self.console.note("Next: stormglass cluster list");
        Ok(Exit::Done)
    }

    async fn remove_cluster(&mut self, cluster: &str) -> Result<Exit, Failure> {
        let cluster = self.cluster(Some(cluster)).await?;
        let planned = self.client.remove_cluster(&cluster, &ClusterRemoveRequest { dry_run: true }).await?;
        let plan = render::plan::render(&planned.value, &[], self.look_of_notes());
        if self.global.dry_run {
            self.emit(&planned.raw, |_| plan)?;
            return Ok(Exit::Done);
        }
        self.confirm(&planned.raw, &plan, Some(&cluster)).await?;
        let removed = self.client.remove_cluster(&cluster, &ClusterRemoveRequest { dry_run: false }).await;
        let reply = removed.map_err(lost)?;
        self.tell(&reply.raw, &reply.value.message, &reply.value.expect)?;
        Ok(Exit::Done)
    }

    /// The sentence is the answer; what follows from it is for people.
    fn tell(&mut self, raw: &Value, message: &str, expect: &[String]) -> Result<(), Failure> {
        self.emit(raw, |_| format!("{message}\n"))?;
        for line in expect {
            self.console.note(line);
        }
        Ok(())
    }
}

/// Which clusters are kept tells whether it was done.
fn lost(error: ClientError) -> Failure {
    let mut failure = lost_answer(error, "");
    if failure.exit == Exit::Unknown {
        failure.advice = vec!["stormglass cluster list".to_owned()];
    }
    failure
}

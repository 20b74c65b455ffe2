//! `sequence list` and `sequence run`: what is configured, and one of them begun by its name.

use serde_json::json;

use super::Session;
use super::follow::exit_of;
use super::mutate::{lost_answer, operations_of};
use crate::cli::exit::{Exit, Failure};
use crate::cli::render;

impl Session<'_> {
    pub(super) async fn sequences(&mut self, cluster: Option<&str>) -> Result<Exit, Failure> {
        let cluster = self.cluster(cluster).await?;
        let found = self.client.sequences(&cluster).await?;
        self.emit(&found.raw, |look| render::sequence::list(&found.value, look))?;
        Ok(Exit::Done)
    }

    pub(super) async fn sequence_run(&mut self, name: &str, cluster: Option<&str>) -> Result<Exit, Failure> {
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if name.is_empty() || !is_name {
            return Err(Failure::new(Exit::Usage, format!("{name:?} is no name of a sequence"))
                .advise("stormglass sequence list"));
        }
        let cluster = self.cluster(cluster).await?;
        let verb = format!("sequences/{name}");
        let planned = self.client.mutate(&cluster, &verb, &json!({ "dry_run": true })).await?;
        let plan = render::plan::render(&planned.value, &[], self.look_of_notes());
        if self.global.dry_run {
            self.emit(&planned.raw, |_| plan)?;
            return Ok(Exit::Done);
        }
        self.confirm(&planned.raw, &plan, None).await?;
        let begun = self.client.mutate(&cluster, &verb, &json!({})).await;
        let begun = begun.map_err(|error| lost_answer(error, &operations_of(&cluster)))?;
        let Some(operation) = begun.value.operation else {
            return Err(Failure::new(Exit::ControllerError, "the controller began nothing"));
        };
        if !self.waits() {
            self.emit(&begun.raw, |_| format!("{}\n", operation.id))?;
            self.console.note(&format!("Begun. Next: stormglass operation watch {}", operation.id));
            return Ok(Exit::Done);
        }
        let ended = self.follow(&operation.id.0).await?;
        self.emit(&ended.raw, |look| render::operation::render(&ended.value, look))?;
        Ok(exit_of(&ended.value))
    }
}

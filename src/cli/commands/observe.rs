//! Commands that only look.

use serde_json::Value;

use super::{Session, operation_id};
use crate::api::wire::Health;
use crate::cli::arguments::ListArguments;
use crate::cli::exit::{Exit, Failure};
use crate::cli::render;

impl Session<'_> {
    /// `status`: every cluster, unless one is named.
    pub(super) async fn status(&mut self, cluster: Option<&str>, check: bool) -> Result<Exit, Failure> {
        let names = match cluster {
            Some(_) => vec![self.cluster(cluster).await?],
            None => self.client.clusters().await?,
        };
        if names.is_empty() {
            return Err(Failure::new(Exit::NotFound, "the controller keeps no cluster"));
        }
        let mut found = Vec::new();
        for name in &names {
            found.push(self.client.status(name).await?);
        }
        // A list only where several were found: with one cluster the document is the wire's.
        let raw = if found.len() == 1 {
            found[0].raw.clone()
        } else {
            Value::Array(found.iter().map(|document| document.raw.clone()).collect())
        };
        self.emit(&raw, |look| {
            let texts: Vec<String> =
                found.iter().map(|document| render::status::render(&document.value, look)).collect();
            texts.join(if look.terminal { "\n" } else { "" })
        })?;
        if !check {
            return Ok(Exit::Done);
        }
        let worst = found.iter().map(|document| verdict(document.value.health)).max_by_key(|exit| exit.code());
        Ok(worst.unwrap_or(Exit::Done))
    }

    /// `explain`: a cluster, or one node wherever it is, or an operation.
    pub(super) async fn explain(&mut self, subject: Option<&str>) -> Result<Exit, Failure> {
        let clusters = self.client.clusters().await?;
        let named = subject.is_some_and(|subject| clusters.iter().any(|cluster| cluster == subject));
        if subject.is_none() || named {
            let cluster = self.cluster(subject).await?;
            let explanation = self.client.explain(&cluster).await?;
            self.emit(&explanation.raw, |look| render::explain::render(&explanation.value, look))?;
            return Ok(Exit::Done);
        }
        let subject = subject.unwrap_or_default();
        let mut known = clusters.clone();
        for cluster in &clusters {
            let explanation = self.client.explain(cluster).await?;
            if let Some(index) = explanation.value.nodes.iter().position(|node| node.node.as_str() == subject) {
                let node = &explanation.value.nodes[index];
                let raw = explanation.raw["nodes"][index].clone();
                self.emit(&raw, |look| render::explain::node(node, look))?;
                return Ok(Exit::Done);
            }
            known.extend(explanation.value.nodes.iter().map(|node| node.node.to_string()));
        }
        match self.client.operation(operation_id(subject)?).await.map_err(Failure::from) {
            Ok(found) => {
                self.emit(&found.raw, |look| render::operation::explained(&found.value, look))?;
                Ok(Exit::Done)
            }
            Err(failure) if failure.exit == Exit::NotFound => {
                let known = known.join(", ");
                let message = format!(
                    "{subject} is neither a cluster, nor a node, nor an operation of this controller; it knows {known}"
                );
                Err(Failure::new(Exit::NotFound, message).advise("stormglass operation list"))
            }
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn backups(&mut self, cluster: Option<&str>) -> Result<Exit, Failure> {
        let cluster = self.cluster(cluster).await?;
        let list = self.client.backups(&cluster).await?;
        self.emit(&list.raw, |look| render::backups::render(&list.value, look))?;
        Ok(Exit::Done)
    }

    /// `doctor`: fails where the next fault may not be survived.
    pub(super) async fn doctor(&mut self, cluster: Option<&str>) -> Result<Exit, Failure> {
        let cluster = self.cluster(cluster).await?;
        let found = self.client.doctor(&cluster).await?;
        self.emit(&found.raw, |look| render::doctor::render(&found.value, look))?;
        Ok(if found.value.survives { Exit::Done } else { Exit::Degraded })
    }

    pub(super) async fn history(&mut self, list: &ListArguments) -> Result<Exit, Failure> {
        let cluster = self.cluster(list.cluster.as_deref()).await?;
        let found = self.client.history(&cluster, list.limit).await?;
        self.emit(&found.raw, |look| render::lists::operations(&found.value, look))?;
        Ok(Exit::Done)
    }

    pub(super) async fn operations(&mut self, list: &ListArguments) -> Result<Exit, Failure> {
        let cluster = self.cluster(list.cluster.as_deref()).await?;
        let found = self.client.operations(&cluster, list.limit).await?;
        self.emit(&found.raw, |look| render::lists::operations(&found.value, look))?;
        Ok(Exit::Done)
    }

    pub(super) async fn events(&mut self, list: &ListArguments) -> Result<Exit, Failure> {
        let cluster = self.cluster(list.cluster.as_deref()).await?;
        let found = self.client.events(&cluster, list.limit).await?;
        self.emit(&found.raw, |look| render::lists::events(&found.value, look))?;
        Ok(Exit::Done)
    }

    /// `operation show --report`: Markdown also in a pipe, because it is made to be pasted.
    pub(super) async fn operation_report(&mut self, id: &str) -> Result<Exit, Failure> {
        let found = self.client.report(operation_id(id)?).await?;
        self.emit(&found.raw, |_| found.value.to_markdown())?;
        Ok(Exit::Done)
    }

    pub(super) async fn operation_show(&mut self, id: &str) -> Result<Exit, Failure> {
        let found = self.client.operation(operation_id(id)?).await?;
        self.emit(&found.raw, |look| render::operation::render(&found.value, look))?;
        Ok(Exit::Done)
    }
}

/// What `status --check` says. Not to know who is primary is as bad as having none.
fn verdict(health: Health) -> Exit {
    match health {
        Health::Healthy => Exit::Done,
        Health::Degraded => Exit::Degraded,
        Health::NoPrimary | Health::Unknown => Exit::NoPrimary,
    }
}

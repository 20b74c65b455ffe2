//! `token` and `audit`: who may ask, and who asked.

use serde_json::{Value, json};

use super::Session;
use super::mutate::lost_answer;
use crate::api::audit;
use crate::api::tokens::TokenDocument;
use crate::cli::arguments::{AuditCommand, TokenCommand};
use crate::cli::exit::{Exit, Failure};
use crate::cli::render::{self, words};
use crate::domain::ids::ClusterName;
use crate::domain::trail::AuditEntry;

impl Session<'_> {
    pub(super) async fn token(&mut self, command: TokenCommand) -> Result<Exit, Failure> {
        match command {
            TokenCommand::Create { name, role, clusters, expires_in } => {
                for cluster in &clusters {
                    ClusterName::new(cluster.as_str()).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
                }
                let body = json!({
                    "name": name,
                    "role": role,
                    "clusters": clusters,
                    "expires_in_seconds": expires_in.map(|duration| duration.as_secs()),
                });
                if self.global.dry_run {
                    let scope = if clusters.is_empty() { "every cluster".to_owned() } else { clusters.join(", ") };
                    let ends = expires_in.map(|length| format!(", which ends after {}", words::span(length)));
                    let (role, ends) = (role.label(), ends.unwrap_or_default());
                    self.emit(&body, |_| format!("would make the token {name} with role {role} for {scope}{ends}\n"))?;
                    return Ok(Exit::Done);
                }
                let reply = self.client.post("/api/v1/tokens", &body).await.map_err(|error| {
                    let look = format!("stormglass token list; if {name} is there, revoke it: its secret is lost");
                    lost_answer(error, &look)
                })?;
                let secret = reply["secret"].as_str().unwrap_or_default().to_owned();
                self.emit(&reply, |_| secret + "\n")?;
                let expires = reply["token"]["expires"].as_str().map(|at| format!("; it ends at {at}"));
                self.console.note(&format!(
                    "Token {name} with role {} was made{}. It is shown this once.\n",
                    role.label(),
                    expires.unwrap_or_default()
                ));
            }
            TokenCommand::List => {
                let raw = self.client.get("/api/v1/tokens").await?;
                let tokens: Vec<TokenDocument> = understood(&raw)?;
                self.emit(&raw, |look| render::lists::tokens(&tokens, look))?;
            }
            TokenCommand::Revoke { name } => {
                let good =
                    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
                if !good {
                    return Err(Failure::new(Exit::Usage, format!("{name:?} is no name of a token"))
                        .advise("stormglass token list"));
                }
                let plan = format!("Will     end the token {name}: whoever uses it is refused at once\n");
                let raw = json!({ "name": name, "message": plan.trim_start_matches("Will").trim() });
                if self.global.dry_run {
                    self.emit(&raw, |_| plan)?;
                    return Ok(Exit::Done);
                }
                self.confirm(&raw, &plan, None).await?;
                let reply = self.client.post(&format!("/api/v1/tokens/{name}/revoke"), &json!({})).await;
                let reply = reply.map_err(|error| lost_answer(error, "stormglass token list"))?;
                let message = reply["message"].as_str().unwrap_or_default().to_owned();
                self.emit(&reply, |_| message + "\n")?;
            }
        }
        Ok(Exit::Done)
    }

    pub(super) async fn audit(&mut self, command: AuditCommand) -> Result<Exit, Failure> {
        match command {
            AuditCommand::List { limit } => {
                let entries = self.audit_rows(limit).await?;
                let raw = Value::Array(entries.iter().map(|entry| json!(entry)).collect());
                self.emit(&raw, |look| render::lists::audit(&entries, look))?;
            }
            AuditCommand::Export => {
                for entry in self.audit_rows(usize::MAX).await?.iter().rev() {
                    self.console.print(&format!("{}\n", json!(entry)))?;
                }
            }
            AuditCommand::Verify { file, expect } => {
                let entries = match file {
                    Some(file) => {
                        let text = std::fs::read_to_string(&file)
                            .map_err(|error| Failure::new(Exit::Usage, format!("read {}: {error}", file.display())))?;
                        audit::parse_lines(&text).map_err(|problem| {
                            Failure::new(Exit::Failed, format!("{} is no export: {problem}", file.display()))
                        })?
                    }
                    None => {
                        let mut entries = self.audit_rows(usize::MAX).await?;
                        entries.reverse();
                        entries
                    }
                };
                return self.verify(&entries, expect.as_deref());
            }
        }
        Ok(Exit::Done)
    }

    fn verify(&mut self, entries: &[AuditEntry], expect: Option<&str>) -> Result<Exit, Failure> {
        let verified = audit::verify(entries)
            .map_err(|broken| Failure::new(Exit::Failed, format!("the audit log was tampered with: {broken}")))?;
        if let Some(expect) = expect {
            let there = entries.iter().any(|entry| format!("{}:{}", entry.number, entry.hash) == expect);
            if !there {
                let message =
                    format!("row {expect} is not in the log: the newest rows were cut off, or the log was made anew");
                return Err(Failure::new(Exit::Failed, message));
            }
        }
        let raw = json!({
            "rows": verified.rows,
            "unchained": verified.unchained,
            "first": verified.first,
            "last": verified.last,
            "head": verified.head,
        });
        self.emit(&raw, |_| {
            let mut text = format!(
                "{} rows, {} to {}: none was changed, taken out or put in\nhead {}:{}\n",
                verified.rows, verified.first, verified.last, verified.last, verified.head
            );
            if verified.unchained > 0 {
                text.push_str(&format!("{} older rows are not in the chain\n", verified.unchained));
            }
            text
        })?;
        Ok(Exit::Done)
    }

    /// The newest rows, newest first, page by page.
    async fn audit_rows(&mut self, limit: usize) -> Result<Vec<AuditEntry>, Failure> {
        let mut entries: Vec<AuditEntry> = Vec::new();
        let mut path = Some(format!("/api/v1/audit?limit={}", limit.clamp(1, 1000)));
        while let Some(next) = path.take().filter(|_| entries.len() < limit) {
            let (raw, following) = self.client.page(&next).await?;
            entries.extend(understood::<Vec<AuditEntry>>(&raw)?);
            path = following;
        }
        entries.truncate(limit);
        Ok(entries)
    }
}

fn understood<T: serde::de::DeserializeOwned>(raw: &Value) -> Result<T, Failure> {
    T::deserialize(raw).map_err(|error| {
        Failure::new(Exit::ControllerError, format!("the answer is not understood, versions may differ: {error}"))
    })
}

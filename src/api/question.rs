//! A request whose head has been read: what it is about, who brings it, and the row that it leaves in the audit log.
//!
//! Whether it may be asked is not judged here, but that an agent speaks for itself.

use std::net::SocketAddr;

use axum::http::request::Parts;

use super::authentication::presented_token;
use super::mutation::Done;
use super::routes::Route;
use super::wire::Problem;
use crate::domain::certificate::Holder;
use crate::domain::clock::WallTime;
use crate::domain::ids::ClusterName;
use crate::domain::trail::AuditRow;

/// What a request is about, once its head has been read.
pub(super) struct Question {
    pub route: &'static Route,
    /// Name and value of every parameter of the path.
    pub parameters: Vec<(String, String)>,
    pub peer: SocketAddr,
    /// Whose certificate the connection showed.
    pub holder: Option<Holder>,
    pub parts: Parts,
}

impl Question {
    /// The first parameter of the path: the cluster, the operation; empty where there is none.
    pub(super) fn target(&self) -> &str {
        self.parameters.first().map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// What is asked about, for the audit log.
    pub(super) fn subject(&self) -> String {
        self.parameters.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// The second parameter of the path; empty where there is none.
    pub(super) fn second(&self) -> &str {
        self.parameters.get(1).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// An agent that shows its certificate in place of the token speaks for itself only.
    pub(super) fn require_speaker(&self, reported: &str) -> Result<(), Problem> {
        let Some(holder) = self.holder.as_ref().filter(|_| presented_token(&self.parts.headers).is_none()) else {
            return Ok(());
        };
        if holder.name.as_str() == reported {
            return Ok(());
        }
        Err(Problem::forbidden(format!(
            "the certificate is that of {holder}, the report is of {reported}: issue one for {reported}"
        )))
    }

    pub(super) fn require_cluster(&self, reported: &ClusterName) -> Result<(), Problem> {
        if reported.as_str() == self.target() {
            return Ok(());
        }
        Err(Problem::refused(
            format!(
                "the report is of cluster {reported}, the address of cluster {:?}: check the agent's configuration",
                self.target()
            ),
            Vec::new(),
        ))
    }

    /// The row that a mutation leaves.
    pub(super) fn row(&self, wall: WallTime, who: &str, request: &str, result: &Result<Done, Problem>) -> AuditRow {
        let outcome = match result {
            Ok(done) => format!("accepted: {}", done.message),
            Err(problem) => {
                let word = match problem.status {
                    504 => "unknown",
                    500..=599 => "failed",
                    _ => "refused",
                };
                format!("{word} ({}): {}", problem.status, problem.detail)
            }
        };
        let target = printable(&self.subject());
        let words = [self.route.verb, target.as_str(), request];
        let what = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        AuditRow { wall, who: who.to_owned(), from: self.peer.to_string(), what, outcome }
    }
}

/// A path parameter for the audit log: one line, not endless.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(80).collect()
}

//! The agent as its HTTP routes see it.

use std::time::Duration;

use async_trait::async_trait;

use super::Agent;
use crate::api::agent::health::NodeSnapshot;
use crate::api::agent::{AgentHandler, AssignmentRefused};
use crate::domain::backup::Repository;
use crate::domain::command::{AssignedRole, Assignment, CommandEnvelope, CommandReply, PromiseReply, PromiseRequest};
use std::sync::Arc;

/// The heartbeat loop turns several times a second; after this it hangs.
const ALIVE_FOR: Duration = Duration::from_secs(30);

#[async_trait]
impl AgentHandler for Arc<Agent> {
    async fn command(&self, envelope: CommandEnvelope, wait: Duration) -> CommandReply {
        let state = self.run_command(envelope, wait).await;
        CommandReply { state, report: Some(Box::new(self.report())) }
    }

    async fn assign(&self, assignment: Assignment) -> Result<(), AssignmentRefused> {
        self.take_assignment(assignment).await
    }

    async fn promise(&self, request: PromiseRequest) -> PromiseReply {
        self.give_promise(&request).await
    }

    async fn backups(&self) -> Result<Repository, String> {
        Agent::backups(self).await
    }

    fn snapshot(&self) -> NodeSnapshot {
        let (primary, is_synchronous) = self.keeper.read(|memory| {
            let Some(assignment) = &memory.assignment else { return (None, None) };
            let primary = match &assignment.role {
                AssignedRole::Primary { .. } => Some((self.settings.node.clone(), self.settings.address.clone())),
                AssignedRole::Standby { primary, primary_address } => Some((primary.clone(), primary_address.clone())),
                AssignedRole::Fenced => None,
            };
            (primary, Some(assignment.eligible.contains(&self.settings.node)))
        });
        let (controller_seen, turned_at, position) = {
            let local = self.local();
            (local.controller_seen, local.turned_at, local.primary_position)
        };
        NodeSnapshot {
            report: self.report(),
            primary,
            is_synchronous,
            primary_position: position.map(|(lsn, heard)| (lsn, self.now().since(heard))),
            controller_seen,
            is_alive: self.now().since(turned_at) < ALIVE_FOR,
        }
    }

    fn metrics(&self) -> String {
        self.metrics_text()
    }
}

//! How a controller reaches agents.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::backup::Repository;
use crate::domain::command::{Assignment, CommandEnvelope, CommandReply, ProxyAssignment, ProxyReply};
use crate::domain::ids::{Address, NodeName, ProxyName};

/// Why a message to an agent brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Certainly not delivered: refused connection, unknown host, unknown name.
    #[error("reach the agent of {agent} at {url}: {problem}")]
    Unreachable {
        /// Node or proxy.
        agent: String,
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// Perhaps delivered, perhaps done: no answer in time, or the connection broke.
    #[error("no answer from the agent of {agent} at {url}: {problem}")]
    Unknown {
        /// Node or proxy.
        agent: String,
        /// Where it was asked.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// The agent answered that it does not take this (wrong token, malformed).
    #[error("the agent of {agent} at {url} rejected the message: {problem}")]
    Rejected {
        /// Node or proxy.
        agent: String,
        /// Where it was asked.
        url: String,
        /// What it said.
        problem: String,
    },
}

/// Reaches agents of database hosts.
#[async_trait]
pub trait NodeControl: Send + Sync {
    /// Sends a command and waits up to `timeout`; repeating an envelope is harmless.
    async fn command(
        &self,
        node: &NodeName,
        envelope: &CommandEnvelope,
        timeout: Duration,
    ) -> Result<CommandReply, ControlError>;

    /// Pushes an assignment, so that the node need not wait for its next heartbeat.
    async fn assign(&self, node: &NodeName, assignment: &Assignment, timeout: Duration) -> Result<(), ControlError>;

    /// What the node's agent finds in the backup repository.
    async fn backups(&self, node: &NodeName, timeout: Duration) -> Result<Repository, ControlError> {
        let problem = format!("no backups here, not within {timeout:?} either");
        Err(ControlError::Rejected { agent: node.to_string(), url: String::new(), problem })
    }
}

/// Reaches agents of proxy hosts.
#[async_trait]
pub trait ProxyControl: Send + Sync {
    /// Pushes an assignment and waits until it is in force.
    async fn assign(
        &self,
        proxy: &ProxyName,
        assignment: &ProxyAssignment,
        timeout: Duration,
    ) -> Result<ProxyReply, ControlError>;

    /// Sends a command (`VerifyWrite`).
    async fn command(
        &self,
        proxy: &ProxyName,
        envelope: &CommandEnvelope,
        timeout: Duration,
    ) -> Result<CommandReply, ControlError>;
}

/// Knocks at the primary's PostgreSQL itself, past its agent.
#[async_trait]
pub trait PrimaryProbe: Send + Sync {
    /// A new connection to `address` that PostgreSQL itself answers within `timeout`. Nothing is asked of a database, and no login is
    /// needed. An error says why nobody answered.
    async fn probe(&self, address: &Address, timeout: Duration) -> Result<(), String>;
}

//! The way to people: one message at a time.

use async_trait::async_trait;

use crate::domain::notification::Message;

/// Why a message did not go out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// Said no, and would again.
    #[error("{0}")]
    Refused(String),
    /// Not now, or nobody knows: the same message may be sent again.
    #[error("{0}")]
    Failed(String),
}

/// One channel to people. A message that is sent twice carries the same identity.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Sends a message; returns within a bounded time.
    async fn send(&self, message: &Message) -> Result<(), NotifyError>;
}

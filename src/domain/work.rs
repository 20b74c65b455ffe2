//! What a primary's clients get done, and what they wait for.
//!
//! Plain data, as PostgreSQL tells it; what is usual, and what is too much, is decided elsewhere.

use serde::{Deserialize, Serialize};

/// Clients at work at this moment, without the agent's own sessions, and what was done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkReport {
    /// Clients in the middle of a statement.
    pub active: u32,
    /// Of these, who waits until WAL is written and flushed here: for the disk, or for those who are before them.
    pub waiting_for_wal: u32,
    /// Transactions committed since the statistics were reset.
    pub commits: u64,
    /// What the statements of all sessions took, all together: `active_time`, which PostgreSQL has from 14 on.
    #[serde(default)]
    pub statement_milliseconds: Option<u64>,
    /// Transactions that had something to write, since the cluster was made: the newest transaction id.
    #[serde(default)]
    pub writes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_before_told_less() {
        let told: WorkReport = serde_json::from_str(r#"{"active":8,"waiting_for_wal":3,"commits":480}"#).expect("read");
        let known =
            WorkReport { active: 8, waiting_for_wal: 3, commits: 480, statement_milliseconds: None, writes: None };
        assert_eq!(told, known);
    }
}

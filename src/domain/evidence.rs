//! Which witness said what when: what was known when an operation was decided, and when it passed a point that it rests on.
//!
//! For people, after the fact: no decision is ever made on it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clock::{Moment, WallTime};
use super::ids::NodeName;

/// How many observations an operation keeps: three occasions in a cluster of ten nodes. What comes later is dropped, and said to be.
pub const OBSERVATIONS_MAX: usize = 96;

/// When the witnesses were heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// The operation was begun.
    Decided,
    /// The old primary is certainly unable to write: what proves it.
    Fenced,
    /// Just before the point of no return, once WAL receivers stand still.
    Promoted,
    /// Of a newer version.
    #[serde(other)]
    Other,
}

impl Occasion {
    /// The word in documents.
    pub fn label(self) -> &'static str {
        match self {
            Occasion::Decided => "decided",
            Occasion::Fenced => "fenced",
            Occasion::Promoted => "promoted",
            Occasion::Other => "other",
        }
    }
}

/// What kind of witness speaks. A version that does not know one reads it as [`Witness::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// The agent of the node: state, probes, lease.
    Agent,
    /// A standby's WAL receiver: does the primary still send?
    WalReceiver,
    /// A standby's promise not to be promoted while the primary's lease runs.
    Promise,
    /// The controller's own books: its last grant, the wait, the proof.
    Controller,
    /// A proxy's agent: where clients' writes lead.
    Proxy,
    /// Of a newer version.
    #[serde(other)]
    Other,
}

impl Witness {
    /// The word in documents.
    pub fn label(self) -> &'static str {
        match self {
            Witness::Agent => "agent",
            Witness::WalReceiver => "wal_receiver",
            Witness::Promise => "promise",
            Witness::Controller => "controller",
            Witness::Proxy => "proxy",
            Witness::Other => "other",
        }
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.label().replace('_', " "))
    }
}

/// One statement of one witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Observation {
    /// On the clock of the controller that heard it.
    pub at: Moment,
    /// For people.
    pub wall: WallTime,
    /// When in the operation.
    pub occasion: Occasion,
    /// What kind of witness.
    pub witness: Witness,
    /// Whose word it is: a node, a proxy, `controller`.
    pub source: String,
    /// The node that it is about.
    pub node: NodeName,
    /// What was said, with the age of the word.
    pub statement: String,
}

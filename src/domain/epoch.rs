//! Epoch and record number: the two numbers that only ever grow.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The number of the current right to accept writes. Zero: nobody was ever given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// How far both numbers go on where some node was never heard: more than a controller that is lost with it can have given out unheard.
const UNHEARD: u64 = 1_000_000;

impl Epoch {
    /// Beyond every epoch that was given out without this one's witnesses hearing of it.
    pub fn beyond_unheard(self) -> Epoch {
        Epoch(self.0.checked_add(UNHEARD).expect("an epoch cannot reach 2^64"))
    }

    /// The epoch after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("an epoch is raised by promotions and cannot reach 2^64"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// Raised by every change of the cluster's record; a change made on an older number is ignored
/// (design, rule 2; trace `failover_swap_overtaken_by_shrink_then_growth`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct RecordNumber(pub u64);

impl RecordNumber {
    /// Beyond every number that was stored without this one's witnesses hearing of it.
    pub fn beyond_unheard(self) -> RecordNumber {
        RecordNumber(self.0.checked_add(UNHEARD).expect("a record number cannot reach 2^64"))
    }

    /// The number after this one.
    pub fn next(self) -> RecordNumber {
        RecordNumber(self.0.checked_add(1).expect("a record changes too rarely to reach 2^64"))
    }
}

impl fmt::Display for RecordNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

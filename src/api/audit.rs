//! The audit log's chain, for those who read it over the API or in a file.
//!
//! How rows are chained is said once, in `telemetry::chain`.

use crate::domain::trail::AuditEntry;
pub use crate::telemetry::chain::{Broken, Verified, verify};

/// Understands an export: one row a line, oldest first. The error says which line is none.
pub fn parse_lines(text: &str) -> Result<Vec<AuditEntry>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1)))
        .collect()
}

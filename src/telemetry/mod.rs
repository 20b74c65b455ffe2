//! What the program says about itself: typed events, metrics, log lines.
//!
//! Says, and never decides; names that dashboards and scripts rely on stand here and nowhere else.

pub mod backup_metrics;
pub mod chain;
pub mod event;
pub mod logging;
pub mod metrics;
pub mod notification;
mod sentence;

pub use event::{Event, Severity};
pub use metrics::ControllerMetrics;

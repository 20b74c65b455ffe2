//! Plain data of the field, with invariants in constructors.
//!
//! Nothing here waits, reads a clock, opens a file or knows another room. Every type that crosses a process
//! boundary derives serde; its field names are therefore a contract between versions.

pub mod access;
pub mod alert;
pub mod backup;
pub mod certificate;
pub mod clock;
pub mod command;
pub mod control_group;
pub mod epoch;
pub mod evidence;
pub mod feature;
pub mod ids;
pub mod incident;
mod incident_text;
pub mod lease;
pub mod loss;
pub mod lsn;
pub mod name;
pub mod notification;
pub mod operation;
pub mod plan;
pub mod policy;
pub mod proof;
pub mod rate;
pub mod readiness;
pub mod record;
pub mod report;
pub mod risk;
pub mod sequence;
pub mod sequence_step;
pub mod timing;
pub mod traffic;
pub mod trail;
pub mod training;
pub mod view;
pub mod witness;
pub mod work;

pub use clock::{Moment, WallTime};
pub use command::{AssignedRole, Assignment, Command, CommandEnvelope, CommandReply, CommandState};
pub use epoch::{Epoch, RecordNumber};
pub use ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SiteName, SystemIdentifier};
pub use lease::{Grant, LeaseTimers};
pub use lsn::{Lsn, Timeline};
pub use operation::{Operation, OperationKind, OperationStatus, StepEvent, StepName, StepState};
pub use plan::{Intent, Plan, Reason, ReasonCode};
pub use policy::{DurabilityMode, Policy, SyncScope};
pub use proof::Proof;
pub use record::ClusterRecord;
pub use report::Report;
pub use view::{Fact, NodeView, View};

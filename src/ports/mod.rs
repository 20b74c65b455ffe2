//! Traits for everything outside the process. Shells are written against these; `main.rs` wires the real
//! adapters in, tests and the simulator wire their own.
//!
//! No implementation enters here.

pub mod agent;
pub mod backup;
pub mod clock;
pub mod control;
pub mod definitions;
pub mod leadership;
pub mod metrics;
pub mod name;
pub mod notification;
pub mod postgres;
pub mod steps;
pub mod store;
pub mod traffic;
pub mod training;

pub use agent::{AgentMemory, ControllerLink, GuardLink, KillFamily, Memory, PeerLink};
pub use backup::BackupRepository;
pub use clock::Clock;
pub use control::{ControlError, NodeControl, PrimaryProbe, ProxyControl};
pub use definitions::{DefinitionError, DefinitionStore};
pub use leadership::{Leader, Leadership, Sole, Term};
pub use metrics::{MetricSource, ModelStore};
pub use name::{NameError, NameService, ServerAnswer};
pub use notification::{Notifier, NotifyError};
pub use postgres::LocalPostgres;
pub use store::{Card, Drawer, Page, Paged, Store, StoreError, Swap};
pub use traffic::{NodeHealth, ProxyControllerLink, ProxyMemory, TrafficRouter, WriteVerifier};
pub use training::Trainer;

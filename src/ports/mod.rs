//! Traits for everything outside the process. Shells are written against these; `main.rs` wires the real
//! adapters in, tests and the simulator wire their own.
//!
//! No implementation enters here.

pub mod clock;
pub mod control;
pub mod store;

pub use clock::Clock;
pub use control::{ControlError, NodeControl, ProxyControl};
pub use store::{Store, StoreError, Swap};

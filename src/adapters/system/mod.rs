//! The host: its clocks, and the processes of one PostgreSQL.
//!
//! What never enters: SQL, files on disk. All that is read here is `/proc`, so that a stalled disk stops nothing.

mod clock;
mod exit;
pub mod family;
pub mod priority;

pub use clock::{SystemClock, boot_time};
pub use exit::wait_for_exit;
pub use family::Family;

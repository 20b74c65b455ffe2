//! The host: its clocks, its memory, and the processes of one PostgreSQL.
//!
//! What never enters: SQL, files on disk. All that is read here is the kernel's own (`/proc`, `/sys`), so that a stalled disk stops nothing.

mod clock;
mod exit;
pub mod family;
pub mod memory;
pub mod priority;

pub use clock::{SystemClock, boot_time};
pub use exit::wait_for_exit;
pub use family::Family;

//! The name that clients connect to: RFC 2136 updates with TSIG, and Route 53. What authoritative servers answer is asked with
//! hickory, which is what trust-dns became.
//!
//! What the name shall be is never decided here.

pub mod rfc2136;
pub mod route53;
mod wire;

pub use rfc2136::{Rfc2136, Rfc2136Settings, TsigKey};
pub use route53::{Route53, Route53Settings};

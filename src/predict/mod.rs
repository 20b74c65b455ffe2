//! From samples to risk: pure arithmetic on numbers that others collected.
//!
//! What lives here: [`lstm`] the network, [`weights`] named tensors from and to bytes.
//! What never enters: a clock, files, the network, `async`, randomness (a seed's numbers are passed in), and decisions.

pub mod lstm;
pub mod weights;

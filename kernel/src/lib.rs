//! The arithmetic of one LSTM layer: a step, a window, and back through time.
//!
//! What lives here: plain slices of numbers in, plain slices out; products in tiles of registers with the gates applied while
//! they are still in registers; the instruction set is chosen when the program runs, so one binary runs on every x86-64.
//! It is a package of its own so that debug builds optimise it (`[profile.dev.package]`); `predict::lstm` alone uses it.
//! What never enters: names of tensors, files, candle, anything of PostgreSQL; and no `unsafe`.
//!
//! Formulas (gates in PyTorch's order i, f, g, o; `σ` the logistic function; Hochreiter & Schmidhuber 1997 with forget gates):
//! `i, f, o = σ(W x + U h + b)`, `g = tanh(W x + U h + b)`, `c' = f c + i g`, `h' = o tanh(c')`.

mod activation;
mod aligned;
mod backward;
mod dispatch;
mod forward;
mod layer;
mod product;

pub use backward::{BackwardScratch, Gradients};
pub use dispatch::instruction_set;
pub use forward::State;
pub use layer::Layer;

//! The command line without a process around it: rendering, and commands against a scripted controller.

#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/contract.rs"]
mod contract;
#[path = "cli/controller.rs"]
mod controller;
#[path = "cli/documents.rs"]
mod documents;
#[path = "cli/outcomes.rs"]
mod outcomes;
#[path = "cli/rendering.rs"]
mod rendering;

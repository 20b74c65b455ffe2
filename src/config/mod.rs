//! Configuration: file, then environment, then flag; validated once, before anything starts.
//!
//! No default here hides a missing secret, and no secret is ever held in a configuration file itself.

pub mod agent;
pub mod controller;
pub mod duration;
pub mod secret;

pub use agent::AgentConfig;
pub use controller::ControllerConfig;
pub use secret::SecretReference;

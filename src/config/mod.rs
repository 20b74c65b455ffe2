//! Configuration: file, then environment, then flag; validated once, before anything starts.
//!
//! No default here hides a missing secret, and no secret is ever held in a configuration file itself.

pub mod agent;
pub mod backup;
pub mod controller;
pub mod dns;
mod document;
pub mod duration;
pub mod effective;
pub mod environment;
pub mod error;
pub mod features;
pub mod load;
pub mod notification;
pub mod oidc;
pub mod predictor;
pub mod schema;
pub mod secret;
pub mod sequence;
pub mod store;
pub mod terraform;
pub mod tls;
pub mod traffic;
mod validate;
pub mod webhook;

pub use agent::AgentConfig;
pub use controller::ControllerConfig;
pub use error::ConfigError;
pub use load::{AnyConfig, load_agent, load_any, load_controller, load_controller_text, read_any};
pub use secret::SecretReference;

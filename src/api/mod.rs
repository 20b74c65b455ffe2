//! The HTTP contract: wire types, routes, authentication, client.
//!
//! Never decides: a route turns a request into a question for a handler trait and the answer into JSON.

pub mod agent;
pub mod audit;
pub mod authentication;
pub mod body;
pub mod client;
pub mod clusters;
pub mod controller;
pub mod entrance;
mod idempotency;
pub mod limits;
pub mod listing;
mod mutation;
pub mod notifications;
pub mod openapi;
pub mod openid;
pub mod problem;
mod question;
pub mod rendered;
pub mod requests;
pub mod risk;
pub mod router;
pub mod routes;
pub mod server;
mod stream;
pub mod tokens;
pub mod webhook;
pub mod wire;

//! The HTTP contract: wire types, routes, authentication, client.
//!
//! Never decides: a route turns a request into a question for a handler trait and the answer into JSON.

pub mod wire;

//! The name services against real servers: BIND, Knot, and moto's Route 53.

mod conversations;
mod errors;
mod route53;
mod server;

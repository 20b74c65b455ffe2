//! Stormglass keeps a PostgreSQL cluster writable.
//!
//! The rooms, in the order in which data flows through them; `docs/ARCHITECTURE.md` has a paragraph for each:
//! [`domain`] words as data · [`predict`] samples → risk · [`decide`] view → plan · [`operate`] operation → next step ·
//! [`ports`] traits for the outside · [`telemetry`] events, metrics, logging · [`api`] wire types and routes · [`config`] files to validated settings ·
//! [`adapters`] the real outside · [`controller`] and [`agent`] the shells · [`cli`] · [`lab`].
//! What never enters: anything that is not a room.

pub mod adapters;
pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod controller;
pub mod decide;
pub mod domain;
pub mod lab;
pub mod operate;
pub mod ports;
pub mod predict;
pub mod telemetry;

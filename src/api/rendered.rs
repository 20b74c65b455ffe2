//! A document that many ask for at the same moment: made once, and once turned into JSON.
//!
//! Nothing here decides how long it may be shown.

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

use super::wire::Problem;

/// A document with its text.
#[derive(Debug)]
pub struct Rendered<T> {
    /// What it says.
    pub document: T,
    json: Bytes,
}

impl<T: Serialize> Rendered<T> {
    /// Writes it down.
    pub fn of(document: T) -> Result<Self, Problem> {
        let json = serde_json::to_vec(&document).map_err(|error| Problem::internal(error.to_string()))?;
        Ok(Self { document, json: Bytes::from(json) })
    }
}

impl<T> Rendered<T> {
    /// The answer to one who asked.
    pub fn answer(&self) -> Response {
        ([(CONTENT_TYPE, "application/json")], self.json.clone()).into_response()
    }
}

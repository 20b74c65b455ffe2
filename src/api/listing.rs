//! Lists, page by page: `limit` and `before` in the query, the way to the next page in the header `Link` (RFC 8288).
//!
//! A cursor is opaque to callers: what it means is the store's affair.

use axum::Json;
use axum::extract::Query;
use axum::http::header::LINK;
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::wire::Problem;

/// Rows of a list if the caller does not say.
const LIST_LENGTH_DEFAULT: usize = 100;
/// Rows of a list at most.
pub const LIST_LENGTH_MAX: usize = 1000;

/// Rows, newest first, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// `None`: there is nothing older.
    pub next: Option<u64>,
}

/// Largest place: the largest whole number that every JSON reader keeps exactly.
pub const PLACE_MAX: u64 = (1 << 53) - 1;

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Rows at most.
    pub limit: usize,
    /// Only rows before this place.
    pub before: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<usize>,
    before: Option<u64>,
}

impl Wanted {
    /// Reads the query of a list; other routes take no query at all.
    pub fn of(uri: &Uri) -> Result<Self, Problem> {
        let Query(query) = Query::<ListQuery>::try_from_uri(uri)
            .map_err(|error| Problem::bad_request(format!("the query is not understood: {error}")))?;
        if query.before.is_some_and(|place| place > PLACE_MAX) {
            return Err(Problem::bad_request(format!("before must be from 0 to {PLACE_MAX}")));
        }
        match query.limit.unwrap_or(LIST_LENGTH_DEFAULT) {
            limit @ 1..=LIST_LENGTH_MAX => Ok(Self { limit, before: query.before }),
            limit => Err(Problem::bad_request(format!("limit is {limit}; it must be from 1 to {LIST_LENGTH_MAX}"))),
        }
    }
}

impl<T: Serialize> Listing<T> {
    /// The answer, with a link to the next page if there is one.
    pub fn into_answer(self, uri: &Uri, limit: usize) -> Response {
        let mut response = Json(self.rows).into_response();
        if let Some(next) = self.next {
            let link = format!("<{}?limit={limit}&before={next}>; rel=\"next\"", uri.path());
            // A path that came in as a header line can go out as one.
            if let Ok(link) = HeaderValue::from_str(&link) {
                response.headers_mut().insert(LINK, link);
            }
        }
        response
    }
}

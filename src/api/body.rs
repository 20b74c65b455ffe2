//! Request bodies: bounded in size and time, JSON, and refused with what is wrong and where.
//!
//! Knows no route; agents may read their bodies with it too.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use futures_util::StreamExt;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use super::wire::Problem;

/// Longest body taken, in bytes. A report of a primary with a hundred standbys has less than a tenth of this.
pub const BODY_LENGTH_MAX: usize = 1024 * 1024;

/// What is read and thrown away after the limit, so that the sender, still writing, finds the answer and no reset.
const DRAIN_LENGTH_MAX: usize = 16 * BODY_LENGTH_MAX;

/// How much of an error is told: it may repeat a word of the body, however long.
const WORDS_LENGTH_MAX: usize = 400;

/// Up to here numbers with a point have no gaps.
const WHOLE_MAX: f64 = 9_007_199_254_740_991.0;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a body of at most `length_max` bytes.
pub async fn read(body: Body, length_max: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(body, length_max)).await {
        Ok(read) => read,
        Err(_) => Err(Problem::too_slow(format!("the body did not arrive within {BODY_TIMEOUT:?}"))),
    }
}

async fn collect(body: Body, length_max: usize) -> Result<Bytes, Problem> {
    let mut stream = body.into_data_stream();
    let mut collected = Vec::new();
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| Problem::bad_request(format!("the body broke off: {error}")))?;
        length += piece.len();
        if length > DRAIN_LENGTH_MAX {
            break;
        }
        if length <= length_max {
            collected.extend_from_slice(&piece);
        }
    }
    if length > length_max {
        return Err(Problem::too_large(format!("a body may have {length_max} bytes at most")));
    }
    Ok(collected.into())
}

/// Understands a body. An empty one counts as `{}`, so that requests without settings need none.
pub fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return serde_json::from_str("{}").map_err(|error| Problem::bad_request(format!("the body is empty: {error}")));
    }
    if !declares_json(headers) {
        return Err(Problem::unsupported_media_type("send the body with the header content-type: application/json"));
    }
    // serde would take an array for a struct, field by field in the order of our source code.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::bad_request("the body is not understood: expected a JSON object at line 1 column 1"));
    }
    serde_json::from_slice(body).map_err(|error| {
        // It repeats words of the body, and ends with their place.
        let words = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let words: String = words.strip_suffix(&place).unwrap_or(&words).chars().take(WORDS_LENGTH_MAX).collect();
        Problem::bad_request(format!("the body is not understood: {words}{place}"))
    })
}

/// A whole number, however it is written: JSON has one kind of number, and some languages write all of them with a point.
pub fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let written_with_point = || number.as_f64().filter(|it| it.fract() == 0.0 && (0.0..=WHOLE_MAX).contains(it));
    let whole =
        number.as_u64().filter(|it| *it as f64 <= WHOLE_MAX).or_else(|| written_with_point().map(|it| it as u64));
    whole.map(Some).ok_or_else(|| D::Error::custom(format!("expected a whole number, 0 or more, found {number}")))
}

fn declares_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}

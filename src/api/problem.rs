//! Problem documents: the one shape in which an error leaves the API (RFC 9457).
//!
//! A status is chosen by the constructor's name, so that a handler says what happened, never a number.

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::wire::{LeaderAddress, Problem};
use crate::domain::plan::Reason;

/// Media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Title of the one problem after which a client asks another controller.
const NOT_THE_LEADER: &str = "not the leader";

/// Title of the one problem that is neither done nor failed.
const OUTCOME_UNKNOWN: &str = "outcome unknown";

impl Problem {
    fn new(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            reasons: Vec::new(),
            leader: None,
        }
    }

    /// 400: what was sent cannot be understood. `detail` says what, where, and what is expected.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed request", detail)
    }

    /// 401: no token, or none that is known.
    pub fn unauthorised(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "not authenticated", detail)
    }

    /// 403: a known token whose role does not suffice.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not authorised", detail)
    }

    /// 404: no such cluster, node, operation or route.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not found", detail)
    }

    /// 405: the route knows other methods.
    pub fn method_not_allowed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", detail)
    }

    /// 408: the request did not arrive in time.
    pub fn too_slow(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request arrived too slowly", detail)
    }

    /// 409: a guard refused, with its reasons; nothing was changed.
    pub fn refused(detail: impl Into<String>, reasons: Vec<Reason>) -> Self {
        Self { reasons, ..Self::new(StatusCode::CONFLICT, "refused", detail) }
    }

    /// 413: the body is longer than the API takes.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body too large", detail)
    }

    /// 415: the body is not declared as JSON.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported media type", detail)
    }

    /// 422: an idempotency key that belongs to another request.
    pub fn key_used(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency key used before", detail)
    }

    /// 422: each field is well-formed, and together they say nothing.
    pub fn contradictory(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "contradictory request", detail)
    }

    /// 429: this caller asks too often.
    pub fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too many requests", detail)
    }

    /// 500: a fault of the controller itself; nothing is known to have changed.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "controller error", detail)
    }

    /// 503: not now, nothing was changed: not the leader, still starting, store out of reach.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }

    /// 503: another controller leads, as far as is known `leader`. Certainly nothing was changed.
    pub fn not_the_leader(detail: impl Into<String>, leader: Option<LeaderAddress>) -> Self {
        Self { leader: leader.map(Box::new), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, NOT_THE_LEADER, detail) }
    }

    /// True for [`Problem::not_the_leader`], however it travelled.
    pub fn is_not_the_leader(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE.as_u16() && self.title == NOT_THE_LEADER
    }

    /// 504: it may have happened. `detail` names the operation to look at.
    pub fn unknown_outcome(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, OUTCOME_UNKNOWN, detail)
    }

    /// True for [`Problem::unknown_outcome`], however it travelled.
    pub fn is_unknown_outcome(&self) -> bool {
        self.status == StatusCode::GATEWAY_TIMEOUT.as_u16() && self.title == OUTCOME_UNKNOWN
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"stormglass\""));
        }
        response
    }
}

//! Idempotency keys: a change that is sent twice under one key is made once, and answered twice.
//!
//! The key belongs to its caller and to the very request: the same key with another body is an error, never another change.

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::controller::ControllerHandler;
use super::mutation::Done;
use super::wire::Problem;

/// The header that carries the key.
pub const KEY_HEADER: &str = "idempotency-key";
/// The header that says that an answer was given before.
pub const REPLAYED_HEADER: &str = "idempotency-replayed";
/// Longest key.
const KEY_LENGTH_MAX: usize = 255;

/// What is remembered of a request with a key.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Hash of method, path and body.
    request: String,
    /// The answer, once there is one.
    #[serde(default)]
    answer: Option<Answer>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Answer {
    Done { message: String, body: Value },
    Problem(Problem),
}

/// A key that a caller has sent with a request.
pub(super) struct Key {
    name: String,
    request: String,
}

/// What to do with a request that has a key.
pub(super) enum Claim {
    /// Nobody has asked before: go on, and [`Key::settle`] afterwards.
    First,
    /// Answered before.
    Replay(Result<Done, Problem>),
}

impl Key {
    /// The key of a request; `None` if it has none.
    pub fn of(headers: &HeaderMap, who: &str, path: &str, body: &[u8]) -> Result<Option<Self>, Problem> {
        let Some(given) = headers.get(KEY_HEADER) else { return Ok(None) };
        let good = given.to_str().ok().filter(|key| !key.is_empty() && key.len() <= KEY_LENGTH_MAX);
        let Some(key) = good else {
            return Err(Problem::bad_request(format!(
                "an idempotency key has 1 to {KEY_LENGTH_MAX} printable characters"
            )));
        };
        Ok(Some(Self { name: hash(&[who.as_bytes(), key.as_bytes()]), request: hash(&[path.as_bytes(), body]) }))
    }

    /// Takes the key for this request, or finds what was answered under it.
    pub async fn claim(&self, handler: &dyn ControllerHandler) -> Result<Claim, Problem> {
        let body = written(&Remembered { request: self.request.clone(), answer: None })?;
        let Some(known) = handler.claim_reply(&self.name, body).await? else { return Ok(Claim::First) };
        let known: Remembered = serde_json::from_str(&known)
            .map_err(|error| Problem::internal(format!("what was remembered of the idempotency key: {error}")))?;
        if known.request != self.request {
            return Err(Problem::key_used("the idempotency key was used for another request: take a new one"));
        }
        match known.answer {
            Some(Answer::Done { message, body }) => Ok(Claim::Replay(Ok(Done { message, body }))),
            Some(Answer::Problem(problem)) => Ok(Claim::Replay(Err(problem))),
            None => Err(Problem::refused(
                "the first request with this idempotency key has no answer yet, or its controller ended: look at the \
                 operations before you ask with a new key",
                Vec::new(),
            )),
        }
    }

    /// Remembers the answer. Where certainly nothing was changed and it may be asked again, the key is free again.
    pub async fn settle(&self, handler: &dyn ControllerHandler, result: &Result<Done, Problem>) {
        let answer = match result {
            Ok(done) => Answer::Done { message: done.message.clone(), body: without_secret(done.body.clone()) },
            Err(problem) if problem.status == 503 => return handler.keep_reply(&self.name, None).await,
            Err(problem) => Answer::Problem(problem.clone()),
        };
        match written(&Remembered { request: self.request.clone(), answer: Some(answer) }) {
            Ok(body) => handler.keep_reply(&self.name, Some(body)).await,
            Err(problem) => tracing::error!(detail = problem.detail, "the answer was not remembered"),
        }
    }
}

/// A secret is shown once, also to those who ask twice.
fn without_secret(mut body: Value) -> Value {
    if let Some(secret) = body.get_mut("secret") {
        *secret = Value::Null;
    }
    body
}

fn written(remembered: &Remembered) -> Result<String, Problem> {
    serde_json::to_string(remembered).map_err(|error| Problem::internal(error.to_string()))
}

fn hash(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

//! `http` steps: one request, with the key of the step in `Idempotency-Key`.

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::Prepared;
use crate::adapters::chain;
use crate::domain::sequence::StepAction;
use crate::ports::steps::StepError;

struct Call {
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Option<String>,
    expect: Vec<u16>,
}

fn call(prepared: &Prepared<'_>) -> Result<Call, StepError> {
    let StepAction::Http { method, url, headers, body, expect } = &prepared.run.step.action else {
        return Err(StepError::Failed("no request".to_owned()));
    };
    let failed = |text: String| StepError::Failed(text);
    let method = Method::from_bytes(prepared.text(method)?.to_uppercase().as_bytes())
        .map_err(|_| failed(format!("{method:?} is no HTTP method: check `method` of the step")))?;
    let mut sent = HeaderMap::new();
    sent.insert("idempotency-key", value("idempotency-key", &prepared.run.key)?);
    for (name, text) in headers {
        let header: HeaderName =
            name.parse().map_err(|_| failed(format!("{name:?} is no name of a header: check `headers`")))?;
        sent.insert(header, value(name, &prepared.secret(text)?)?);
    }
    Ok(Call {
        method,
        url: prepared.text(url)?,
        headers: sent,
        body: body.as_deref().map(|body| prepared.text(body)).transpose()?,
        expect: expect.clone(),
    })
}

fn value(name: &str, text: &str) -> Result<HeaderValue, StepError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| StepError::Failed(format!("the value of header {name} cannot be sent")))?;
    value.set_sensitive(true);
    Ok(value)
}

pub(super) fn preview(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let call = call(prepared)?;
    let body = call.body.map_or_else(String::new, |body| format!(", body {body}"));
    Ok(format!("{} {}{body}", call.method, call.url))
}

pub(super) async fn run(prepared: &Prepared<'_>) -> Result<String, StepError> {
    let call = call(prepared)?;
    let at = format!("{} {}", call.method, call.url);
    let client = reqwest::Client::builder()
        .timeout(prepared.timeout())
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| StepError::Failed(format!("prepare {at}: {error}")))?;
    let mut request = client.request(call.method, &call.url).headers(call.headers);
    if let Some(body) = call.body {
        request = request.body(body);
    }
    let answer = request.send().await.map_err(|error| {
        let words = format!("{at}: {}", chain(&error));
        if error.is_connect() || error.is_builder() { StepError::Failed(words) } else { StepError::Unknown(words) }
    })?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_else(|error| format!("(the body could not be read: {error})"));
    let is_good = if call.expect.is_empty() { status.is_success() } else { call.expect.contains(&status.as_u16()) };
    if is_good {
        return Ok(format!("{status}\n{text}"));
    }
    Err(StepError::Failed(format!("{at} was answered with {status}: check what is behind the URL\n{text}")))
}

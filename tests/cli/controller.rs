//! A controller that answers by script, on a free port.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use stormglass::cli::{Console, Exit, run_with};

/// What a request gets.
#[derive(Clone)]
pub struct Answer(pub u16, pub Value);

#[derive(Default)]
struct State {
    answers: BTreeMap<String, Vec<Answer>>,
    requests: Vec<(String, Value, Option<String>)>,
}

/// A scripted controller; ends with the test's runtime.
pub struct Controller {
    url: String,
    state: Arc<Mutex<State>>,
}

/// What a run of the command line left behind.
pub struct Ran {
    pub exit: u8,
    pub out: String,
    pub err: String,
}

impl Controller {
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let router = axum::Router::new().fallback(move |method, uri, headers, body| {
            let shared = Arc::clone(&shared);
            async move { answer(&shared, &method, &uri, &headers, &body) }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let controller = Self { url, state };
        controller.on("GET /api/v1/clusters", 200, json!({"schema_version": 1, "clusters": ["orders"]}));
        controller
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers `request` (method and path) so; several answers are given one after the other, the last one for ever.
    pub fn on(&self, request: &str, status: u16, body: impl serde::Serialize) {
        let body = serde_json::to_value(body).expect("plain data");
        let mut state = self.state.lock().expect("no panic");
        state.answers.entry(request.to_owned()).or_default().push(Answer(status, body));
    }

    /// Bodies of all requests of this kind.
    pub fn bodies(&self, request: &str) -> Vec<Value> {
        let state = self.state.lock().expect("no panic");
        state.requests.iter().filter(|(name, _, _)| name == request).map(|(_, body, _)| body.clone()).collect()
    }

    /// Requests that could have changed something.
    pub fn changes(&self) -> usize {
        let state = self.state.lock().expect("no panic");
        let is_change = |name: &str, body: &Value| name.starts_with("POST") && body["dry_run"] != json!(true);
        state.requests.iter().filter(|(name, body, _)| is_change(name, body)).count()
    }

    /// The `Authorization` header of the last request.
    pub fn last_authorization(&self) -> Option<String> {
        self.state.lock().expect("no panic").requests.last().and_then(|(_, _, header)| header.clone())
    }

    /// Runs a command line as in a pipe.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        run(&self.url, arguments, false, "").await
    }

    /// Runs a command line as on a terminal on which `input` is typed.
    pub async fn run_typing(&self, arguments: &[&str], input: &str) -> Ran {
        run(&self.url, arguments, true, input).await
    }
}

/// Runs a command line against `url`.
pub async fn run(url: &str, arguments: &[&str], terminal: bool, input: &str) -> Ran {
    let (mut console, captured) = Console::in_memory(terminal, input, Some("secret-token"));
    let arguments: Vec<&str> = ["stormglass", "--controller", url].iter().chain(arguments).copied().collect();
    let exit: Exit = run_with(arguments, &mut console).await;
    Ran { exit: exit.code(), out: captured.out(), err: captured.err() }
}

fn answer(state: &Mutex<State>, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Response {
    let name = format!("{method} {}", uri.path());
    let body = serde_json::from_slice(body).unwrap_or(Value::Null);
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut state = state.lock().expect("no panic");
    state.requests.push((name.clone(), body, authorization));
    let answer = match state.answers.get_mut(&name) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => Answer(404, problem(404, "there is no such thing")),
    };
    (StatusCode::from_u16(answer.0).expect("a status"), axum::Json(answer.1)).into_response()
}

/// A problem document.
pub fn problem(status: u16, detail: &str) -> Value {
    json!({"type": "about:blank", "title": "problem", "status": status, "detail": detail})
}

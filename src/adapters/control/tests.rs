//! What each way of failing says about delivery, against real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{ControlSetupError, HttpControl};
use crate::domain::command::{
    AssignedRole, Assignment, Command, CommandEnvelope, CommandOutput, CommandReply, CommandState,
};
use crate::domain::epoch::{Epoch, RecordNumber};
use crate::domain::ids::{Address, ClusterName, NodeName, OperationId, ProxyName, SystemIdentifier};
use crate::domain::operation::StepName;
use crate::ports::control::{ControlError, NodeControl};

const SOON: Duration = Duration::from_secs(5);

fn node() -> NodeName {
    NodeName::new("db1").expect("valid")
}

fn envelope() -> CommandEnvelope {
    CommandEnvelope {
        cluster: ClusterName::new("main").expect("valid"),
        epoch: Epoch(3),
        operation: OperationId("op".to_owned()),
        step: StepName::Fence,
        attempt: 1,
        command: Command::Fence,
    }
}

fn assignment() -> Assignment {
    Assignment {
        cluster: ClusterName::new("main").expect("valid"),
        system_identifier: SystemIdentifier(1),
        epoch: Epoch(3),
        number: RecordNumber(4),
        role: AssignedRole::Standby { primary: node(), primary_address: Address::new("127.0.0.1", 5432) },
        eligible: BTreeSet::new(),
        renewers: None,
        peers: BTreeSet::new(),
    }
}

fn control(url: String) -> HttpControl {
    HttpControl::new(BTreeMap::from([(node(), url)]), BTreeMap::new(), "secret").expect("valid")
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// An agent whose `/v1/command` answers with this.
async fn agent(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> HttpControl {
    let (listener, address) = listener().await;
    let router = Router::new().route("/v1/command", post(move || async move { answer() })).route(
        "/v1/assignment",
        post(|headers: HeaderMap, Json(received): Json<Assignment>| async move {
            assert_eq!(received, assignment());
            if headers["authorization"] == "Bearer secret" { StatusCode::NO_CONTENT } else { StatusCode::UNAUTHORIZED }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    control(format!("http://{address}/"))
}

async fn failure(control: &HttpControl, timeout: Duration) -> ControlError {
    let error = control.command(&node(), &envelope(), timeout).await.expect_err("no answer");
    assert!(error.to_string().contains("db1"), "{error}");
    error
}

#[tokio::test]
async fn an_answer_is_given_as_it_came() {
    let reply = CommandReply { state: CommandState::Succeeded { output: CommandOutput::default() }, report: None };
    let sent = reply.clone();
    let control = agent(move || Json(sent.clone()).into_response()).await;
    assert_eq!(control.command(&node(), &envelope(), SOON).await.expect("an answer"), reply);
    NodeControl::assign(&control, &node(), &assignment(), SOON).await.expect("accepted");
}

#[tokio::test]
async fn a_refused_connection_or_an_unknown_name_is_unreachable() {
    let (listener, address) = listener().await;
    drop(listener);
    let refused = failure(&control(format!("http://{address}")), SOON).await;
    assert!(matches!(refused, ControlError::Unreachable { .. }), "{refused}");

    let nowhere = HttpControl::new(BTreeMap::new(), BTreeMap::new(), "secret").expect("valid");
    let unknown = failure(&nowhere, SOON).await;
    assert!(matches!(unknown, ControlError::Unreachable { .. }), "{unknown}");
}

#[tokio::test]
async fn silence_and_broken_connections_are_unknown() {
    let (silent, address) = listener().await;
    let error = failure(&control(format!("http://{address}")), Duration::from_millis(50)).await;
    assert!(matches!(error, ControlError::Unknown { .. }), "{error}");
    drop(silent);

    let (breaking, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = breaking.accept().await {
            // The message is read, so it may have been acted on.
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let error = failure(&control(format!("http://{address}")), SOON).await;
    assert!(matches!(error, ControlError::Unknown { .. }), "{error}");
}

#[tokio::test]
async fn only_4xx_says_that_nothing_was_done() {
    let refusing = agent(|| {
        let problem =
            serde_json::json!({ "type": "about:blank", "title": "refused", "status": 409, "detail": "lower epoch" });
        (StatusCode::CONFLICT, Json(problem)).into_response()
    });
    let error = failure(&refusing.await, SOON).await;
    assert!(matches!(&error, ControlError::Rejected { problem, .. } if problem == "409 lower epoch"), "{error}");

    let plain = agent(|| (StatusCode::UNAUTHORIZED, "no token").into_response());
    let error = failure(&plain.await, SOON).await;
    assert!(matches!(&error, ControlError::Rejected { problem, .. } if problem == "401 no token"), "{error}");

    let broken = agent(|| StatusCode::INTERNAL_SERVER_ERROR.into_response());
    let error = failure(&broken.await, SOON).await;
    assert!(matches!(error, ControlError::Unknown { .. }), "{error}");

    let garbled = agent(|| "not JSON".into_response());
    let error = failure(&garbled.await, SOON).await;
    assert!(matches!(error, ControlError::Unknown { .. }), "{error}");
}

/// An agent that was restarted has closed the connection that the controller kept: that must not cost an operation.
#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    let (listener, address) = listener().await;
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            tokio::spawn(async move {
                let body = r#"{"state":{"state":"running","progress":"x"},"report":null}"#;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    if first {
                        // Reads the next message and dies without an answer.
                        let _ = stream.read(&mut buffer).await;
                        return;
                    }
                }
            });
        }
    });
    let control = control(format!("http://{address}"));
    for _ in 0..3 {
        control.command(&node(), &envelope(), SOON).await.expect("an answer");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2, "the second connection is kept");
}

#[test]
fn settings_without_sense_are_refused() {
    for url in ["", "10.0.0.5:8008", "http://", "ftp://10.0.0.5"] {
        let made = HttpControl::new(BTreeMap::from([(node(), url.to_owned())]), BTreeMap::new(), "secret");
        assert!(matches!(made.err(), Some(ControlSetupError::NotAUrl { .. })), "{url:?}");
    }
    let proxies = BTreeMap::from([(ProxyName::new("p").expect("valid"), "x".to_owned())]);
    assert!(HttpControl::new(BTreeMap::new(), proxies, "secret").is_err());
    assert!(matches!(HttpControl::new(BTreeMap::new(), BTreeMap::new(), "a\nb").err(), Some(ControlSetupError::Token)));
}

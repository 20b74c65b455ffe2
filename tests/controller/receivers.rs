//! Who receives notifications in tests: a web server, and a real SMTP server (aiosmtpd, which `scripts/setup` installs).

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::sync::mpsc;

use super::PATIENCE;

/// One request that arrived.
#[derive(Debug, Clone)]
pub struct Posted {
    pub key: String,
    pub authorization: Option<String>,
    pub body: Value,
    pub answered: u16,
}

/// A web server that writes down what is posted.
pub struct Hook {
    pub url: String,
    inbox: mpsc::UnboundedReceiver<Posted>,
}

type Desk = (mpsc::UnboundedSender<Posted>, Arc<Mutex<VecDeque<u16>>>);

async fn take(State((sender, answers)): State<Desk>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    let answered = answers.lock().expect("no panic").pop_front().unwrap_or(200);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let posted = Posted {
        key: text("idempotency-key").unwrap_or_default(),
        authorization: text("authorization"),
        body: serde_json::from_slice(&body).expect("JSON"),
        answered,
    };
    // The test may have seen enough.
    let _ = sender.send(posted);
    (StatusCode::from_u16(answered).expect("a status"), "as the test says")
}

impl Hook {
    /// Answers the first requests with these, the others with 200.
    pub async fn start(answers: &[u16]) -> Self {
        let (sender, inbox) = mpsc::unbounded_channel();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
        let routes = axum::Router::new().route("/hook", post(take)).with_state((sender, answers));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, inbox }
    }

    pub async fn next(&mut self) -> Posted {
        tokio::time::timeout(PATIENCE, self.inbox.recv()).await.expect("it arrives in time").expect("it runs")
    }

    /// Everything up to the first whose key begins so.
    pub async fn until(&mut self, key: &str) -> Vec<Posted> {
        let mut all = Vec::new();
        loop {
            all.push(self.next().await);
            if all.last().is_some_and(|posted| posted.key.starts_with(key)) {
                return all;
            }
        }
    }
}

/// Takes mail and prints each as one line of JSON; the first line is its port. Refuses receivers that begin with `nobody`.
const SINK: &str = r#"
import asyncio, json, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult

class Sink:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"
    async def handle_DATA(self, server, session, envelope):
        print(json.dumps({
            "from": envelope.mail_from, "to": envelope.rcpt_tos, "tls": session.ssl is not None,
            "login": session.auth_data.login.decode() if session.auth_data else None,
            "content": envelope.content.decode("utf-8", "surrogateescape"),
        }), flush=True)
        return "250 taken"

def authenticate(server, session, envelope, mechanism, data):
    good = data.login == b"stormglass" and data.password == b"correct horse"
    return AuthResult(success=good, handled=False, auth_data=data if good else None)

options = {}
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    options = {"tls_context": context, "require_starttls": True, "authenticator": authenticate, "auth_required": True}

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Sink(), **options), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"#;

/// An SMTP server that runs.
pub struct Mailbox {
    pub port: u16,
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

/// A Python that has aiosmtpd: where `scripts/setup` puts it, else in a virtual environment below `target/` that is made once.
fn python() -> PathBuf {
    let works = |program: &Path| {
        Command::new(program)
            .args(["-c", "import aiosmtpd"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|it| it.success())
    };
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smtp");
    let own = folder.join("bin/python");
    for program in [home.join(".cache/stormglass/smtp/bin/python"), own.clone(), PathBuf::from("python3")] {
        if works(&program) {
            return program;
        }
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("python3 is there: run scripts/setup");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "aiosmtpd==1.4.6"]));
    own
}

impl Mailbox {
    /// With `certificate` and its key as files: only after STARTTLS and a login.
    pub async fn start(certificate: Option<(&Path, &Path)>) -> Self {
        let mut command = Command::new(python());
        // Deprecations of aiosmtpd are its own.
        command.args(["-W", "ignore", "-c", SINK]).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some((certificate, key)) = certificate {
            command.arg(certificate).arg(key);
        }
        let mut child = command.spawn().expect("started");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, mut lines) = mpsc::unbounded_channel();
        // Ends with the process.
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let first = tokio::time::timeout(PATIENCE, lines.recv()).await.expect("in time").expect("it says its port");
        Self { port: first.parse().expect("a port"), child, lines }
    }

    pub async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.recv()).await.expect("mail arrives").expect("it runs");
        serde_json::from_str(&line).expect("JSON")
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

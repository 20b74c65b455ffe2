//! A server of ours whose files change under it: the new certificate is served without a restart, and established connections live.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use stormglass::adapters::system::SystemClock;
use stormglass::adapters::tls::Tls;
use stormglass::api::entrance::Door;
use stormglass::api::server;
use stormglass::domain::certificate::{CertificateSummary, Protection};
use stormglass::domain::clock::WallTime;
use stormglass::ports::Clock as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::support::Authority;

/// Longer than anything takes on a busy machine; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server with the certificate of `tls`.
async fn serving(tls: &Tls) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let router = Router::new().route("/", get(async || "here"));
    tokio::spawn(server::serve(Door::new(listener, Some(tls.server())), router, std::future::pending()));
    address
}

/// One connection, kept.
struct Connection(TlsStream<TcpStream>);

impl Connection {
    async fn open(tls: &Tls, address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::IpAddress(address.ip().into());
        let mut connection = Self(TlsConnector::from(Arc::new(tls.client())).connect(name, stream).await?);
        // In TLS 1.3 a client hears only afterwards that its own certificate was refused.
        connection.ask().await?;
        Ok(connection)
    }

    async fn ask(&mut self) -> std::io::Result<()> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let mut part = [0; 512];
            match self.0.read(&mut part).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => answer.extend_from_slice(&part[..count]),
            }
        }
        Ok(())
    }

    fn serial(&self) -> String {
        let shown = self.0.get_ref().1.peer_certificates().expect("the server shows one");
        CertificateSummary::of(&shown[0]).expect("a certificate").serial
    }
}

/// Looks at the files all the time.
fn keep(tls: &Tls) {
    tokio::spawn(tls.clone().keep(Duration::from_millis(20)));
}

fn der(pem: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem).expect("a certificate in PEM")
}

fn wall() -> WallTime {
    SystemClock::new().expect("clocks").wall()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart_and_connections_survive() {
    let authority = Authority::new();
    let (server, client) = (authority.tls("c1", "controller"), authority.tls("db1", "agent"));
    let address = serving(&server).await;
    keep(&server);
    let mut kept = Connection::open(&client, address).await.expect("a connection");
    let first = kept.serial();
    authority.done("rotate", &["c1"]);
    until("the new certificate is served", async || {
        Connection::open(&client, address).await.expect("always").serial() != first
    })
    .await;
    kept.ask().await.expect("the established connection goes on");
    assert_eq!(kept.serial(), first);
}

#[tokio::test]
async fn what_cannot_be_used_is_not_taken_and_what_was_there_stays() {
    let authority = Authority::new();
    let (server, client) = (authority.tls("c1", "controller"), authority.tls("db1", "agent"));
    let address = serving(&server).await;
    let serial = async || Connection::open(&client, address).await.expect("a connection").serial();
    let first = serial().await;
    authority.issue("c2", "controller");
    authority.done("issue", &["c3", "--role", "controller", "--address", "127.0.0.1", "--valid", "1s"]);
    let read = |name: &str| std::fs::read(authority.path(name)).expect("it is there");
    let good = read("c1.crt");
    for broken in [Vec::new(), b"nonsense".to_vec(), read("c2.crt")] {
        std::fs::write(authority.path("c1.crt"), broken).expect("written");
        server.look().expect_err("it cannot be used");
        assert_eq!(server.look().expect("told once"), None);
        assert_eq!(serial().await, first);
    }
    std::fs::remove_file(authority.path("c1.key")).expect("removed");
    server.look().expect_err("nothing can be read");
    std::fs::write(authority.path("c1.crt"), read("c3.crt")).expect("written");
    std::fs::write(authority.path("c1.key"), read("c3.key")).expect("written");
    let ends = CertificateSummary::of(&der(&read("c3.crt"))).expect("a certificate").expires;
    until("c3 has ended", async || ends < wall()).await;
    assert!(server.look().expect_err("it has ended").to_string().contains("stays in use"));
    assert_eq!(serial().await, first);
    std::fs::write(authority.path("c1.crt"), good).expect("written");
    authority.done("rotate", &["c1"]);
    let taken = server.look().expect("good").expect("new");
    assert_eq!(serial().await, taken.serial);
}

#[tokio::test]
async fn a_new_authority_is_taken_step_by_step_and_nobody_is_refused() {
    let authority = Authority::new();
    let (server, client) = (authority.tls("c1", "controller"), authority.tls("db1", "agent"));
    let address = serving(&server).await;
    keep(&client);
    keep(&server);
    let known = |tls: &Tls| match &*tls.protection().borrow() {
        Protection::Tls { certificates } => certificates.len(),
        other => panic!("{other:?}"),
    };
    for (step, certificates) in [("--authority", 3), ("--all", 3), ("--drop-previous", 2)] {
        authority.done("rotate", &[step]);
        until(step, async || {
            Connection::open(&client, address).await.expect("no step refuses anybody");
            known(&server) == certificates && known(&client) == certificates
        })
        .await;
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_in_new_connections_only_and_a_new_one_heals() {
    let authority = Authority::new();
    let server = authority.tls("c1", "controller");
    authority.done("issue", &["db1", "--role", "agent", "--address", "127.0.0.1", "--valid", "3s"]);
    let client = authority.tls("db1", "agent");
    keep(&client);
    let address = serving(&server).await;
    let mut kept = Connection::open(&client, address).await.expect("it holds for a moment");
    until("the certificate has ended", async || Connection::open(&client, address).await.is_err()).await;
    let refusal = Connection::open(&client, address).await.err().expect("refused").to_string();
    assert!(refusal.to_lowercase().contains("expired"), "{refusal}");
    kept.ask().await.expect("the established connection goes on");
    authority.done("rotate", &["db1", "--valid", "90d"]);
    until("the new one is taken", async || Connection::open(&client, address).await.is_ok()).await;
}

#[tokio::test]
async fn nobody_holds_others_up_by_a_handshake_that_never_ends() {
    let authority = Authority::new();
    let (server, client) = (authority.tls("c1", "controller"), authority.tls("db1", "agent"));
    let address = serving(&server).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(address).await.expect("a connection"));
    }
    Connection::open(&client, address).await.expect("a connection beside them");
    let stranger = Authority::new().tls("db1", "agent");
    Connection::open(&stranger, address).await.err().expect("another authority's server is not believed");
}

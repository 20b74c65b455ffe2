//! The way to etcd's members: one connection each, the next one where one does not answer, and an end to every call.
//!
//! A call may reach several members one after another, so callers only send what may be repeated.
//! Invariant: silence is never taken for a failure; what may have happened is said to be unknown.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::ports::store::StoreError;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// How long a member may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one member may take to answer before the next one is asked. Longer than an election inside etcd, on a good day.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);
/// After this the outcome of a call is unknown. etcd itself gives up after 7 s; nobody here can wait that long.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// After no member could answer, before all are asked again.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// Where etcd is and how to be let in.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// Client URLs of the members.
    pub endpoints: Vec<String>,
    /// Everything is kept below it.
    pub prefix: String,
    /// User and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// For `https` endpoints.
    pub tls: Option<EtcdTls>,
}

/// Certificates as PEM.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// Who signed the members' certificates.
    pub authority: Vec<u8>,
    /// The own certificate and its key, where etcd asks for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Connections to every member.
pub(super) struct Connection {
    members: Vec<Member>,
    /// The member that answered last.
    preferred: AtomicUsize,
    options: ConnectOptions,
}

struct Member {
    url: String,
    client: Mutex<Option<Client>>,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) struct CallError {
    pub problem: String,
    /// It may have been carried out.
    pub perhaps_done: bool,
    /// etcd does not know the lease, or another thing that was named.
    pub is_not_found: bool,
}

impl Connection {
    pub fn new(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_auto_token_refresh(true);
        if let Some((name, password)) = &settings.user {
            options = options.with_user(name, password);
        }
        if let Some(tls) = &settings.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.authority));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        let members: Vec<Member> = settings
            .endpoints
            .iter()
            .map(|url| Member { url: url.trim_end_matches('/').to_owned(), client: Mutex::new(None) })
            .collect();
        let connection = Self { members, preferred: AtomicUsize::new(0), options };
        if connection.members.is_empty() {
            return Err(connection.failed("open", "no endpoint of etcd is named: set store.endpoints"));
        }
        Ok(connection)
    }

    /// For error texts.
    pub fn location(&self) -> String {
        let urls: Vec<&str> = self.members.iter().map(|member| member.url.as_str()).collect();
        urls.join(",")
    }

    /// An error that changed nothing.
    pub fn failed(&self, action: &'static str, problem: impl Into<String>) -> StoreError {
        StoreError::Failed { action, location: self.location(), problem: problem.into() }
    }

    /// Reads: whatever went wrong, nothing was changed.
    pub async fn read<T, F: Future<Output = Result<T, Error>>>(
        &self,
        action: &'static str,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        self.call(CALL_TIMEOUT, MEMBER_TIMEOUT, ask).await.map_err(|error| self.failed(action, error.problem))
    }

    /// Writes: silence is an unknown outcome. `ask` may reach etcd more than once.
    pub async fn write<T, F: Future<Output = Result<T, Error>>>(
        &self,
        action: &'static str,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        self.call(CALL_TIMEOUT, MEMBER_TIMEOUT, ask).await.map_err(|error| {
            let (location, problem) = (self.location(), error.problem);
            if error.perhaps_done {
                StoreError::Unknown { action, location, problem }
            } else {
                StoreError::Failed { action, location, problem }
            }
        })
    }

    /// Asks one member after another until one answers or `within` has passed.
    pub async fn call<T, F: Future<Output = Result<T, Error>>>(
        &self,
        within: Duration,
        for_member: Duration,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, CallError> {
        let deadline = now() + within;
        let mut perhaps_done = false;
        let mut problems: Vec<String>;
        loop {
            problems = Vec::new();
            let first = self.preferred.load(Ordering::Relaxed);
            for step in 0..self.members.len() {
                let place = (first + step) % self.members.len();
                let left = deadline.saturating_duration_since(now());
                if left.is_zero() {
                    break;
                }
                let member = &self.members[place];
                match timeout(left.min(for_member), self.ask_one(member, &ask)).await {
                    Ok(Ok(answer)) => {
                        self.preferred.store(place, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Ok(Err(error)) => {
                        let problem = format!("{}: {}", member.url, words(&error));
                        if is_final(&error) {
                            let is_not_found = code(&error) == Some(status::NOT_FOUND);
                            return Err(CallError { problem, perhaps_done, is_not_found });
                        }
                        perhaps_done |= !was_never_sent(&error);
                        problems.push(problem);
                    }
                    Err(_) => {
                        perhaps_done = true;
                        problems.push(format!("{}: no answer", member.url));
                    }
                }
                // A connection that did not carry an answer may never carry one again.
                if let Ok(mut client) = member.client.try_lock() {
                    *client = None;
                }
            }
            if deadline.saturating_duration_since(now()) <= ROUND_PAUSE {
                let problem = if problems.is_empty() { "no answer in time".to_owned() } else { problems.join("; ") };
                return Err(CallError { problem, perhaps_done, is_not_found: false });
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn ask_one<T, F: Future<Output = Result<T, Error>>>(
        &self,
        member: &Member,
        ask: &impl Fn(Client) -> F,
    ) -> Result<T, Error> {
        let client = {
            let mut kept = member.client.lock().await;
            match &*kept {
                Some(client) => client.clone(),
                None => {
                    let client = Client::connect([&member.url], Some(self.options.clone())).await?;
                    kept.insert(client).clone()
                }
            }
        };
        ask(client).await
    }
}

fn now() -> Instant {
    Instant::now()
}

/// gRPC's status codes, as numbered in its specification.
mod status {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const NOT_FOUND: i32 = 5;
    pub const ALREADY_EXISTS: i32 = 6;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const FAILED_PRECONDITION: i32 = 9;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const UNIMPLEMENTED: i32 = 12;
    pub const UNAUTHENTICATED: i32 = 16;
}

fn code(error: &Error) -> Option<i32> {
    match error {
        Error::GRpcStatus(status) => Some(i32::from(status.code())),
        _ => None,
    }
}

/// etcd's own answer, which another member would repeat; nothing was written.
fn is_final(error: &Error) -> bool {
    const FINAL: [i32; 8] = [
        status::INVALID_ARGUMENT,
        status::NOT_FOUND,
        status::ALREADY_EXISTS,
        status::PERMISSION_DENIED,
        status::RESOURCE_EXHAUSTED,
        status::FAILED_PRECONDITION,
        status::OUT_OF_RANGE,
        status::UNIMPLEMENTED,
    ];
    code(error).is_some_and(|code| FINAL.contains(&code))
        || matches!(error, Error::InvalidArgs(_) | Error::InvalidUri(_))
}

/// True if there was not even a connection, or nobody was let in.
fn was_never_sent(error: &Error) -> bool {
    if code(error) == Some(status::UNAUTHENTICATED) {
        return true;
    }
    let mut cause: Option<&dyn std::error::Error> = match error {
        Error::GRpcStatus(status) => Some(status),
        Error::TransportError(error) => Some(error),
        Error::IoError(error) => Some(error),
        _ => None,
    };
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            );
        }
        cause = error.source();
    }
    false
}

/// The last cause says most; gRPC's own words repeat each other.
fn words(error: &Error) -> String {
    let Error::GRpcStatus(status) = error else { return error.to_string() };
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(below) = cause {
        text = below.to_string();
        cause = below.source();
    }
    if code(error) == Some(status::RESOURCE_EXHAUSTED) && text.contains("space exceeded") {
        text.push_str(FULL);
    }
    text
}

/// What ends it: etcd refuses every write, also after keys were deleted, until its alarm is taken back.
const FULL: &str = ": etcd is full; make room (etcdctl compact REVISION, etcdctl defrag, or a greater \
                    --quota-backend-bytes), then etcdctl alarm disarm";

//! HAProxy's two command sockets: the worker's runtime API (stats socket) and the master's.
//!
//! One exchange a connection, each with an end: neither socket reports errors by number, and the master's waits for ever
//! when its client does not close its half.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::ports::traffic::TrafficError;

/// `srv_op_state` of `show servers state`: the server takes connections.
const OPERATIONAL_RUNNING: &str = "2";

/// One server as `show servers state` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    /// Where it leads.
    pub address: SocketAddr,
    /// Takes connections: neither in maintenance nor drained nor down.
    pub is_open: bool,
}

/// A worker's runtime API.
#[derive(Debug, Clone)]
pub struct RuntimeSocket {
    path: PathBuf,
    timeout: Duration,
    master: Option<MasterSocket>,
}

impl RuntimeSocket {
    /// The socket at `path`; every exchange ends within `timeout`.
    pub fn new(path: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { path: path.into(), timeout, master: None }
    }

    /// Where the socket's file was removed the worker is asked by way of its master: a reload does not bring the file back.
    pub fn or_through(self, master: &MasterSocket) -> Self {
        Self { master: Some(master.clone()), ..self }
    }

    /// Whether the file is there.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Sends commands, joined by `;`, and returns everything that was answered.
    pub async fn ask(&self, action: &'static str, commands: &str) -> Result<String, TrafficError> {
        let answer = exchange(action, &self.path, commands, HalfClose::No, self.timeout).await;
        match (&answer, &self.master) {
            (Err(TrafficError::NotRunning { .. }), Some(master)) if !self.exists() => {
                // The first error says more than the second one.
                master.ask_worker(action, commands).await.or(answer)
            }
            _ => answer,
        }
    }

    /// Cuts the sessions of `backend` that are connected to another address than `keep`; connections that wait stay.
    /// `shutdown sessions server` would be simpler, and would also cut those that are just trying to connect: with a
    /// primary that refuses, some of the waiting ones at any moment. Returns how many.
    pub async fn cut_strays(
        &self,
        action: &'static str,
        backend: &str,
        keep: SocketAddr,
    ) -> Result<usize, TrafficError> {
        let listed = self.ask(action, "show sess all").await?;
        let strays = strays(&listed, backend, keep, Waiting::Keep);
        for commands in shutdowns(&strays, "") {
            self.ask(action, &commands).await?;
        }
        Ok(strays.len())
    }

    /// State of one server.
    pub async fn server(&self, action: &'static str, backend: &str, server: &str) -> Result<ServerState, TrafficError> {
        let answer = self.ask(action, &format!("show servers state {backend}")).await?;
        server_state(&answer, backend, server).ok_or_else(|| unexpected(action, backend, server, &answer))
    }
}

/// What a configuration without our backend, or another HAProxy, leads to.
pub fn unexpected(action: &'static str, backend: &str, server: &str, answer: &str) -> TrafficError {
    TrafficError::Failed {
        action,
        problem: format!(
            "HAProxy does not show a server {backend}/{server}, it said {:?}; is this the HAProxy that runs from the agent's file?",
            answer.trim()
        ),
    }
}

/// Finds a server in the answer to `show servers state`.
pub fn server_state(answer: &str, backend: &str, server: &str) -> Option<ServerState> {
    answer.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if *columns.get(1)? != backend || *columns.get(3)? != server {
            return None;
        }
        let address: IpAddr = columns.get(4)?.parse().ok()?;
        let port: u16 = columns.get(18)?.parse().ok()?;
        let is_open = *columns.get(5)? == OPERATIONAL_RUNNING && *columns.get(6)? == "0";
        Some(ServerState { address: SocketAddr::new(address, port), is_open })
    })
}

/// Connections that reached the backend and no server, from the answer to `show stat`: they wait.
pub fn waiting_connections(answer: &str, backend: &str) -> Option<u64> {
    let current = |name: &str| {
        answer.lines().find_map(|line| {
            let mut columns = line.split(',');
            (columns.next() == Some(backend) && columns.next() == Some(name))
                .then(|| columns.nth(2).and_then(|sessions| sessions.parse::<u64>().ok()))
                .flatten()
        })
    };
    let servers: u64 = answer
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.split(',').collect();
            let is_server = columns.first() == Some(&backend)
                && columns.get(1).is_some_and(|name| *name != "FRONTEND" && *name != "BACKEND");
            is_server.then(|| columns.get(4)?.parse::<u64>().ok()).flatten()
        })
        .fold(0, u64::saturating_add);
    Some(current("BACKEND")?.saturating_sub(servers))
}

/// The processes of one HAProxy, from the master's `show proc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processes {
    /// The master.
    pub master: i32,
    /// Reloads that it did.
    pub reloads: u64,
    /// Reloads that failed; the former worker goes on.
    pub reloads_failed: u64,
    /// Workers that take new connections.
    pub workers: Vec<i32>,
    /// Workers of former configurations, which only finish their sessions.
    pub old_workers: Vec<i32>,
}

/// The master's socket.
#[derive(Debug, Clone)]
pub struct MasterSocket {
    path: PathBuf,
    timeout: Duration,
}

impl MasterSocket {
    /// The socket at `path`; every exchange ends within `timeout`.
    pub fn new(path: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { path: path.into(), timeout }
    }

    /// Sends commands, joined by `;`, and returns everything that was answered.
    pub async fn ask(&self, action: &'static str, commands: &str) -> Result<String, TrafficError> {
        exchange(action, &self.path, commands, HalfClose::Yes, self.timeout).await
    }

    /// Sends commands, joined by `;`, to the worker that takes new connections.
    async fn ask_worker(&self, action: &'static str, commands: &str) -> Result<String, TrafficError> {
        let workers = self.processes(action).await?.workers;
        let [worker] = workers.as_slice() else {
            return Err(TrafficError::Failed { action, problem: format!("HAProxy has {} workers", workers.len()) });
        };
        let addressed: Vec<String> = commands.split(';').map(|command| format!("@!{worker} {command}")).collect();
        self.ask(action, &addressed.join(";")).await
    }

    /// The processes.
    pub async fn processes(&self, action: &'static str) -> Result<Processes, TrafficError> {
        let answer = self.ask(action, "show proc").await?;
        processes(&answer).ok_or_else(|| TrafficError::Failed {
            action,
            problem: format!(
                "the master socket {} did not answer `show proc` as HAProxy's master does: {:?}",
                self.path.display(),
                answer.trim()
            ),
        })
    }

    /// Cuts what is left of `backend` in an old worker and does not lead to `keep`, connections that wait included: the
    /// address that they try can no longer be changed. Returns how many.
    pub async fn cut_strays(
        &self,
        action: &'static str,
        worker: i32,
        backend: &str,
        keep: SocketAddr,
    ) -> Result<usize, TrafficError> {
        let listed = self.ask(action, &format!("@!{worker} show sess all")).await?;
        let strays = strays(&listed, backend, keep, Waiting::Cut);
        for commands in shutdowns(&strays, &format!("@!{worker} ")) {
            self.ask(action, &commands).await?;
        }
        Ok(strays.len())
    }
}

/// What becomes of connections that have not reached a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Cut,
    Keep,
}

/// Command lines that end `sessions`. A line has to fit into one buffer of HAProxy (16 KiB by default).
fn shutdowns(sessions: &[String], prefix: &str) -> Vec<String> {
    let line = |some: &[String]| {
        let commands: Vec<String> = some.iter().map(|session| format!("{prefix}shutdown session {session}")).collect();
        commands.join(";")
    };
    sessions.chunks(200).map(line).collect()
}

/// Sessions of `backend` that are connected to another address than `keep`, from the answer to `show sess all`.
fn strays(listed: &str, backend: &str, keep: SocketAddr, waiting: Waiting) -> Vec<String> {
    #[derive(Default)]
    struct Session<'a> {
        identity: &'a str,
        is_ours: bool,
        leads_to_keep: bool,
        is_established: bool,
    }
    let kept = format!("addr={}:{}", keep.ip(), keep.port());
    let mut sessions: Vec<Session<'_>> = Vec::new();
    for line in listed.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if line.starts_with("0x") {
            sessions.push(Session { identity: first.trim_end_matches(':'), ..Session::default() });
        } else if let Some(session) = sessions.last_mut() {
            let has = |wanted: &str| line.split_whitespace().any(|word| word == wanted);
            if first.starts_with("backend=") {
                session.is_ours = first.strip_prefix("backend=") == Some(backend);
            } else if first.starts_with("server=") {
                session.leads_to_keep = has(&kept);
            } else if is_server_side(first) {
                session.is_established = line.contains("state=EST");
            }
        }
    }
    sessions
        .into_iter()
        .filter(|session| session.is_ours)
        .filter(|session| if session.is_established { !session.leads_to_keep } else { waiting == Waiting::Cut })
        .map(|session| session.identity.to_owned())
        .collect()
}

/// The line about the side of a session that leads to a server: `scb=` since HAProxy 2.6, `si[1]=` before.
fn is_server_side(first_word: &str) -> bool {
    first_word.starts_with("scb=") || first_word.starts_with("si[1]=")
}

/// Less than that has come back from the server only while PostgreSQL still lets the client in: its first words to a client that
/// is in (parameters, key, ready) are some 380 bytes. With TLS the handshake alone is more, and such a connection is not counted.
const GREETING_BYTES_MIN: u64 = 300;

/// Sessions of `backend` that a server has accepted and not let in yet, from the answer to `show sess all`.
pub fn starting_sessions(listed: &str, backend: &str) -> usize {
    let (mut count, mut is_ours, mut is_held, mut is_established) = (0, false, false, false);
    for line in listed.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if line.starts_with("0x") {
            (is_ours, is_held, is_established) = (false, false, false);
        } else if let Some(of) = first.strip_prefix("backend=") {
            is_ours = of == backend;
        } else if first.starts_with("server=") {
            is_held = line.contains(&format!("addr={}", super::template::HOLD));
        } else if is_server_side(first) {
            is_established = line.contains("state=EST");
            // Under way to a server that is there; who is held tries an address where nobody is.
            count += usize::from(is_ours && !is_held && line.contains("state=CON"));
        } else if first.starts_with("res=") && is_ours && is_established {
            let total = line.split_whitespace().find_map(|word| word.strip_prefix("total="));
            let total = total.and_then(|total| total.trim_end_matches(')').parse::<u64>().ok());
            count += usize::from(total.is_some_and(|total| total < GREETING_BYTES_MIN));
        }
    }
    count
}

fn processes(answer: &str) -> Option<Processes> {
    let mut found = Processes::default();
    let mut is_old = false;
    let mut old: Vec<(u64, i32)> = Vec::new();
    // Up to 2.4 a column more, the relative PID, comes before the reloads.
    let reloads = if answer.lines().next().is_some_and(|header| header.contains("<relative PID>")) { 3 } else { 2 };
    for line in answer.lines() {
        if line.starts_with("# ") {
            is_old = line.starts_with("# old");
        }
        // `[was: 1]` is one column.
        let line = line.replace("[was: ", "[was:");
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (Some(Ok(pid)), Some(kind)) = (columns.first().map(|pid| pid.parse::<i32>()), columns.get(1)) else {
            continue;
        };
        match *kind {
            "master" => {
                found.master = pid;
                found.reloads = columns.get(reloads)?.parse().ok()?;
                found.reloads_failed =
                    columns.get(reloads + 2).and_then(|failed| failed.trim_end_matches(']').parse().ok()).unwrap_or(0);
            }
            "worker" if is_old => {
                old.push((columns.get(reloads).and_then(|reloads| reloads.parse().ok()).unwrap_or(u64::MAX), pid));
            }
            "worker" => found.workers.push(pid),
            _ => {}
        }
    }
    // A master of 2.4 whose reload failed calls the worker that goes on an old one: it is the one that was reloaded least.
    let newest = old.iter().map(|(reloads, _)| *reloads).min().filter(|_| found.workers.is_empty());
    for (reloads, pid) in old {
        let workers = if Some(reloads) == newest { &mut found.workers } else { &mut found.old_workers };
        workers.push(pid);
    }
    (found.master > 0).then_some(found)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HalfClose {
    Yes,
    No,
}

async fn exchange(
    action: &'static str,
    path: &Path,
    commands: &str,
    half_close: HalfClose,
    limit: Duration,
) -> Result<String, TrafficError> {
    let whole = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(format!("{commands}\n").as_bytes()).await?;
        if half_close == HalfClose::Yes {
            stream.shutdown().await?;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let no_answer = || TrafficError::NoAnswer { action, location: path.display().to_string(), timeout: limit };
    match timeout(limit, whole).await {
        Err(_) => Err(no_answer()),
        // The queue of a socket that nobody accepts from is full.
        Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => Err(no_answer()),
        Ok(Ok(answer)) => Ok(answer),
        // A process that ends resets what it had not read yet.
        Ok(Err(error))
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            Err(TrafficError::NotRunning { action, location: path.display().to_string(), problem: error.to_string() })
        }
        Ok(Err(error)) => Err(TrafficError::Failed { action, problem: format!("{}: {error}", path.display()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "no need to change the addr, port changed from '1' to '31001' by 'stats socket command'\n\n\n1\n\
        # be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight\n\
        2 pg_write 1 primary 127.0.0.1 2 0 1 1 2 1 0 2 0 0 0 0 - 31001 - 0 0 - - 0\n\n";

    #[test]
    fn reads_a_server_among_other_answers() {
        let state = server_state(STATE, "pg_write", "primary").expect("is there");
        assert_eq!(state, ServerState { address: "127.0.0.1:31001".parse().unwrap(), is_open: true });
        assert_eq!(server_state(STATE, "pg_write", "other"), None);
        let drained = STATE.replace("127.0.0.1 2 0", "127.0.0.1 0 1");
        assert!(!server_state(&drained, "pg_write", "primary").expect("is there").is_open);
    }

    #[test]
    fn reads_masters_and_old_workers() {
        let text = "#<PID> <type> <reloads> <uptime> <version>\n\
            14219           master          2 [failed: 1]   0d00h00m03s     2.6.12-1+deb12u4\n\
            # workers\n14435           worker          0               0d00h00m00s     2.6.12\n\
            # old workers\n14222           worker          1               0d00h00m03s     2.6.12\n# programs\n\n";
        let expected =
            Processes { master: 14219, reloads: 2, reloads_failed: 1, workers: vec![14435], old_workers: vec![14222] };
        assert_eq!(processes(text), Some(expected));
        assert_eq!(processes("Permission denied\n"), None);
        let of_2_4 = "#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>\n\
            1162            master          0               5               0d00h02m07s     2.4.0\n\
            # workers\n1271            worker          1               0               0d00h00m00s     2.4.0\n\
            # old workers\n1233            worker          [was: 1]        3               0d00h00m43s     2.4.0\n";
        let expected =
            Processes { master: 1162, reloads: 5, reloads_failed: 0, workers: vec![1271], old_workers: vec![1233] };
        assert_eq!(processes(of_2_4), Some(expected));
        let after_a_reload_that_failed = "#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>\n\
            1162            master          0               7               0d00h02m07s     2.4.30\n\
            # workers\n# old workers\n1233            worker          [was: 1]        9               0d00h00m43s     2.4.30\n\
            1271            worker          [was: 1]        2               0d00h00m09s     2.4.30\n";
        let expected =
            Processes { master: 1162, reloads: 7, reloads_failed: 0, workers: vec![1271], old_workers: vec![1233] };
        assert_eq!(processes(after_a_reload_that_failed), Some(expected));
    }

    #[test]
    fn strays_are_sessions_of_the_backend_that_lead_elsewhere() {
        let session = |identity: u32, backend: &str, server: &str, state: &str| {
            format!(
                "0x{identity}: [21/Nov/2026:07:02:38.413340] id=0 proto=tcpv4 source=127.0.0.1:42894\n  \
                 backend={backend} (id=2 mode=tcp) addr=10.0.0.9:40902\n  server={server}\n  \
                 scf=0x1 flags=0x0 state=EST endp=CONN\n  scb=0x2 flags=0x1 state={state} endp=CONN\n"
            )
        };
        let listed = [
            session(1, "pg_write", "primary (id=1) addr=10.0.0.1:5432", "EST"),
            session(2, "pg_write", "primary (id=1) addr=10.0.0.2:5432", "EST"),
            session(3, "pg_write", "primary (id=1) addr=10.0.0.1:5432", "CON"),
            session(4, "pg_write", "<NONE> (id=-1)", "TAR"),
            session(5, "pg_read", "n1 (id=1) addr=10.0.0.1:5432", "EST"),
            session(6, "pg_write", "primary (id=1) addr=10.0.0.2:54321", "EST"),
        ]
        .concat();
        let keep = "10.0.0.2:5432".parse().unwrap();
        assert_eq!(strays(&listed, "pg_write", keep, Waiting::Keep), ["0x1", "0x6"]);
        assert_eq!(strays(&listed, "pg_write", keep, Waiting::Cut), ["0x1", "0x3", "0x4", "0x6"]);
        assert_eq!(
            shutdowns(&["0x1".to_owned(), "0x6".to_owned()], "@!7 "),
            ["@!7 shutdown session 0x1;@!7 shutdown session 0x6"]
        );
    }

    #[test]
    fn counts_connections_without_a_server() {
        let text = "# pxname,svname,qcur,qmax,scur\npg_write,FRONTEND,,,9,9\npg_write,primary,0,0,4,4\npg_write,BACKEND,0,0,9,9\n";
        assert_eq!(waiting_connections(text, "pg_write"), Some(5));
        assert_eq!(waiting_connections("", "pg_write"), None);
    }

    #[test]
    fn a_connection_is_just_being_made_until_postgresql_has_said_its_first_words() {
        let session = |server: &str, state: &str, total: u32| {
            format!(
                "0x7f00: [21/Nov/2026:07:02:38.413340] id=0 proto=tcpv4 source=127.0.0.1:42894\n  \
                 backend=pg_write (id=2 mode=tcp) addr=10.0.0.9:40902\n  server=primary (id=1) addr={server}\n  \
                 scf=0x1 flags=0x0 state=EST endp=CONN\n  scb=0x2 flags=0x1 state={state} endp=CONN\n  \
                 req=0x3 (f=0x1 an=0x0 pipe=0 tofwd=-1 total=82)\n  res=0x4 (f=0x1 an=0x0 pipe=0 tofwd=-1 total={total})\n"
            )
        };
        let listed = [
            session("10.0.0.1:5432", "EST", 0),
            session("10.0.0.1:5432", "EST", 24),
            session("10.0.0.1:5432", "EST", 388),
            session("10.0.0.1:5432", "CON", 0),
            session("127.0.0.1:1", "CON", 0),
        ];
        assert_eq!(starting_sessions(&listed.concat(), "pg_write"), 3);
        assert_eq!(starting_sessions(&listed.concat(), "pg_read"), 0);
    }
}

//! Name servers for tests: on a loopback address of their own, in a temporary directory, gone with the test.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stormglass::adapters::dns::{Rfc2136, Rfc2136Settings, TsigKey};
use stormglass::adapters::system::SystemClock;
use stormglass::domain::clock::{BootId, Moment, WallTime};
use stormglass::domain::ids::Address;
use stormglass::domain::name::{NameRecord, NameValue};
use stormglass::ports::Clock;
use stormglass::ports::name::NameService;
use tokio::time::{Instant, sleep};

/// Longer than anything takes on a busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Secret of the key that may change the names, in base64.
pub const SECRET: &str = "c3Rvcm1nbGFzcyB0ZXN0IGtleSBvZiAzMiBieXRlcyE=";
/// Another one.
pub const OTHER_SECRET: &str = "bm90IHRoZSBrZXkgdGhhdCB0aGUgc2VydmVyIGtub3c=";
pub const KEY: &str = "failover-key";
pub const ZONE: &str = "example.test";
pub const NAME: &str = "db.example.test";
pub const COMPANION: &str = "_stormglass.db.example.test";

/// Which server program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Bind,
    Knot,
}

/// A server that runs.
pub struct NameServer {
    pub address: Address,
    program: Program,
    home: tempfile::TempDir,
    child: Option<Child>,
}

/// A loopback address that no other test uses.
pub fn own_host() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 128 | (high & 0x3f), low, next[3])
}

/// A port that is free for TCP and UDP, on a host of its own.
pub fn free_address() -> Address {
    free_address_on(own_host())
}

fn free_address_on(host: Ipv4Addr) -> Address {
    loop {
        let listener = TcpListener::bind((host, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        if UdpSocket::bind((host, port)).is_ok() {
            return Address::new(host.to_string(), port);
        }
    }
}

fn program(name: &str) -> PathBuf {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin"].iter().map(|folder| Path::new(folder).join(name));
    found.into_iter().find(|file| file.exists()).unwrap_or_else(|| panic!("{name} is missing: run scripts/setup"))
}

/// Name servers need no root; whoever runs the tests as root has PostgreSQL's user.
fn ordinary_user() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then(|| {
        let users = fs::read_to_string("/etc/passwd").expect("readable");
        let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
        let fields: Vec<&str> = line.split(':').collect();
        (fields[2].parse().expect("a uid"), fields[3].parse().expect("a gid"))
    })
}

const ZONE_TEXT: &str =
    "$TTL 60\n@ SOA ns.example.test. root.example.test. 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n";

impl NameServer {
    /// Starts a server of [`ZONE`] and waits until it answers.
    pub async fn start(program: Program) -> Self {
        Self::start_with(program, ZONE_TEXT).await
    }

    /// The same with another content of the zone.
    pub async fn start_with(program: Program, zone: &str) -> Self {
        let home = tempfile::Builder::new().prefix("sgdns").tempdir().expect("a temporary directory");
        // BIND listens only on addresses that an interface has.
        let address = match program {
            Program::Bind => free_address_on(Ipv4Addr::LOCALHOST),
            Program::Knot => free_address(),
        };
        let folder = home.path();
        fs::create_dir(folder.join("db")).expect("create");
        fs::write(folder.join("zone"), zone).expect("write");
        let text = match program {
            Program::Bind => bind_configuration(folder, &address),
            Program::Knot => knot_configuration(folder, &address),
        };
        fs::write(folder.join("conf"), text).expect("write");
        if let Some((uid, gid)) = ordinary_user() {
            for path in [folder.to_owned(), folder.join("db"), folder.join("zone"), folder.join("conf")] {
                chown(&path, Some(uid), Some(gid)).expect("root may");
            }
        }
        let mut server = Self { address, program, home, child: None };
        server.restart().await;
        server
    }

    /// Stops it, if it runs, and starts it on what is on its disk.
    pub async fn restart(&mut self) {
        self.stop();
        let mut command = match self.program {
            Program::Bind => {
                let mut command = Command::new(program("named"));
                command.args(["-g", "-n", "1", "-c"]);
                command
            }
            Program::Knot => {
                let mut command = Command::new(program("knotd"));
                command.arg("-c");
                command
            }
        };
        command.arg(self.home.path().join("conf")).current_dir(self.home.path());
        let log = fs::File::create(self.home.path().join("log")).expect("create");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("twice")).stderr(log);
        if let Some((uid, gid)) = ordinary_user() {
            command.uid(uid).gid(gid);
        }
        self.child = Some(command.spawn().expect("started"));
        let end = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect((self.address.host.as_str(), self.address.port)).await.is_err() {
            let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "{:?} does not answer:\n{log}", self.program);
            sleep(Duration::from_millis(20)).await;
        }
        // It listens before it has read its zone.
        while self.service().read().await.is_err() && Instant::now() < end && self.has_zone() {
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn has_zone(&self) -> bool {
        fs::read_to_string(self.home.path().join("zone")).is_ok_and(|text| text.contains("SOA"))
    }

    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended = child.wait();
    }

    /// Good settings for it.
    pub fn settings(&self) -> Rfc2136Settings {
        Rfc2136Settings {
            name: NAME.to_owned(),
            companion: COMPANION.to_owned(),
            zone: ZONE.to_owned(),
            servers: vec![self.address.clone()],
            key: TsigKey { name: KEY.to_owned(), secret: SECRET.to_owned() },
        }
    }

    pub fn service(&self) -> Rfc2136 {
        Rfc2136::new(&self.settings(), clock()).expect("good settings")
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind_configuration(folder: &Path, address: &Address) -> String {
    let folder = folder.display();
    let (host, port) = (&address.host, address.port);
    format!(
        "key \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
         options {{ directory \"{folder}\"; pid-file \"{folder}/pid\"; session-keyfile \"{folder}/session.key\";\n\
         listen-on port {port} {{ {host}; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; allow-transfer {{ none; }}; }};\n\
         controls {{ }};\n\
         zone \"{ZONE}\" {{ type primary; file \"{folder}/zone\"; update-policy {{\n\
         grant {KEY} name {NAME}. A AAAA CNAME; grant {KEY} name {COMPANION}. TXT; }}; }};\n"
    )
}

fn knot_configuration(folder: &Path, address: &Address) -> String {
    let folder = folder.display();
    let (host, port) = (&address.host, address.port);
    format!(
        "server:\n    rundir: {folder}\n    listen: {host}@{port}\n    tcp-workers: 1\n    udp-workers: 1\n    background-workers: 1\n\
         database:\n    storage: {folder}/db\n\
         key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
         acl:\n  - id: update\n    key: {KEY}\n    action: update\n    update-owner: name\n    update-owner-match: equal\n    \
         update-owner-name: [ {NAME}., {COMPANION}. ]\n\
         zone:\n  - domain: {ZONE}\n    storage: {folder}\n    file: zone\n    zonefile-sync: 0\n    zonefile-load: difference\n    \
         journal-content: changes\n    acl: update\n"
    )
}

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new().expect("a clock"))
}

/// A wall clock that is off.
pub struct SkewedClock {
    pub ahead_seconds: i64,
}

impl Clock for SkewedClock {
    fn now(&self) -> Moment {
        clock().now()
    }

    fn wall(&self) -> WallTime {
        WallTime(clock().wall().0 + self.ahead_seconds * 1_000_000)
    }

    fn boot(&self) -> BootId {
        clock().boot()
    }
}

/// The name as it shall be.
pub fn record(values: &[&str], companion: Option<&str>) -> NameRecord {
    NameRecord {
        values: values.iter().map(|text| NameValue::parse(text).expect("a value")).collect(),
        ttl_seconds: 5,
        companion: companion.into_iter().map(str::to_owned).collect(),
    }
}

/// Companion of an epoch.
pub fn epoch(number: u64) -> String {
    format!("stormglass cluster=main epoch={number}")
}

//! Real PostgreSQL servers for tests: made in a temporary directory, run by an ordinary user, gone with the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stormglass::adapters::postgres::{Password, Postgres, PostgresSettings, discover_bin_directory};
use stormglass::adapters::system::{Family, boot_time, family};
use stormglass::domain::ids::{Address, NodeName};
use stormglass::ports::LocalPostgres;
use stormglass::ports::postgres::{DataChange, PostgresError, StartMode, Upstream};

/// Longer than anything takes on a busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Password of the replication role, with everything that needs escaping.
const REPLICATION_PASSWORD: &str = "se:cr\\et'";

/// A place for the nodes of one test.
pub struct Place {
    home: tempfile::TempDir,
    user: Option<(u32, u32)>,
    bin: PathBuf,
}

/// One node: a data directory and the adapter that owns it.
pub struct Node {
    pub name: NodeName,
    pub settings: PostgresSettings,
    pub postgres: Postgres,
    user: Option<(u32, u32)>,
    bin: PathBuf,
}

/// Notes that a data directory was about to change.
#[derive(Default)]
pub struct Noted(std::sync::atomic::AtomicBool, std::sync::Mutex<Vec<String>>);

impl Noted {
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn began(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    #[allow(dead_code, reason = "each test binary uses its part")]
    /// What was said of WAL that was kept aside.
    pub fn kept(&self) -> String {
        self.1.lock().expect("no test panics while it holds it").join("; ")
    }
}

#[async_trait::async_trait]
impl DataChange for Noted {
    async fn begins(&self) -> Result<(), PostgresError> {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn kept(&self, words: &str) {
        self.1.lock().expect("no test panics while it holds it").push(words.to_owned());
    }
}

/// The names of these nodes.
pub fn names(nodes: &[&Node]) -> BTreeSet<NodeName> {
    nodes.iter().map(|node| node.name.clone()).collect()
}

impl Place {
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("sg").tempdir().expect("a temporary directory");
        // PostgreSQL refuses root; whoever runs the tests as root has its package's user.
        let user = rustix::process::geteuid().is_root().then(|| {
            let users = fs::read_to_string("/etc/passwd").expect("readable");
            let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
            let fields: Vec<&str> = line.split(':').collect();
            (fields[2].parse().expect("a uid"), fields[3].parse().expect("a gid"))
        });
        if let Some((uid, gid)) = user {
            chown(home.path(), Some(uid), Some(gid)).expect("root may");
        }
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
        let bin = discover_bin_directory(Path::new("/nonexistent")).expect("PostgreSQL is installed");
        Self { home, user, bin }
    }

    /// An empty directory of PostgreSQL's user.
    pub fn directory(&self, name: &str) -> PathBuf {
        let directory = self.home.path().join(name);
        fs::create_dir(&directory).expect("create");
        self.hand_over(&directory);
        directory
    }

    /// Gives a directory to PostgreSQL's user.
    pub fn hand_over(&self, directory: &Path) {
        if let Some((uid, gid)) = self.user {
            chown(directory, Some(uid), Some(gid)).expect("root may");
        }
    }

    /// A node without data.
    pub fn node(&self, name: &str) -> Node {
        self.node_with(name, &[])
    }

    #[allow(dead_code, reason = "each test binary uses its part")]
    /// A node whose `program` is a shell script; `$REAL` in it is the real one.
    pub fn node_where(&self, name: &str, program: &str, script: &str) -> Node {
        let directory = self.home.path().join(format!("{name}-bin"));
        fs::create_dir(&directory).expect("create");
        for entry in fs::read_dir(&self.bin).expect("readable").flatten() {
            if entry.file_name() != program {
                std::os::unix::fs::symlink(entry.path(), directory.join(entry.file_name())).expect("link");
            }
        }
        let path = directory.join(program);
        fs::write(&path, format!("#!/bin/sh\nREAL={}\n{script}\n", self.bin.join(program).display())).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("own file");
        let node = self.node(name);
        let settings = PostgresSettings { bin_directory: Some(directory), ..node.settings.clone() };
        let postgres = Postgres::new(settings.clone()).expect("good settings");
        Node { name: node.name.clone(), settings, postgres, user: node.user, bin: node.bin.clone() }
    }

    #[allow(dead_code, reason = "each test binary uses its part")]
    /// A node without data whose configuration shall lie elsewhere, as Debian lays it out.
    pub fn node_in_etc(&self, name: &str) -> Node {
        let node = self.node(name);
        let directory = self.home.path().join("etc").join(name);
        fs::create_dir_all(&directory).expect("create");
        if let Some((uid, gid)) = self.user {
            chown(&directory, Some(uid), Some(gid)).expect("root may");
        }
        let mut settings = node.settings.clone();
        settings.config_directory = Some(directory);
        let postgres = Postgres::new(settings.clone()).expect("good settings");
        Node { name: node.name.clone(), settings, postgres, user: node.user, bin: node.bin.clone() }
    }

    /// A node without data, with parameters of its own.
    pub fn node_with(&self, name: &str, parameters: &[(&str, &str)]) -> Node {
        let data = self.home.path().join(name).join("data");
        self.node_at(name, parameters, data)
    }

    /// A node without data, whose data directory will be `data`.
    pub fn node_at(&self, name: &str, parameters: &[(&str, &str)], data: PathBuf) -> Node {
        let directory = self.directory(name);
        let host = own_host();
        let port =
            TcpListener::bind((host.as_str(), 0)).and_then(|socket| socket.local_addr()).expect("a free port").port();
        let name = NodeName::new(name).expect("valid");
        let mut all = BTreeMap::from([("shared_buffers", "16MB"), ("fsync", "on"), ("max_wal_size", "128MB")]);
        all.extend(parameters.iter().copied());
        let settings = PostgresSettings {
            node: name.clone(),
            data_directory: data,
            config_directory: None,
            bin_directory: None,
            address: Address::new(host.as_str(), port),
            listen_addresses: host,
            private_socket_directory: directory.join("run"),
            client_socket_directories: vec![],
            superuser: "postgres".to_owned(),
            superuser_password: None,
            replication_user: "replicator".to_owned(),
            replication_password: Some(Password::new(REPLICATION_PASSWORD)),
            parameters: all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            divergent_directory: directory.join("divergent"),
            os_user: self.user.map(|_| "postgres".to_owned()),
            log_file: directory.join("postgres.log"),
            archive_stop_file: None,
        };
        let postgres = Postgres::new(settings.clone()).expect("good settings");
        Node { name, settings, postgres, user: self.user, bin: self.bin.clone() }
    }
}

/// A loopback address of this node's own: a port that is free there cannot become the source of somebody's connection before
/// PostgreSQL listens on it.
fn own_host() -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::hash::RandomState::new().build_hasher().finish().to_be_bytes();
    format!("127.{}.{}.{}", 1 + random[0] % 250, random[1], 1 + random[2] % 250)
}

impl Node {
    #[allow(dead_code, reason = "each test binary uses its part")]
    /// The same node, before it has data, with settings that are changed.
    pub fn with_settings(&self, change: impl FnOnce(&mut PostgresSettings)) -> Node {
        let mut settings = self.settings.clone();
        change(&mut settings);
        let postgres = Postgres::new(settings.clone()).expect("good settings");
        Node { name: self.name.clone(), settings, postgres, user: self.user, bin: self.bin.clone() }
    }

    pub fn upstream(&self) -> Upstream {
        Upstream { node: self.name.clone(), address: self.settings.address.clone() }
    }

    pub fn data(&self) -> &Path {
        &self.settings.data_directory
    }

    /// Runs one of PostgreSQL's programs as its user.
    pub fn run(&self, program: &str, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(self.bin.join(program));
        command.args(arguments).current_dir("/").env("LC_ALL", "C");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.output().expect("installed")
    }

    /// Makes the first data directory of a cluster.
    pub fn init(&self) {
        let data = self.data().to_string_lossy();
        let made =
            self.run("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-N", "--no-locale", "-E", "UTF8"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // The replication role has to show its password, so that the way of the password is tested.
        let hba = "local all all trust\nhost all postgres 127.0.0.0/8 trust\n\
                   host all,replication replicator 127.0.0.0/8 scram-sha-256\n";
        let path = self.data().join("pg_hba.conf");
        fs::write(&path, hba).expect("write");
        if let Some(directory) = self.settings.config_directory.clone() {
            self.lay_out(&directory);
        }
    }

    /// What `pg_createcluster` makes: nothing of the configuration is left in the data directory.
    pub fn lay_out(&self, directory: &Path) {
        let main_file = fs::read_to_string(self.data().join("postgresql.conf")).unwrap_or_default();
        let quoted = |path: PathBuf| format!("'{}'", path.display());
        let text = format!(
            "{main_file}\ndata_directory = {}\nhba_file = {}\nident_file = {}\n",
            quoted(self.data().to_owned()),
            quoted(directory.join("pg_hba.conf")),
            quoted(directory.join("pg_ident.conf"))
        );
        fs::write(directory.join("postgresql.conf"), text).expect("write");
        fs::copy(self.data().join("pg_hba.conf"), directory.join("pg_hba.conf")).expect("copy");
        fs::copy(self.data().join("pg_ident.conf"), directory.join("pg_ident.conf")).expect("copy");
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            let _missing = fs::remove_file(self.data().join(name));
            if let Some((uid, gid)) = self.user {
                chown(directory.join(name), Some(uid), Some(gid)).expect("root may");
            }
        }
    }

    /// Initialises and starts the primary of a new cluster, with the replication role.
    pub async fn init_primary(&self) {
        self.init();
        self.postgres.secure_configuration().await.expect("secured");
        self.start_primary().await;
        // No more rights than the documentation asks for.
        self.sql(&format!(
            "create role replicator login replication password E'{}'; \
             grant execute on function pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), \
             pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) to replicator",
            REPLICATION_PASSWORD.replace('\\', "\\\\").replace('\'', "''")
        ))
        .await;
    }

    pub async fn start_primary(&self) -> i32 {
        let mode = StartMode::Primary { synchronous: Default::default(), block_when_alone: false };
        let pid = self.postgres.start(&mode).await.expect("starts");
        self.until("the primary is writable", async |node| node.postgres.probe_write(PATIENCE).await.is_ok()).await;
        pid
    }

    /// Clones `primary` and starts as its standby.
    pub async fn join(&self, primary: &Node) {
        self.postgres.reclone(&primary.upstream(), &Noted::default(), &|_| {}).await.expect("cloned");
        primary.make_slot(self).await;
        self.start_standby(Some(primary)).await;
    }

    /// The slot that `peer` streams with; what [`LocalPostgres::tend_slots`] does for all peers at once.
    pub async fn make_slot(&self, peer: &Node) {
        let slot = peer.name.slot();
        self.sql(&format!(
            "select pg_create_physical_replication_slot('{slot}', true) \
             where not exists(select from pg_replication_slots where slot_name = '{slot}')"
        ))
        .await;
    }

    pub async fn start_standby(&self, primary: Option<&Node>) -> i32 {
        let mode = StartMode::Standby { upstream: primary.map(Node::upstream) };
        let pid = self.postgres.start(&mode).await.expect("starts");
        match primary {
            Some(_) => self.until("the standby streams", async |node| node.is_streaming().await).await,
            None => self.until("the standby answers", async |node| node.postgres.observe(PATIENCE).await.is_ok()).await,
        }
        pid
    }

    pub async fn is_streaming(&self) -> bool {
        let live = self.postgres.observe(PATIENCE).await.ok();
        live.and_then(|live| live.receiver).is_some_and(|receiver| receiver.streaming)
    }

    /// Waits until this standby has replayed all that `primary` has flushed now.
    pub async fn caught_up(&self, primary: &Node) {
        let goal = primary.postgres.observe(PATIENCE).await.expect("answers").flush_lsn;
        self.until("the standby caught up", async |node| {
            node.postgres.observe(PATIENCE).await.is_ok_and(|live| live.replay_lsn >= goal)
        })
        .await;
    }

    /// Waits for a condition; a deadline instead of a sleep.
    pub async fn until(&self, what: &str, condition: impl AsyncFn(&Node) -> bool) {
        let begin = boot_time();
        while !condition(self).await {
            assert!(boot_time() - begin < PATIENCE, "{}: waited in vain until {what}\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How a client connects over TCP.
    pub fn client_config(&self) -> tokio_postgres::Config {
        let Address { host, port } = &self.settings.address;
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(*port).user("postgres").dbname("postgres");
        config
    }

    /// A client over TCP.
    pub async fn client(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.client_config().connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs SQL as a client and returns the first value.
    pub async fn sql(&self, text: &str) -> Option<String> {
        let client = self.client().await.expect("connects");
        let answer = client.simple_query(text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
        answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.settings.log_file).unwrap_or_default()
    }

    pub fn family(&self) -> Family {
        Family::new(fs::metadata(self.data()).expect("exists").uid(), fs::canonicalize(self.data()).expect("exists"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.data().exists() {
            let _ = family::kill_until_gone(&self.family(), PATIENCE);
        }
    }
}

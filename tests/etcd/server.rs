//! Real etcd for tests: members in a temporary directory, on free ports, gone with the test.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use stormglass::adapters::store::etcd::{EtcdSettings, EtcdTls};
use stormglass::adapters::system::boot_time;

use super::support::{Authority, client};

/// Longer than anything takes on a busy machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of etcd.
pub struct Etcd {
    home: tempfile::TempDir,
    /// Where members and clients show certificates.
    authority: Option<Authority>,
    pub members: Vec<Member>,
    /// etcd's own default if 0.
    quota_bytes: u64,
}

/// One member.
pub struct Member {
    name: String,
    pub client_url: String,
    peer_url: String,
    child: Option<Child>,
}

fn free_urls(scheme: &str, count: usize) -> Vec<String> {
    // Held until all are found, so that none is found twice.
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|listener| format!("{scheme}://{}", listener.local_addr().expect("bound"))).collect()
}

impl Etcd {
    /// Starts `count` members and waits until they answer.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, 0, None).await
    }

    /// Members that hold no more than `quota_bytes`.
    pub async fn start_with_quota(count: usize, quota_bytes: u64) -> Self {
        Self::start_with(count, quota_bytes, None).await
    }

    /// With TLS everywhere: whoever connects shows a certificate.
    pub async fn secured(count: usize, authority: Authority) -> Self {
        authority.issue("etcd", "server");
        Self::start_with(count, 0, Some(authority)).await
    }

    async fn start_with(count: usize, quota_bytes: u64, authority: Option<Authority>) -> Self {
        let home = tempfile::Builder::new().prefix("sg-etcd").tempdir().expect("a temporary directory");
        let urls = free_urls(if authority.is_some() { "https" } else { "http" }, 2 * count);
        let members = urls
            .chunks(2)
            .enumerate()
            .map(|(number, urls)| Member {
                name: format!("m{number}"),
                client_url: urls[0].clone(),
                peer_url: urls[1].clone(),
                child: None,
            })
            .collect();
        let mut etcd = Self { home, authority, members, quota_bytes };
        for number in 0..count {
            etcd.launch(number);
        }
        etcd.until_healthy().await;
        etcd
    }

    /// Starts a member, again if it ran before.
    pub fn launch(&mut self, number: usize) {
        let all: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
        let directory: PathBuf = self.home.path().join(&self.members[number].name);
        let member = &mut self.members[number];
        let log =
            std::fs::File::options().create(true).append(true).open(directory.with_extension("log")).expect("a log");
        let mut command = Command::new("etcd");
        for way in self.authority.iter().flat_map(|authority| [("", authority), ("peer-", authority)]) {
            let (prefix, authority) = way;
            command.arg(format!("--{prefix}client-cert-auth"));
            for (flag, file) in
                [("trusted-ca-file", "authorities.crt"), ("cert-file", "etcd.crt"), ("key-file", "etcd.key")]
            {
                command.arg(format!("--{prefix}{flag}")).arg(authority.path(file));
            }
        }
        let child = command
            .args(["--name", &member.name, "--data-dir"])
            .arg(directory)
            .args(["--listen-client-urls", &member.client_url, "--advertise-client-urls", &member.client_url])
            .args(["--listen-peer-urls", &member.peer_url, "--initial-advertise-peer-urls", &member.peer_url])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap"])
            .args(["--quota-backend-bytes", &self.quota_bytes.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is installed (package etcd-server, or etcd)");
        member.child = Some(child);
    }

    /// `kill -9` of a member.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    /// SIGSTOP, or SIGCONT.
    pub fn signal(&self, number: usize, signal: Signal) {
        let child = self.members[number].child.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not 0");
        kill_process(pid, signal).expect("signalled");
    }

    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client_url.clone()).collect()
    }

    pub fn settings(&self) -> EtcdSettings {
        let tls = self.authority.as_ref().map(|authority| {
            let files = authority.files("c1");
            if !files.certificate.exists() {
                authority.issue("c1", "controller");
            }
            let read = |path| std::fs::read(path).expect("a file of the authority");
            EtcdTls { authority: read(files.authorities), identity: Some((read(files.certificate), read(files.key))) }
        });
        EtcdSettings { endpoints: self.urls(), prefix: "/stormglass".to_owned(), user: None, tls }
    }

    /// What asks members for their health.
    fn client(&self) -> reqwest::Client {
        match &self.authority {
            Some(authority) => client(&authority.tls("observer", "client")),
            None => reqwest::Client::builder().no_proxy().build().expect("client"),
        }
    }

    /// Runs `etcdctl` and returns what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|problem| panic!("{arguments:?}: {problem}"))
    }

    /// The same, for what may fail: then with what it complained of.
    pub fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.urls().join(",")])
            .args(arguments)
            .output()
            .expect("etcdctl is installed (package etcd-client)");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Every running member answers with a quorum behind it.
    pub async fn until_healthy(&self) {
        for member in self.members.iter().filter(|member| member.child.is_some()) {
            let url = format!("{}/health", member.client_url);
            until("etcd is healthy", async || {
                let answer = self.client().get(&url).send().await;
                match answer {
                    Ok(answer) => answer.text().await.is_ok_and(|text| text.contains("true")),
                    Err(_) => false,
                }
            })
            .await;
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
        }
    }
}

/// Waits for a condition; a deadline instead of a sleep.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begin = boot_time();
    while !condition().await {
        assert!(boot_time() - begin < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

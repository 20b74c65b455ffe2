//! Builds a lab: files, processes, and the wait until the cluster is as redundant as it should be.
//!
//! Invariant: a process is in the manifest before it runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::control::{self, Controller};
use super::layout::{CONTROLLER_HOST, Layout, NodeLayout, PROMETHEUS_HOST, ProxyLayout, url};
use super::manifest::{Manifest, ProcessEntry};
use super::namespaces::{self, SWITCH};
use super::process::ProcessIdentity;
use super::programs::Programs;
use super::progress::Progress;
use super::random::Random;
use super::wall_clock::{Clocks, Environment};
use super::{clock, configuration, database, log_tail, naming, place, programs, volume};
use crate::api::wire::{ClusterStatus, Health};
use crate::domain::policy::{DurabilityMode, PredictionMode, SyncScope};

/// The program that trains models.
const TRAINER: &str = "stormglass-train";

/// A lab that is not ready by then will not be.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// Between two looks at the controller while waiting.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a lab has that others do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kind {
    /// Links between hosts that can be broken.
    pub has_links: bool,
    /// A volume of limited size for each node, mounted before.
    pub has_volumes: bool,
    /// Every host is a network namespace.
    pub has_namespaces: bool,
    /// The wall clock of each node can be moved.
    pub has_clocks: bool,
    /// `failover.rto`, where it is not the default.
    pub rto: Option<Duration>,
    /// A proxy's patience with one try to reach the primary, where round trips are longer than inside a region.
    pub connect_timeout: Option<Duration>,
    /// Durability mode; the product's default if not given.
    pub durability: Option<DurabilityMode>,
    /// More than one: elected in etcd. Zero counts as one.
    pub controllers: u8,
    /// Who confirms commits.
    pub sync_scope: SyncScope,
    /// What predictions may do; `None`: there is no predictor, and no exporter of hosts.
    pub prediction: Option<PredictionMode>,
    /// A restore sequence after each failover, which replaces a lost host.
    pub has_ladder: bool,
}

/// A lab whose processes this process started.
pub struct Lab {
    /// What is on disk about it.
    pub manifest: Manifest,
    /// Its controller.
    pub controller: Controller,
    programs: Programs,
    clocks: Option<Clocks>,
    children: BTreeMap<String, Child>,
}

impl Lab {
    /// Builds a lab in `directory` and waits until it is ready. What was started stays on failure, for the caller to
    /// take down.
    pub async fn build(directory: &Path, uid: u32, kind: Kind, progress: Progress) -> anyhow::Result<Self> {
        let programs = Programs::find()?;
        if !kind.has_volumes {
            place::create(directory)?;
        }
        let directory = directory.canonicalize().with_context(|| format!("resolve {}", directory.display()))?;
        let mut layout = if kind.has_namespaces {
            Layout::in_namespaces(&directory)?
        } else {
            Layout::find(&directory, &mut Random::new(uuid::Uuid::now_v7().as_u128() as u64))?
        };
        layout.durability = kind.durability;
        layout.sync_scope = kind.sync_scope;
        layout.prediction = kind.prediction;
        layout.has_ladder = kind.has_ladder;
        layout.connect_timeout = kind.connect_timeout.unwrap_or(layout.connect_timeout);
        if kind.controllers > 1 {
            ensure!(
                !kind.has_namespaces,
                "several controllers have no namespaces of their own yet: leave out --namespaces or --controllers"
            );
            layout.add_controllers(kind.controllers)?;
        }
        if kind.has_links && !kind.has_namespaces {
            layout.lay_links()?;
        }
        if kind.has_volumes {
            volume::adopt(&mut layout)?;
        }
        let mut manifest = Manifest::new(layout, uid);
        manifest.runner = ProcessIdentity::of(std::process::id());
        manifest.write()?;

        let step = progress.step("files and the first database");
        configuration::write_all(&manifest.layout, &programs, kind.rto)?;
        install(&manifest.layout.program())?;
        database::initialise(&manifest.layout, &manifest.layout.nodes[0], &programs)?;
        step.done();

        let controller = Controller::of(&manifest.layout)?;
        let clocks = if kind.has_clocks { Some(Clocks::find()?) } else { None };
        let mut lab = Self { manifest, controller, programs, clocks, children: BTreeMap::new() };
        let step = progress.step("controller, agents, exporters, Prometheus, Alertmanager");
        lab.start_everything()?;
        step.done();
        lab.wait_until_ready(progress).await?;
        lab.manifest.ready = true;
        lab.manifest.write()?;
        Ok(lab)
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.manifest.layout
    }

    fn start_everything(&mut self) -> anyhow::Result<()> {
        let layout = self.layout().clone();
        if !layout.links.is_empty() || layout.has_namespaces {
            let mut network = Command::new(layout.program());
            network.args(["lab", "network", "--directory"]).arg(&layout.directory);
            self.start("network", SWITCH, network, &layout.directory)?;
        }
        let mut name_server = Command::new(&self.programs.name_server);
        name_server.arg("-c").arg(naming::configuration_file(&layout));
        self.start("dns", CONTROLLER_HOST, name_server, &layout.name_server_directory())?;
        for member in &layout.etcd {
            self.start_etcd(&member.name)?;
        }
        for number in 0..layout.controllers().count() {
            self.start_one_controller(number)?;
        }
        for node in &layout.nodes {
            self.start_node_agent(node)?;
        }
        for proxy in &layout.proxies {
            self.start_proxy(proxy)?;
        }
        for node in &layout.nodes {
            self.start_exporter(node)?;
        }
        let directory = layout.prometheus_directory();
        let mut prometheus = Command::new(&self.programs.prometheus);
        prometheus
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={}", layout.prometheus))
            .args(["--storage.tsdb.retention.time=6h", "--log.level=warn"]);
        self.start("prometheus", PROMETHEUS_HOST, prometheus, &directory)?;
        let directory = layout.alertmanager_directory();
        let mut alertmanager = Command::new(&self.programs.alertmanager);
        alertmanager
            .arg(format!("--config.file={}", directory.join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={}", layout.alertmanager))
            // No gossip: it is alone.
            .arg("--cluster.listen-address=");
        self.start("alertmanager", PROMETHEUS_HOST, alertmanager, &directory)
    }

    /// Starts the controller; again, after a scenario killed it.
    pub fn start_controller(&mut self) -> anyhow::Result<()> {
        self.start_one_controller(0)
    }

    /// Starts one of several controllers, counted from 0.
    pub fn start_one_controller(&mut self, number: usize) -> anyhow::Result<()> {
        let directory = self.layout().controller_directory();
        let name = self.layout().controller_name(number);
        let mut command = Command::new(self.layout().program());
        command.args(["controller", "--config"]).arg(directory.join(format!("{name}.toml")));
        self.start(&name, CONTROLLER_HOST, command, &directory)
    }

    /// Starts a member of etcd; again, after a scenario killed it.
    pub fn start_etcd(&mut self, name: &str) -> anyhow::Result<()> {
        let members = self.layout().etcd.clone();
        let member = members.iter().find(|member| member.name == name).context("the lab has no such member of etcd")?;
        let all: Vec<String> = members.iter().map(|member| format!("{}={}", member.name, url(&member.peer))).collect();
        let mut command = Command::new(programs::etcd()?);
        command
            .args(["--name", name, "--data-dir"])
            .arg(member.directory.join("data"))
            .args(["--listen-client-urls", &url(&member.client), "--advertise-client-urls", &url(&member.client)])
            .args(["--listen-peer-urls", &url(&member.peer), "--initial-advertise-peer-urls", &url(&member.peer)])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "warn", "--auto-compaction-retention", "1h"]);
        self.start(name, CONTROLLER_HOST, command, &member.directory)
    }

    /// Starts what runs on a database host; again, after a scenario killed all of it.
    pub fn start_node(&mut self, node: &NodeLayout) -> anyhow::Result<()> {
        self.start_node_agent(node)?;
        self.start_exporter(node)
    }

    /// Starts what runs on a proxy host: application servers, PgBouncer, and the agent, which starts HAProxy; again, after a scenario
    /// killed all of it.
    pub fn start_proxy(&mut self, proxy: &ProxyLayout) -> anyhow::Result<()> {
        let host = proxy.name.as_str();
        let layout = self.layout().clone();
        for application in layout.applications.iter().filter(|application| application.host == proxy.name) {
            let listen: Vec<String> = application.servers.iter().map(ToString::to_string).collect();
            let mut command = Command::new(layout.program());
            command.args(["lab", "application", "--site", application.site.as_str(), "--listen", &listen.join(",")]);
            self.start(&format!("application-{}", application.site), host, command, &proxy.directory)?;
        }
        if proxy.pgbouncer.is_some() {
            let mut command = Command::new(&self.programs.pgbouncer);
            command.arg(proxy.directory.join("pgbouncer.ini"));
            self.start(&format!("pgbouncer-{host}"), host, command, &proxy.directory)?;
        }
        self.start_agent(proxy.name.as_str(), &proxy.agent_config(), &proxy.directory, None)
    }

    fn start_node_agent(&mut self, node: &NodeLayout) -> anyhow::Result<()> {
        let clock = self.clocks.as_ref().map(|clocks| clocks.of(node)).transpose()?;
        self.start_agent(node.name.as_str(), &node.agent_config(), &node.directory, clock)
    }

    fn start_agent(
        &mut self,
        host: &str,
        config: &Path,
        directory: &Path,
        environment: Option<Environment>,
    ) -> anyhow::Result<()> {
        let mut command = Command::new(self.layout().program());
        command.args(["agent", "--config"]).arg(config).envs(environment.into_iter().flatten());
        self.start(&format!("agent-{host}"), host, command, directory)
    }

    fn start_exporter(&mut self, node: &NodeLayout) -> anyhow::Result<()> {
        let mut command = Command::new(&self.programs.exporter);
        command
            .arg(format!("--web.listen-address={}", node.exporter))
            .arg(format!("--extend.query-path={}", self.layout().prometheus_directory().join("queries.yaml").display()))
            .env("DATA_SOURCE_URI", format!("{}/postgres?sslmode=disable", node.postgres))
            .env("DATA_SOURCE_USER", "exporter")
            .env("DATA_SOURCE_PASS_FILE", self.layout().secret("exporter"));
        self.start(&format!("exporter-{}", node.name), node.name.as_str(), command, &node.directory)?;
        if self.layout().prediction.is_none() {
            return Ok(());
        }
        let mut command = Command::new(programs::host_exporter()?);
        command
            .arg(format!("--web.listen-address={}", node.host_exporter))
            .args(["--collector.disable-defaults", "--web.disable-exporter-metrics", "--log.level=error"])
            .args(
                ["cpu", "meminfo", "vmstat", "pressure", "diskstats", "filesystem"]
                    .map(|it| format!("--collector.{it}")),
            );
        self.start(&format!("host-exporter-{}", node.name), node.name.as_str(), command, &node.directory)
    }

    /// Starts a process in a group of its own (Ctrl-C in the terminal is for the lab, not for it), listed first.
    fn start(&mut self, name: &str, host: &str, command: Command, directory: &Path) -> anyhow::Result<()> {
        let mut command = if self.layout().has_namespaces { namespaces::enter(host, &command) } else { command };
        let log = self.layout().log_directory().join(format!("{name}.log"));
        let line = std::iter::once(command.get_program()).chain(command.get_args());
        self.manifest.processes.push(ProcessEntry {
            name: name.to_owned(),
            command: line.map(|part| part.to_string_lossy().into_owned()).collect(),
            log: log.clone(),
            identity: None,
        });
        self.manifest.write()?;
        let out = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open the log {}", log.display()))?;
        let errors = out.try_clone().context("open the log twice")?;
        let child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let entry = self.manifest.processes.last_mut().expect("the entry was pushed above");
        entry.identity = ProcessIdentity::of(child.id());
        self.manifest.write()?;
        if let Some(mut former) = self.children.insert(name.to_owned(), child) {
            let _ = former.try_wait();
        }
        Ok(())
    }

    /// Collects processes that ended, so that none stays a zombie; names the first one that nobody killed.
    pub fn reap(&mut self) -> Option<(String, std::process::ExitStatus)> {
        let mut ended = None;
        for (name, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                ended.get_or_insert((name.clone(), status));
            }
        }
        ended
    }

    async fn wait_until_ready(&mut self, progress: Progress) -> anyhow::Result<()> {
        type Question = fn(&ClusterStatus) -> Result<(), String>;
        let questions: [(&str, Question); 5] = [
            ("primary accepts writes", primary_missing),
            ("standbys cloned and streaming", standbys_missing),
            ("one standby confirms every commit", confirmation_missing),
            ("both HAProxy lead to the primary", proxies_missing),
            ("the name leads to the primary's site", name_missing),
        ];
        let deadline = clock::now().plus(READY_TIMEOUT);
        for (what, question) in questions {
            let mut step = progress.step(what);
            loop {
                if let Some((name, status)) = self.reap() {
                    bail!(self.explain_end(&name, &status.to_string()));
                }
                let missing = match self.controller.status().await {
                    Ok(status) => match question(&status) {
                        Ok(()) => break,
                        Err(missing) => missing,
                    },
                    Err(error) => format!("{error:#}"),
                };
                step.note(&missing);
                if clock::now() > deadline {
                    bail!("the lab is not ready after {} s: {missing}\n{}", READY_TIMEOUT.as_secs(), self.suspects());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            step.done();
        }
        let step = progress.step("Prometheus and Alertmanager answer");
        let layout = self.layout();
        for (name, address) in [("prometheus", &layout.prometheus), ("alertmanager", &layout.alertmanager)] {
            let ready = format!("{}/-/ready", url(address));
            while !control::answers(&ready).await {
                if clock::now() > deadline {
                    bail!("{name} is not ready\n{}", self.explain_end(name, "no answer"));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        step.done();
        Ok(())
    }

    fn explain_end(&self, name: &str, status: &str) -> String {
        let Some(entry) = self.manifest.process(name) else {
            return format!("{name} ended: {status}");
        };
        format!(
            "{name} ended ({status}). It was started as\n  {}\nand the end of its log {} is\n{}",
            entry.command.join(" "),
            entry.log.display(),
            log_tail(&entry.log)
        )
    }

    /// The logs that most likely say why nothing moves.
    fn suspects(&self) -> String {
        ["controller", "agent-n1", "agent-n2", "agent-p1"]
            .iter()
            .filter_map(|name| self.manifest.process(name))
            .map(|entry| format!("--- the end of {}\n{}", entry.log.display(), log_tail(&entry.log)))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The lab runs its own copy of this program: a rebuild in the meantime must not mix two versions.
fn install(target: &Path) -> anyhow::Result<()> {
    let own = own_program()?;
    copy(&own, target)?;
    // The controller looks for the trainer beside itself. Without it there is all but retraining.
    let trainer = own.with_file_name(TRAINER);
    if trainer.is_file() { copy(&trainer, &target.with_file_name(TRAINER)) } else { Ok(()) }
}

fn copy(own: &Path, target: &Path) -> anyhow::Result<()> {
    if fs::hard_link(own, target).is_err() {
        fs::copy(own, target).with_context(|| format!("copy {} to {}", own.display(), target.display()))?;
    }
    Ok(())
}

/// This program's file.
pub fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this program's own file")
}

fn primary_missing(status: &ClusterStatus) -> Result<(), String> {
    let Some(primary) = &status.primary else {
        return Err("nobody is the primary yet".to_owned());
    };
    match status.nodes.iter().find(|node| node.name == *primary) {
        Some(node) if node.state == "writable" => Ok(()),
        Some(node) => Err(format!("{primary} is {}", node.state)),
        None => Err(format!("{primary} is not among the nodes")),
    }
}

fn standbys_missing(status: &ClusterStatus) -> Result<(), String> {
    let missing: Vec<String> = status
        .nodes
        .iter()
        .filter(|node| Some(&node.name) != status.primary.as_ref())
        .filter(|node| node.role != "standby" || node.state != "streaming")
        .map(|node| format!("{} is {}", node.name, node.state))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) }
}

fn confirmation_missing(status: &ClusterStatus) -> Result<(), String> {
    if status.eligible.is_empty() { Err("no standby holds every confirmed commit yet".to_owned()) } else { Ok(()) }
}

fn proxies_missing(status: &ClusterStatus) -> Result<(), String> {
    let missing: Vec<String> = status
        .proxies
        .iter()
        .filter(|proxy| !proxy.agrees)
        .map(|proxy| format!("{}: {}", proxy.name, proxy.error.as_deref().unwrap_or("does not lead to the primary")))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) }
}

fn name_missing(status: &ClusterStatus) -> Result<(), String> {
    let Some(name) = &status.name else { return Err("nobody looked at the name yet".to_owned()) };
    let site = status.nodes.iter().find(|node| Some(&node.name) == status.primary.as_ref()).map(|node| &node.site);
    match &name.error {
        Some(error) => Err(format!("{}: {error}", name.name)),
        None if Some(&name.site) != site => Err(format!("{} still leads to site {}", name.name, name.site)),
        None => Ok(()),
    }
}

/// What keeps the cluster from being fully redundant; `Ok` if nothing does.
pub fn redundancy(status: &ClusterStatus) -> Result<(), String> {
    primary_missing(status)?;
    standbys_missing(status)?;
    confirmation_missing(status)?;
    proxies_missing(status)?;
    name_missing(status)?;
    if !status.operations.is_empty() {
        return Err("an operation is under way".to_owned());
    }
    if status.health == Health::Healthy { Ok(()) } else { Err(format!("the cluster is {}", status.health.words())) }
}

/// The agent processes of a host: those of the lab's program that run with its configuration or in its directory.
pub fn agent_family(layout: &Layout, uid: u32, config: &Path, directory: &Path) -> Vec<super::process::Process> {
    let program = layout.program();
    let config = config.to_string_lossy().into_owned();
    super::process::all_of(uid)
        .into_iter()
        .filter(|process| process.executable.as_deref() == Some(program.as_path()))
        .filter(|process| {
            process.arguments.contains(&config) || process.working_directory.as_deref() == Some(directory)
        })
        .collect()
}

/// Names a proxy's client port for writes.
pub fn write_ports(proxies: &[ProxyLayout]) -> Vec<crate::domain::ids::Address> {
    proxies.iter().map(|proxy| proxy.write.clone()).collect()
}

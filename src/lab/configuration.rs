//! Writes the lab's configuration: from the very structs that controller and agents read, so that none can drift.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::client::TABLE;
use super::ladder;
use super::layout::{
    ANY_DATABASE_CLIENT, APPLICATION_ROLE, CONTROLLER_HOST, DATABASE, Layout, NodeLayout, ProxyLayout, socket, url,
};
use super::naming;
use super::pooling;
use super::programs::Programs;
use crate::config::agent::{AgentSection, PostgresqlSection, ProxyNode, ProxySection, VerifySection};
use crate::config::backup::{
    AgentBackupSection, CheckSection, ControllerBackupSection, DrillSection, LedgerSection, PeerSection,
};
use crate::config::controller::{
    AuthenticationSection, ClusterSection, ControllerSection, FailoverSection, NodeSection, PredictorSection,
    PrometheusSection, ProxyHostSection, ReadsSection, Role, TokenSection,
};
use crate::config::store::{StoreKind, StoreSection};
use crate::config::tls::is_loopback;
use crate::config::webhook::WebhookSection;
use crate::config::{AgentConfig, ControllerConfig, SecretReference};
use crate::domain::alert::{AlertAction, AlertRoute, LabelValues};
use crate::domain::ids::Address;
use crate::domain::report::Tags;

/// Time between two samples of the lab's predictor: as often as Prometheus scrapes.
const PREDICTOR_STEP: Duration = Duration::from_secs(1);

/// Where models are: those of the repository, else those of the package.
const MODELS: [&str; 2] = [concat!(env!("CARGO_MANIFEST_DIR"), "/models"), "/usr/share/stormglass/models"];

/// Roles with a bearer token, and the name of each token and of its file.
pub const TOKENS: [(&str, Role); 4] =
    [("viewer", Role::Viewer), ("backup", Role::Backup), ("operator", Role::Operator), ("admin", Role::Admin)];

/// Every secret's file.
pub const SECRETS: [&str; 9] =
    ["agent", "viewer", "backup", "operator", "admin", "replicator", "exporter", "pgbouncer", "dns"];

/// Settings of the controller that listens on `listen`.
pub fn controller(
    layout: &Layout,
    number: usize,
    listen: &Address,
    rto: Option<Duration>,
) -> anyhow::Result<ControllerConfig> {
    let defaults = FailoverSection::default();
    let store = if layout.etcd.is_empty() {
        StoreSection::default()
    } else {
        let endpoints = layout.etcd.iter().map(|member| url(&member.client)).collect();
        StoreSection { kind: StoreKind::Etcd, endpoints, ..StoreSection::default() }
    };
    Ok(ControllerConfig {
        controller: ControllerSection {
            name: if number == 0 { "lab".to_owned() } else { format!("lab-{}", number + 1) },
            listen: socket(listen)?,
            insecure: is_open(listen)?,
            url: None,
            data_directory: layout.controller_directory().join("store"),
        },
        store,
        cluster: ClusterSection {
            name: layout.cluster.clone(),
            durability: layout.durability,
            sync_scope: layout.sync_scope,
            sync_standby_patience: None,
            max_lag_bytes: 1024 * 1024,
            rejoin_automatically: true,
        },
        failover: FailoverSection { rto: rto.unwrap_or(defaults.rto), ..defaults },
        authentication: AuthenticationSection {
            agent_token: Some(SecretReference::File(layout.secret("agent"))),
            tokens: TOKENS
                .map(|(name, role)| TokenSection {
                    name: name.to_owned(),
                    role,
                    clusters: Vec::new(),
                    secret: SecretReference::File(layout.secret(name)),
                })
                .to_vec(),
            // The lab is measured.
            requests_per_second: 100_000,
            oidc: None,
        },
        nodes: layout
            .nodes
            .iter()
            .map(|node| NodeSection {
                name: node.name.clone(),
                site: node.site.clone(),
                agent: url(&layout.way(CONTROLLER_HOST, &node.agent)),
            })
            .collect(),
        proxies: layout
            .proxies
            .iter()
            .map(|proxy| ProxyHostSection {
                name: proxy.name.clone(),
                site: proxy.site.clone(),
                agent: url(&layout.way(CONTROLLER_HOST, &proxy.agent)),
            })
            .collect(),
        reads: ReadsSection::default(),
        applications: pooling::applications(layout)?,
        notifications: Vec::new(),
        webhook: webhook(),
        prometheus: Some(PrometheusSection::at(url(&layout.prometheus))),
        tls: None,
        predictor: layout.prediction.map(|mode| PredictorSection {
            mode,
            model_directory: layout.model_directory(),
            step: PREDICTOR_STEP,
            ..PredictorSection::default()
        }),
        terraform: Default::default(),
        sequences: if layout.has_ladder { vec![ladder::sequence(layout)] } else { Vec::new() },
        dns: Some(naming::settings(layout)?),
        // Nothing by itself: a backup that nobody asked for would disturb what is measured.
        backup: Some(ControllerBackupSection {
            from_standby: true,
            after_failover: false,
            ..ControllerBackupSection::default()
        }),
    })
}

/// One alert may ask for a failover; the others of Stormglass are written down.
fn webhook() -> WebhookSection {
    let route = |name: &str, action| AlertRoute {
        labels: [("alertname".to_owned(), LabelValues::One(name.to_owned()))].into(),
        action,
        sequence: None,
    };
    WebhookSection {
        routes: vec![
            route("StormglassPostgresDown", AlertAction::Failover),
            route("StormglassConfirmingAlone", AlertAction::Notify),
        ],
        ..WebhookSection::default()
    }
}

/// Where `host` reaches every controller.
fn controllers(layout: &Layout, host: &str) -> Vec<String> {
    layout.controllers().map(|controller| url(&layout.way(host, controller))).collect()
}

/// True where other hosts of the lab reach the address: its network is made for it, and carries nothing else.
fn is_open(address: &Address) -> anyhow::Result<bool> {
    Ok(!is_loopback(socket(address)?.ip()))
}

/// Settings of a database host's agent.
pub fn node_agent(layout: &Layout, node: &NodeLayout, programs: &Programs) -> anyhow::Result<AgentConfig> {
    Ok(AgentConfig {
        agent: AgentSection {
            cluster: layout.cluster.clone(),
            site: node.site.clone(),
            listen: socket(&node.agent)?,
            insecure: is_open(&node.agent)?,
            state_directory: node.directory.join("state"),
            controllers: controllers(layout, node.name.as_str()),
            token: Some(SecretReference::File(layout.secret("agent"))),
            peers: layout
                .nodes
                .iter()
                .filter(|peer| peer.name != node.name)
                .map(|peer| (peer.name.clone(), url(&layout.way(node.name.as_str(), &peer.agent))))
                .collect(),
        },
        postgresql: Some(PostgresqlSection {
            node: node.name.clone(),
            data_directory: node.data_directory(),
            config_directory: None,
            bin_directory: Some(programs.postgres.clone()),
            address: layout.way(ANY_DATABASE_CLIENT, &node.postgres),
            listen_addresses: node.postgres.host.clone(),
            unix_socket_directories: Vec::new(),
            superuser: "postgres".to_owned(),
            superuser_password: None,
            replication_user: "replicator".to_owned(),
            replication_password: Some(SecretReference::File(layout.secret("replicator"))),
            parameters: postgres_parameters(layout),
            probe_interval: Duration::from_millis(250),
            probe_timeout: Duration::from_secs(1),
            divergent_directory: None,
        }),
        proxy: None,
        tags: Tags::default(),
        backup: Some(backup(layout, node, programs)),
        tls: None,
    })
}

/// One repository for all: a directory that every host of the lab sees.
fn backup(layout: &Layout, node: &NodeLayout, programs: &Programs) -> AgentBackupSection {
    AgentBackupSection {
        stanza: None,
        path: Some(layout.repository_directory()),
        cipher_passphrase: None,
        retention_full: 2,
        retention_diff: None,
        processes: 1,
        archive_timeout: Duration::from_secs(60),
        program: programs.pgbackrest.clone(),
        options: BTreeMap::new(),
        s3: None,
        peers: layout
            .nodes
            .iter()
            .filter(|peer| peer.name != node.name)
            .map(|peer| PeerSection {
                node: peer.name.clone(),
                // The hosts of a lab share one filesystem.
                host: None,
                data_directory: peer.data_directory(),
                port: peer.postgres.port,
                socket_directory: Some(peer.directory.join("state/socket")),
            })
            .collect(),
        drill: DrillSection {
            directory: None,
            ledgers: vec![LedgerSection { database: DATABASE.to_owned(), table: format!("public.{TABLE}") }],
            checks: vec![CheckSection {
                name: "no write is there twice".to_owned(),
                database: DATABASE.to_owned(),
                sql: format!(
                    "SELECT NOT EXISTS (SELECT FROM public.{TABLE} GROUP BY run, writer, sequence HAVING count(*) > 1)"
                ),
            }],
        },
    }
}

/// Settings of a proxy host's agent.
pub fn proxy_agent(layout: &Layout, proxy: &ProxyLayout) -> anyhow::Result<AgentConfig> {
    Ok(AgentConfig {
        agent: AgentSection {
            cluster: layout.cluster.clone(),
            site: proxy.site.clone(),
            listen: socket(&proxy.agent)?,
            insecure: is_open(&proxy.agent)?,
            state_directory: proxy.directory.join("state"),
            controllers: controllers(layout, proxy.name.as_str()),
            token: Some(SecretReference::File(layout.secret("agent"))),
            peers: BTreeMap::new(),
        },
        postgresql: None,
        proxy: Some(ProxySection {
            name: proxy.name.clone(),
            stats_socket: proxy.directory.join("stats.sock"),
            master_socket: proxy.directory.join("master.sock"),
            config_file: proxy.directory.join("haproxy.cfg"),
            template: None,
            write: proxy.write.clone(),
            read: proxy.read.clone(),
            checked: proxy.checked.clone(),
            stats: proxy.stats.clone(),
            nodes: layout
                .nodes
                .iter()
                .map(|node| ProxyNode {
                    name: node.name.clone(),
                    address: layout.way(ANY_DATABASE_CLIENT, &node.postgres),
                    server_address: Some(node.postgres.clone()),
                    agent: layout.way(proxy.name.as_str(), &node.agent),
                })
                .collect(),
            manage_process: true,
            connect_timeout: layout.connect_timeout,
            verify: Some(VerifySection {
                user: APPLICATION_ROLE.to_owned(),
                password: None,
                database: DATABASE.to_owned(),
            }),
            pgbouncer: pooling::section(layout, proxy),
        }),
        tags: Tags::default(),
        backup: None,
        tls: None,
    })
}

/// Small and quick to boot, and otherwise as on a server: `fsync` and `full_page_writes` stay on.
fn postgres_parameters(layout: &Layout) -> BTreeMap<String, String> {
    // One of the faults that grow is a slot that fills the volume: with the cap there would be nothing to predict.
    // And a checkpoint shall be something that the predictor has seen before the fault begins, on volumes that hold the WAL between two.
    let predicted = [("max_slot_wal_keep_size", "-1"), ("max_wal_size", "128MB")];
    [
        ("shared_buffers", "64MB"),
        ("max_connections", "200"),
        ("max_wal_size", "256MB"),
        // So little that the volumes of `disk-full` hold it beside everything else.
        ("wal_keep_size", "64MB"),
        ("track_io_timing", "on"),
    ]
    .into_iter()
    .chain(predicted.into_iter().filter(|_| layout.prediction.is_some()))
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Prometheus: everything once a second, as the predictor wants it.
pub fn prometheus(layout: &Layout) -> String {
    let mut text = String::from("global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n");
    text.push_str(&format!(
        "rule_files: ['rules.yml']\nalerting:\n  alertmanagers:\n    - static_configs:\n      - targets: ['{}']\nscrape_configs:\n",
        layout.alertmanager
    ));
    let mut job = |name: &str, targets: Vec<(String, String)>| {
        text.push_str(&format!("  - job_name: {name}\n    static_configs:\n"));
        for (target, labels) in targets {
            text.push_str(&format!(
                "      - targets: ['{target}']\n        labels: {{cluster: '{}'{labels}}}\n",
                layout.cluster
            ));
        }
    };
    let node_labels = |node: &NodeLayout| format!(", node: '{}', site: '{}'", node.name, node.site);
    job("postgres", layout.nodes.iter().map(|node| (node.exporter.to_string(), node_labels(node))).collect());
    let proxies = layout
        .proxies
        .iter()
        .map(|proxy| (proxy.agent.to_string(), format!(", proxy: '{}', site: '{}'", proxy.name, proxy.site)));
    let agents = layout.nodes.iter().map(|node| (node.agent.to_string(), node_labels(node))).chain(proxies);
    if layout.prediction.is_some() {
        job("host", layout.nodes.iter().map(|node| (node.host_exporter.to_string(), node_labels(node))).collect());
    }
    job("stormglass-agent", agents.collect());
    job("stormglass", layout.controllers().map(|controller| (controller.to_string(), String::new())).collect());
    text
}

/// The rules that are shipped.
pub const RULES: &str = include_str!("../../packaging/prometheus/rules.yml");

/// Alertmanager: every alert to every controller, of which the leader takes it.
pub fn alertmanager(layout: &Layout) -> String {
    let mut text = String::from(
        "route: {receiver: stormglass, group_by: [cluster, alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1m}\n\
         receivers:\n  - name: stormglass\n    webhook_configs:\n",
    );
    for controller in layout.controllers() {
        text.push_str(&format!(
            "      - url: {}/webhooks/alertmanager\n        max_alerts: 1000\n        http_config: \
             {{authorization: {{type: Bearer, credentials_file: '{}'}}}}\n",
            url(controller),
            layout.secret("operator").display()
        ));
    }
    text
}

/// Further questions of the exporter: what 0.11 does not ask by itself and the predictor needs.
pub const EXPORTER_QUERIES: &str = include_str!("../../training/queries.yaml");

/// Writes every configuration file and every secret of the lab.
pub fn write_all(layout: &Layout, programs: &Programs, rto: Option<Duration>) -> anyhow::Result<()> {
    let mut folders = vec![
        layout.log_directory(),
        layout.directory.join("secrets"),
        layout.directory.join("bin"),
        layout.controller_directory(),
        layout.prometheus_directory(),
        layout.name_server_directory(),
        layout.repository_directory(),
        layout.alertmanager_directory(),
    ];
    folders.extend(layout.etcd.iter().map(|member| member.directory.clone()));
    folders.extend(layout.nodes.iter().map(|node| node.directory.join("state")));
    folders.extend(layout.proxies.iter().map(|proxy| proxy.directory.join("state")));
    for folder in folders {
        fs::create_dir_all(&folder).with_context(|| format!("make the directory {}", folder.display()))?;
    }
    for name in SECRETS {
        write(&layout.secret(name), &secret())?;
    }
    for (number, listen) in layout.controllers().enumerate() {
        let file = layout.controller_directory().join(format!("{}.toml", layout.controller_name(number)));
        let settings = controller(layout, number, listen, rto)?;
        write(&file, &toml::to_string(&settings).context("write the controller's settings as TOML")?)?;
    }
    for node in &layout.nodes {
        let settings = node_agent(layout, node, programs)?;
        write(&node.agent_config(), &toml::to_string(&settings).context("write the agent's settings as TOML")?)?;
    }
    for proxy in &layout.proxies {
        let settings = proxy_agent(layout, proxy)?;
        pooling::write_all(layout, proxy)?;
        write(&proxy.agent_config(), &toml::to_string(&settings).context("write the agent's settings as TOML")?)?;
    }
    naming::write_files(layout)?;
    if layout.prediction.is_some() {
        copy_models(&layout.model_directory())?;
    }
    if layout.has_ladder {
        ladder::prepare(layout)?;
    }
    write(&layout.prometheus_directory().join("prometheus.yml"), &prometheus(layout))?;
    write(&layout.prometheus_directory().join("rules.yml"), RULES)?;
    write(&layout.alertmanager_directory().join("alertmanager.yml"), &alertmanager(layout))?;
    write(&layout.prometheus_directory().join("queries.yaml"), EXPORTER_QUERIES)
}

/// The lab's own copy of every model that there is: it may be told to promote another one. Without any, the predictor abstains.
fn copy_models(target: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make the directory {}", target.display()))?;
    let Some(source) = MODELS.iter().map(Path::new).find(|source| source.is_dir()) else { return Ok(()) };
    let entries = |folder: &Path| fs::read_dir(folder).with_context(|| format!("list {}", folder.display()));
    for model in entries(source)?.filter_map(Result::ok).filter(|entry| entry.path().join("model.json").is_file()) {
        let own = target.join(model.file_name());
        fs::create_dir_all(&own).with_context(|| format!("make the directory {}", own.display()))?;
        for file in entries(&model.path())?.filter_map(Result::ok).filter(|entry| entry.path().is_file()) {
            fs::copy(file.path(), own.join(file.file_name()))
                .with_context(|| format!("copy {}", file.path().display()))?;
        }
    }
    Ok(())
}

/// Version 4 of UUID is not built in; two of version 7 have 148 random bits between them.
fn secret() -> String {
    format!("{}{}", uuid::Uuid::now_v7().simple(), uuid::Uuid::now_v7().simple())
}

/// Writes a file that only the owner can read.
pub fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut out| out.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::random::Random;

    fn programs() -> Programs {
        Programs {
            postgres: "/usr/lib/postgresql/15/bin".into(),
            haproxy: "/usr/sbin/haproxy".into(),
            pgbouncer: "/usr/sbin/pgbouncer".into(),
            prometheus: "/usr/bin/prometheus".into(),
            alertmanager: "/usr/bin/prometheus-alertmanager".into(),
            exporter: "/usr/bin/prometheus-postgres-exporter".into(),
            name_server: "/usr/sbin/knotd".into(),
            pgbackrest: "/usr/bin/pgbackrest".into(),
        }
    }

    #[test]
    fn what_is_written_is_what_controller_and_agents_read() {
        let temporary = tempfile::tempdir().expect("directory");
        let layout = Layout::find(temporary.path(), &mut Random::new(11)).expect("layout");
        write_all(&layout, &programs(), Some(Duration::from_secs(2))).expect("written");
        let read = |file: std::path::PathBuf| fs::read_to_string(file).expect("readable");

        let text = read(layout.controller_directory().join("controller.toml"));
        let settings: ControllerConfig = toml::from_str(&text).expect("understood");
        assert_eq!(
            settings,
            controller(&layout, 0, &layout.controller, Some(Duration::from_secs(2))).expect("settings")
        );
        assert_eq!(settings.failover.rto, Duration::from_secs(2));
        assert_eq!(settings.nodes.len(), 3);
        assert_eq!(settings.proxies.len(), 2);
        for token in &settings.authentication.tokens {
            assert!(token.secret.resolve().expect("secret").len() >= 32);
        }

        for node in &layout.nodes {
            let settings: AgentConfig = toml::from_str(&read(node.agent_config())).expect("understood");
            assert_eq!(settings, node_agent(&layout, node, &programs()).expect("settings"));
            assert!(settings.proxy.is_none());
        }
        for proxy in &layout.proxies {
            let settings: AgentConfig = toml::from_str(&read(proxy.agent_config())).expect("understood");
            assert_eq!(settings, proxy_agent(&layout, proxy).expect("settings"));
            assert!(settings.postgresql.is_none());
        }
    }

    #[test]
    fn prometheus_asks_every_exporter_every_agent_and_the_controller() {
        let layout = Layout::find(Path::new("/tmp/lab"), &mut Random::new(5)).expect("layout");
        let document: serde_yaml_ng::Value = serde_yaml_ng::from_str(&prometheus(&layout)).expect("YAML");
        let targets = |job: usize| document["scrape_configs"][job]["static_configs"].as_sequence().expect("list").len();
        assert_eq!([targets(0), targets(1), targets(2)], [3, 5, 1]);
        let _: serde_yaml_ng::Value = serde_yaml_ng::from_str(EXPORTER_QUERIES).expect("YAML");
    }

    #[test]
    fn secrets_are_for_the_owner_alone_and_differ() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().expect("directory");
        let file = temporary.path().join("secret");
        write(&file, &secret()).expect("written");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        assert_ne!(secret(), secret());
    }
}

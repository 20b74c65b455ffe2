//! Puts the controller's adapters behind its ports, for one controller or one of several. Part of `main`, decides nothing.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use stormglass::adapters::agent_http::Credentials as OwnCredentials;
use stormglass::adapters::control::{HttpControl, TcpPrimaryProbe};
use stormglass::adapters::dns::{Rfc2136, Rfc2136Settings, Route53, Route53Settings, TsigKey};
use stormglass::adapters::models::ModelFolder;
use stormglass::adapters::prometheus::{Credentials, PrometheusSettings, PrometheusSource};
use stormglass::adapters::steps::HostSteps;
use stormglass::adapters::store::etcd::{EtcdLeadership, EtcdSettings, EtcdStore, EtcdTls};
use stormglass::adapters::store::{SqliteStore, migration};
use stormglass::adapters::system::{SystemClock, priority};
use stormglass::adapters::tls::{Tls, certificate_in};
use stormglass::adapters::training::{TrainProgram, TrainSettings};
use stormglass::api::authentication::{Authentication, Token};
use stormglass::api::controller::ControllerHandler;
use stormglass::api::entrance::Door;
use stormglass::api::{router, server};
use stormglass::config::controller::{PredictorSection, PrometheusSection};
use stormglass::config::dns::{DnsProvider, DnsSection};
use stormglass::config::features::load_features;
use stormglass::config::store::{StoreKind, StoreSection};
use stormglass::config::{ControllerConfig, SecretReference, load_controller};
use stormglass::controller::leading::{self, Candidacy};
use stormglass::controller::{
    self, ConfiguredNode, ControllerHandle, ControllerParts, Definition, KeptName, Prediction, Sequences, Stacks,
    Training, WaysIn,
};
use stormglass::domain::certificate::{CertificateFacts, Protection};
use stormglass::domain::ids::ProxyName;
use stormglass::domain::policy::Policy;
use stormglass::domain::readiness::{Circumstances, NameFacts};
use stormglass::domain::sequence::{Sequence, Trigger};
use stormglass::ports::{Clock, Leader, Leadership as _, NameService, Sole, Store, Term};
use stormglass::telemetry::metrics::ControllerMetrics;

use super::{block_on, clusters, notifications, openid, secret, stop_signal, transport};

/// A leadership that is not given back in this time ends by itself.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long etcd may take to say who leads, when a store is moved.
const OBSERVATION: Duration = Duration::from_secs(10);

/// Runs the controller until it is told to stop.
pub fn run(path: &Path) -> anyhow::Result<()> {
    let loaded = clusters::load(path)?;
    let (file, config) = loaded.first.clone();
    let policy = config.policy()?;
    let tls = transport::load(config.tls.as_ref())?;
    let protection = transport::protection(tls.as_ref(), config.controller.listen);
    priority::raise();
    block_on(transport::kept(tls.clone(), async move {
        let listener = TcpListener::bind(config.controller.listen).with_context(|| {
            format!("listen on {}: stop what uses the port, or change controller.listen", config.controller.listen)
        })?;
        let agent_token = config.authentication.agent_token.as_ref().map(secret).transpose()?;
        let tokens = config
            .authentication
            .tokens
            .iter()
            .map(|token| {
                Ok(Token {
                    name: token.name.clone(),
                    role: token.role,
                    clusters: token.clusters.clone(),
                    secret: secret(&token.secret)?,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut authentication = Authentication::new(agent_token.as_deref(), tokens)?;
        if let Some(section) = &config.authentication.oidc {
            authentication = authentication.with_open_id(openid::begin(section, Arc::new(SystemClock::new()?))?);
        }
        let control = control(&config, OwnCredentials::new(agent_token, tls.as_ref()))?;
        let clusters = 1 + loaded.others.len();
        let (stop, stopped) = watch::channel(false);
        let (handler, candidacy) = match (config.store.kind, loaded.directory.clone()) {
            (StoreKind::Embedded, None) => {
                let store = config.controller.data_directory.join("stormglass.db").display().to_string();
                let parts = parts(&config, (&file, store), policy, control, protection)?;
                (Arc::new(alone(&config, parts, None, stopped).await?) as Arc<dyn ControllerHandler>, None)
            }
            (StoreKind::Embedded, Some(directory)) => {
                (clusters::start(loaded, directory, control, protection, stopped).await?, None)
            }
            (StoreKind::Etcd, _) => {
                let store = format!("etcd, below {}", config.store.prefix);
                let parts = parts(&config, (&file, store), policy.clone(), control, protection)?;
                let (handler, task) = one_of_several(&config, &policy, parts, stopped)?;
                (handler, Some(task))
            }
        };
        tracing::info!(listen = %config.controller.listen, cluster = %config.cluster.name, clusters, "controller ready");
        let routes = router::limited(handler, Arc::new(authentication), config.authentication.requests_per_second);
        let terminated = stop_signal()?;
        let served = server::serve(Door::new(listener, tls.as_ref().map(Tls::server)), routes, async move {
            terminated.await;
            // The loop may have ended already.
            let _ = stop.send(true);
        })
        .await;
        if let Some(task) = candidacy
            && tokio::time::timeout(FAREWELL, task).await.is_err()
        {
            tracing::warn!("the leadership was not given back; it ends by itself");
        }
        served.context("serve the API")
    }))
}

/// Makes the parts of a controller for a term.
pub(super) type Parts = Box<dyn Fn(Arc<dyn Term>) -> ControllerParts + Send + Sync>;

pub(super) fn parts(
    config: &ControllerConfig,
    (file, store): (&Path, String),
    policy: Policy,
    control: HttpControl,
    protection: watch::Receiver<Protection>,
) -> anyhow::Result<Parts> {
    let control = Arc::new(control);
    let clock = Arc::new(SystemClock::new()?);
    let (name, cluster) = (config.controller.name.clone(), config.cluster.name.clone());
    let nodes: Vec<ConfiguredNode> = config
        .nodes
        .iter()
        .map(|node| ConfiguredNode { name: node.name.clone(), site: node.site.clone(), agent: node.agent.clone() })
        .collect();
    let prediction = prediction(config)?;
    let proxies: Vec<ProxyName> = config.proxies.iter().map(|proxy| proxy.name.clone()).collect();
    let name_service = config.dns.as_ref().map(|dns| kept_name(dns, clock.clone())).transpose()?;
    let sequences = sequences(config)?;
    let follows = |sequence: &&Sequence| sequence.when.contains(&Trigger::AfterFailover);
    let circumstances = Circumstances {
        has_election: config.has_election(),
        sequences_after_failover: sequences.all.iter().filter(follows).map(|one| one.name.clone()).collect(),
        store_certificates: store_certificate(&config.store)?.into_iter().collect(),
        names: name_service.as_ref().map(|kept| NameFacts {
            ttl_seconds: u32::try_from(kept.rule.ttl.as_secs()).unwrap_or(u32::MAX),
            problem: None,
        }),
        ..Circumstances::default()
    };
    let backup = config.backup.clone();
    let traffic = config.traffic();
    let notifications = notifications::channels(&config.notifications)?;
    let ways = Arc::new(WaysIn { alerts: config.webhook.policy() });
    let definition = Arc::new(Definition::of(config, file, store));
    Ok(Box::new(move |term| ControllerParts {
        name: name.clone(),
        cluster: cluster.clone(),
        definition: definition.clone(),
        policy: policy.clone(),
        circumstances: circumstances.clone(),
        protection: protection.clone(),
        sequences: sequences.clone(),
        nodes: nodes.clone(),
        proxies: proxies.clone(),
        traffic: traffic.clone(),
        clock: clock.clone(),
        term,
        audit: None,
        node_control: control.clone(),
        proxy_control: control.clone(),
        primary_probe: Arc::new(TcpPrimaryProbe),
        name_service: name_service.clone(),
        metrics: metrics(),
        backup: backup.clone(),
        ways: ways.clone(),
        notifications: notifications.clone(),
        prediction: prediction.clone(),
    }))
}

/// The configured sequences, and who carries their steps out on this host.
fn sequences(config: &ControllerConfig) -> anyhow::Result<Sequences> {
    let resolve = |reference: &str| {
        let reference = SecretReference::try_from(reference.to_owned()).map_err(|error| error.to_string())?;
        // Vault is asked over the network: what else runs on this thread goes on elsewhere meanwhile.
        let secret = tokio::task::block_in_place(|| reference.resolve());
        secret.map_err(|error| error.to_string())
    };
    // Never the whole environment: it may hold the tokens of this controller.
    let inherited = ["PATH", "HOME", "USER", "LANG", "TMPDIR", "SSH_AUTH_SOCK"].into_iter().filter_map(|name| {
        let value = std::env::var_os(name)?.into_string().ok()?;
        Some((name.to_owned(), value))
    });
    let runner = HostSteps::new(Arc::new(resolve), inherited.collect());
    let terraform = &config.terraform;
    let stacks = Stacks {
        directories: terraform.stacks.iter().map(|stack| stack.display().to_string()).collect(),
        look_interval: terraform.look_interval,
        timeout: terraform.timeout,
        program: terraform.program.clone(),
    };
    Ok(Sequences { all: config.sequences()?.into(), runner: Arc::new(runner), stacks })
}

/// What predicts, where both `[predictor]` and `[prometheus]` are configured.
fn prediction(config: &ControllerConfig) -> anyhow::Result<Option<Prediction>> {
    let (Some(predictor), Some(prometheus)) = (&config.predictor, &config.prometheus) else { return Ok(None) };
    let features = load_features(predictor.features.as_deref())?;
    let credentials = match (&prometheus.bearer_token, &prometheus.user, &prometheus.password) {
        (Some(token), _, _) => Credentials::Bearer(secret(token)?),
        (None, Some(user), Some(password)) => Credentials::Basic { user: user.clone(), password: secret(password)? },
        _ => Credentials::None,
    };
    let authority = match &prometheus.ca_file {
        Some(file) => Some(std::fs::read(file).with_context(|| format!("read {}", file.display()))?),
        None => None,
    };
    let settings =
        PrometheusSettings { url: prometheus.url.clone(), credentials, authority, timeout: prometheus.timeout };
    let nodes = config.nodes.iter().map(|node| node.name.clone()).collect();
    let source = PrometheusSource::new(&settings, features.clone(), nodes)?;
    Ok(Some(Prediction {
        source: Arc::new(source),
        models: Arc::new(ModelFolder::new(&predictor.model_directory)),
        features: Arc::new(features),
        step_seconds: u32::try_from(predictor.step.as_secs()).context("read predictor.step")?,
        model: predictor.model.clone(),
        challenger: predictor.challenger.clone(),
        training: Some(training(config, predictor, prometheus, settings)?),
    }))
}

/// How models are trained anew: a program beside this one, with the same samples.
fn training(
    config: &ControllerConfig,
    predictor: &PredictorSection,
    prometheus: &PrometheusSection,
    settings: PrometheusSettings,
) -> anyhow::Result<Training> {
    let program = match &predictor.retrain_program {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("stormglass-train"),
    };
    let step_seconds = u32::try_from(predictor.step.as_secs()).context("read predictor.step")?;
    let trainer = TrainProgram::new(TrainSettings {
        program,
        directory: config.controller.data_directory.join("retraining"),
        models: predictor.model_directory.clone(),
        name: format!("{}-{step_seconds}s", config.cluster.name),
        prometheus: settings,
        authority_file: prometheus.ca_file.clone(),
        features: predictor.features.clone(),
        nodes: config.nodes.iter().map(|node| node.name.clone()).collect(),
        step_seconds,
        span: predictor.retrain_span,
        memory_bytes_max: predictor.retrain_memory_bytes,
        has_network: predictor.retrain_network,
    });
    Ok(Training {
        trainer: Arc::new(trainer),
        schedule: predictor.retrain_schedule.clone(),
        time_zone: predictor.retrain_time_zone.clone(),
        on_drift: predictor.retrain_on_drift,
        time_limit: predictor.retrain_time_limit,
    })
}

/// The provider of `[dns]`, with what it shall keep to.
fn kept_name(dns: &DnsSection, clock: Arc<dyn Clock>) -> anyhow::Result<KeptName> {
    let given = |reference: &Option<SecretReference>| match reference {
        Some(reference) => secret(reference),
        None => bail!("[dns] lacks a secret that its provider needs"),
    };
    let (name, companion, zone) = (dns.name.clone(), dns.companion(), dns.zone.clone());
    let service: Arc<dyn NameService> = match dns.provider {
        DnsProvider::Rfc2136 => {
            let key = TsigKey { name: dns.key_name.clone().unwrap_or_default(), secret: given(&dns.key_secret)? };
            let settings = Rfc2136Settings { name, companion, zone, servers: dns.servers.clone(), key };
            Arc::new(Rfc2136::new(&settings, clock).map_err(anyhow::Error::msg).context("use [dns]")?)
        }
        DnsProvider::Route53 => {
            let settings = Route53Settings {
                name,
                companion,
                zone,
                hosted_zone: dns.hosted_zone.clone().unwrap_or_default(),
                endpoint: dns.endpoint(),
                access_key: given(&dns.access_key)?,
                secret_key: given(&dns.secret_key)?,
                servers: dns.servers.clone(),
            };
            Arc::new(Route53::new(&settings, clock).map_err(anyhow::Error::msg).context("use [dns]")?)
        }
    };
    Ok(KeptName { service, rule: dns.rule() })
}

pub(super) fn metrics() -> Arc<ControllerMetrics> {
    Arc::new(ControllerMetrics::new(env!("CARGO_PKG_VERSION")))
}

fn control(config: &ControllerConfig, credentials: OwnCredentials) -> anyhow::Result<HttpControl> {
    let nodes = config.nodes.iter().map(|node| (node.name.clone(), node.agent.clone())).collect();
    let proxies: BTreeMap<ProxyName, String> =
        config.proxies.iter().map(|proxy| (proxy.name.clone(), proxy.agent.clone())).collect();
    Ok(HttpControl::new(nodes, proxies, credentials)?)
}

/// What a cluster shares with the others of its controller.
pub(super) struct Shared<'a> {
    /// The directory of its own store.
    pub directory: &'a Path,
    /// The counters of all.
    pub metrics: Arc<ControllerMetrics>,
    /// Where the audit log of all is; `None`: in its own store.
    pub audit: Option<Arc<dyn Store>>,
}

/// The only controller leads for ever. `shared`: with other clusters, if there are any.
pub(super) async fn alone(
    config: &ControllerConfig,
    parts: Parts,
    shared: Option<Shared<'_>>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<ControllerHandle> {
    let own = config.controller.data_directory.as_path();
    let Shared { directory, metrics, audit } =
        shared.unwrap_or_else(|| Shared { directory: own, metrics: metrics(), audit: None });
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let file = directory.join("stormglass.db");
    // An old store is read through when it is opened, and other clusters may be kept meanwhile.
    let store = tokio::task::spawn_blocking(move || SqliteStore::open(&file)).await.context("open the store")??;
    let parts = ControllerParts { metrics, audit, ..parts(Arc::new(Sole::new(Arc::new(store)))) };
    parts.metrics.set_leading(true);
    Ok(controller::start(parts, stopped).await?)
}

fn one_of_several(
    config: &ControllerConfig,
    policy: &Policy,
    parts: Parts,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<(Arc<dyn ControllerHandler>, JoinHandle<()>)> {
    let own = Leader { name: config.controller.name.clone(), url: config.url() };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new()?);
    let settings = etcd_settings(&config.store)?;
    let leadership = EtcdLeadership::new(&settings, own.clone(), policy.leadership_ttl, clock.clone())?;
    let candidacy = Candidacy { own, leadership: Arc::new(leadership), clock, metrics: metrics(), parts };
    let (seat, task) = leading::stand(candidacy, stopped);
    Ok((seat, task))
}

/// The certificate that is shown to etcd, for the doctor.
fn store_certificate(store: &StoreSection) -> anyhow::Result<Option<CertificateFacts>> {
    let Some(path) = &store.certificate_file else { return Ok(None) };
    let summary = certificate_in(path).with_context(|| format!("use store.certificate_file, {}", path.display()))?;
    Ok(Some(CertificateFacts { subject: summary.subject(), expires: summary.expires }))
}

fn etcd_settings(store: &StoreSection) -> anyhow::Result<EtcdSettings> {
    let read = |file: &Path| std::fs::read(file).with_context(|| format!("read {}", file.display()));
    let tls = match &store.ca_file {
        None => None,
        Some(authority) => Some(EtcdTls {
            authority: read(authority)?,
            identity: match (&store.certificate_file, &store.key_file) {
                (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
                _ => None,
            },
        }),
    };
    let user = match (&store.user, &store.password) {
        (Some(user), Some(password)) => Some((user.clone(), secret(password)?)),
        _ => None,
    };
    Ok(EtcdSettings { endpoints: store.endpoints.clone(), prefix: store.prefix.clone(), user, tls })
}

/// Copies an embedded store to etcd, or says what would be copied.
pub fn migrate_store(path: &Path, from: &Path, is_dry_run: bool) -> anyhow::Result<String> {
    let config = load_controller(path)?;
    let policy = config.policy()?;
    if config.store.kind != StoreKind::Etcd {
        bail!("{} has no [store] with kind = \"etcd\": name the configuration of the new store", path.display());
    }
    if !from.is_file() {
        bail!(
            "there is no store {}: name the file stormglass.db in the data_directory of the controller",
            from.display()
        );
    }
    block_on(async move {
        // Opening takes the file for this process, so a controller that runs on it is found.
        let source = SqliteStore::open(from)?;
        let contents = migration::read(&source, &config.cluster.name).await?;
        let found = contents.inventory();
        let Some((epoch, number)) = found.record else {
            bail!(
                "{} holds no record of the cluster {}: the controllers make one from their agents, nothing needs to be copied",
                from.display(),
                config.cluster.name
            );
        };
        let settings = etcd_settings(&config.store)?;
        let own = Leader { name: "migrate-store".to_owned(), url: config.url() };
        let clock = Arc::new(SystemClock::new()?);
        let leadership = EtcdLeadership::new(&settings, own, policy.leadership_ttl, clock)?;
        if let Some(leader) = leadership.observe(OBSERVATION).await? {
            bail!(
                "controller {} leads on this etcd already, at {}: stop every controller first",
                leader.name,
                leader.url
            );
        }
        if !EtcdStore::reader(&settings)?.is_empty().await? {
            bail!(
                "there is something below {} in etcd already: look with etcdctl get --prefix --keys-only {}/ and, if an earlier \
                 copy was cut off, remove it with etcdctl del --prefix {}/",
                settings.prefix,
                settings.prefix,
                settings.prefix
            );
        }
        let words = format!(
            "the record of {} (epoch {epoch}, number {number}), {} operations ({} under way), {} events, {} rows of the audit log",
            config.cluster.name, found.operations, found.unfinished, found.events, found.audit
        );
        if is_dry_run {
            return Ok(format!("would copy {words}\n"));
        }
        let term = tokio::time::timeout(OBSERVATION, leadership.lead())
            .await
            .context("another controller took the leadership: stop every controller first")??;
        let written = contents.write(term.store().as_ref()).await;
        term.resign().await;
        written.context("the copy is not complete, and without a record counts for nothing")?;
        Ok(format!("copied {words}\n{} is as it was: keep it until the controllers run on etcd\n", from.display()))
    })
}

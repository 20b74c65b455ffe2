//! A directory of configurations: one controller, several clusters, which may come and go. Part of `main`, decides nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use tokio::sync::watch;

use stormglass::adapters::control::HttpControl;
use stormglass::adapters::definitions::DefinitionDirectory;
use stormglass::api::controller::ControllerHandler;
use stormglass::cli::exit::chain;
use stormglass::config::store::StoreKind;
use stormglass::config::{ControllerConfig, load_controller, load_controller_text};
use stormglass::controller::{Clusters, Definition, Kept, Workshop};
use stormglass::domain::certificate::Protection;
use stormglass::domain::ids::ClusterName;
use stormglass::ports::Store;
use stormglass::telemetry::metrics::ControllerMetrics;

use super::wiring::{Parts, Shared, alone, metrics, parts as parts_of};

/// What a definition that stands in no file yet is called in errors.
const UNNAMED: &str = "definition";
/// A cluster that was let go has steps of its own that end a little later, and only then is its store free.
const STORE_TRIES: u32 = 40;
/// Between two looks at that.
const STORE_PAUSE: Duration = Duration::from_millis(250);

/// What the controller was started with.
pub struct Loaded {
    /// The directory; `None`: one file.
    pub directory: Option<PathBuf>,
    /// The first cluster.
    pub first: (PathBuf, ControllerConfig),
    /// The others, in the order of their files.
    pub others: Vec<(PathBuf, ControllerConfig)>,
}

/// The configuration in a file, or every one in a directory, in the order of their names.
pub fn load(path: &Path) -> anyhow::Result<Loaded> {
    let path = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
    if !path.is_dir() {
        let config = load_controller(&path)?;
        return Ok(Loaded { directory: None, first: (path, config), others: Vec::new() });
    }
    let entries = std::fs::read_dir(&path).with_context(|| format!("read {}", path.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let loaded = files.into_iter().map(|file| {
        let config = load_controller(&file)?;
        Ok((file, config))
    });
    let mut loaded = loaded.collect::<anyhow::Result<Vec<(PathBuf, ControllerConfig)>>>()?;
    if loaded.is_empty() {
        bail!("{} has no file *.toml: write one for each cluster", path.display());
    }
    let others = loaded.split_off(1);
    let first = loaded.remove(0);
    let mut known = vec![&first];
    for one in &others {
        let (file, config) = one;
        if let Some(section) = differing(config, &first.1).first() {
            bail!(
                "{}: its {section} differs from that of {}: one controller has one of each, write the same into both",
                file.display(),
                first.0.display()
            );
        }
        if let Some((twin, _)) = known.iter().find(|(_, other)| other.cluster.name == config.cluster.name) {
            bail!("{} and {} both keep the cluster {}", twin.display(), file.display(), config.cluster.name);
        }
        let definition = |(file, config): &(PathBuf, ControllerConfig)| Definition::of(config, file, String::new());
        for other in &known {
            let shared = definition(one).shared_agents(&other.1.cluster.name, &definition(other));
            ensure!(shared.is_empty(), "{}: {}", file.display(), shared.join("\n"));
        }
        known.push(one);
    }
    ensure!(
        others.is_empty() || first.1.store.kind == StoreKind::Embedded,
        "{}: several clusters need store.kind = \"embedded\"; with etcd, run a controller for each cluster, with a prefix of its own",
        path.display()
    );
    Ok(Loaded { directory: Some(path), first, others })
}

/// Sections that belong to the process and differ from the first cluster's.
fn differing(config: &ControllerConfig, first: &ControllerConfig) -> Vec<&'static str> {
    let same = [
        ("[controller]", config.controller == first.controller),
        ("[store]", config.store == first.store),
        ("[authentication]", config.authentication == first.authentication),
        ("[tls]", config.tls == first.tls),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(section, _)| section).collect()
}

/// Makes controllers of definitions. Its clusters reach their agents with one client, and share the registry of metrics.
struct Bench {
    first: (PathBuf, ControllerConfig),
    control: HttpControl,
    protection: watch::Receiver<Protection>,
    metrics: Arc<ControllerMetrics>,
    stopped: watch::Receiver<bool>,
    /// The first one's store, once it is open: the audit log of all is there.
    audit: OnceLock<Arc<dyn Store>>,
    /// Clusters that were let go since the controller began: their stores may be busy for a moment.
    let_go: Mutex<BTreeSet<ClusterName>>,
}

impl Bench {
    fn own_directory(&self) -> &Path {
        &self.first.1.controller.data_directory
    }

    /// The first one's store is where that of an only cluster is; each further one has a directory below it.
    fn directory(&self, cluster: &ClusterName) -> PathBuf {
        if *cluster == self.first.1.cluster.name {
            self.own_directory().to_owned()
        } else {
            self.own_directory().join("clusters").join(cluster.as_str())
        }
    }

    fn prepare(&self, config: &ControllerConfig, file: &Path) -> anyhow::Result<Parts> {
        let nodes = config.nodes.iter().map(|node| (node.name.clone(), node.agent.clone())).collect();
        let proxies = config.proxies.iter().map(|proxy| (proxy.name.clone(), proxy.agent.clone())).collect();
        let control = self.control.beside(nodes, proxies)?;
        let store = self.directory(&config.cluster.name).join("stormglass.db").display().to_string();
        parts_of(config, (file, store), config.policy()?, control, self.protection.clone())
    }

    async fn begin(&self, config: &ControllerConfig, parts: Parts) -> anyhow::Result<Kept> {
        let (stop, own) = watch::channel(false);
        let directory = self.directory(&config.cluster.name);
        let (metrics, audit) = (self.metrics.clone(), self.audit.get().cloned());
        let handle = alone(config, parts, Some(Shared { directory: &directory, metrics, audit }), own).await?;
        let (mut stopped, ending) = (self.stopped.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                // A sender that is gone means the same: the process ends.
                _ = stopped.wait_for(|stop| *stop) => drop(ending.send(true)),
                () = ending.closed() => {}
            }
        });
        Ok(Kept { handle: Arc::new(handle), stop })
    }
}

#[async_trait]
impl Workshop for Bench {
    async fn read(&self, text: String) -> Result<ControllerConfig, Vec<String>> {
        let read = move || load_controller_text(Path::new(UNNAMED), text).map_err(|error| chain(&error));
        // Secrets are looked for on disk.
        let config = match tokio::task::spawn_blocking(read).await {
            Ok(read) => read.map_err(|problem| vec![problem])?,
            Err(error) => return Err(vec![error.to_string()]),
        };
        let differing = differing(&config, &self.first.1);
        let problems: Vec<String> = differing
            .into_iter()
            .map(|section| {
                format!(
                    "its {section} differs from that of {}: one controller has one of each, write the same",
                    self.first.0.display()
                )
            })
            .collect();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn store(&self, cluster: &ClusterName) -> PathBuf {
        self.directory(cluster)
    }

    async fn start(&self, config: &ControllerConfig, file: &Path) -> Result<Kept, String> {
        let was_let_go = self.let_go.lock().unwrap_or_else(PoisonError::into_inner).contains(&config.cluster.name);
        let mut tries = if was_let_go { STORE_TRIES } else { 1 };
        loop {
            let parts = self.prepare(config, file).map_err(|error| format!("{error:#}"))?;
            match self.begin(config, parts).await {
                Ok(kept) => return Ok(kept),
                Err(error) if tries <= 1 && was_let_go => {
                    return Err(format!(
                        "{error:#}; what this controller did for it before has perhaps not ended yet: try again later"
                    ));
                }
                Err(error) if tries <= 1 => return Err(format!("{error:#}")),
                Err(_) => tokio::time::sleep(STORE_PAUSE).await,
            }
            tries -= 1;
        }
    }

    fn let_go(&self, cluster: &ClusterName) {
        self.let_go.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.clone());
    }
}

/// Starts every cluster of a directory. All are prepared before the first begins: a mistake in one of them starts nothing.
pub async fn start(
    loaded: Loaded,
    directory: PathBuf,
    control: HttpControl,
    protection: watch::Receiver<Protection>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Arc<dyn ControllerHandler>> {
    let Loaded { first, others, .. } = loaded;
    let definitions = DefinitionDirectory::new(directory, first.0.clone());
    let (audit, let_go) = (OnceLock::new(), Mutex::default());
    let bench = Bench { first, control, protection, metrics: metrics(), stopped, audit, let_go };
    let all = std::iter::once(&bench.first).chain(&others);
    let prepared = all.map(|(file, config)| Ok((config, bench.prepare(config, file)?)));
    let prepared = prepared.collect::<anyhow::Result<Vec<_>>>().context("prepare the clusters of this controller")?;
    let mut kept = Vec::new();
    for (config, parts) in prepared {
        let one = bench.begin(config, parts).await;
        let one = one.with_context(|| format!("start the cluster {}", config.cluster.name))?;
        // The first one comes first.
        bench.audit.get_or_init(|| one.handle.store());
        kept.push(one);
    }
    let first = kept.remove(0);
    Ok(Arc::new(Clusters::new(first, kept, Arc::new(definitions), Arc::new(bench))))
}

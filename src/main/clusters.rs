//! A directory of configurations: one controller, several clusters. Part of `main`, decides nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use tokio::sync::watch;

use stormglass::adapters::control::HttpControl;
use stormglass::api::controller::ControllerHandler;
use stormglass::config::store::StoreKind;
use stormglass::config::{ControllerConfig, load_controller};
use stormglass::controller::Clusters;
use stormglass::domain::certificate::Protection;

use super::wiring::{Parts, Shared, alone, metrics, parts as parts_of};

/// The configuration in a file, or every one in a directory, in the order of their names; never none.
pub fn load(path: &Path) -> anyhow::Result<Vec<ControllerConfig>> {
    if !path.is_dir() {
        return Ok(vec![load_controller(path)?]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let Some(first) = files.first().cloned() else {
        bail!("{} has no file *.toml: write one for each cluster", path.display());
    };
    let configs = files.iter().map(|file| Ok(load_controller(file)?)).collect::<anyhow::Result<Vec<_>>>()?;
    for (at, (file, config)) in files.iter().zip(&configs).enumerate() {
        let same = [
            ("[controller]", config.controller == configs[0].controller),
            ("[store]", config.store == configs[0].store),
            ("[authentication]", config.authentication == configs[0].authentication),
            ("[tls]", config.tls == configs[0].tls),
        ];
        if let Some((section, _)) = same.iter().find(|(_, same)| !same) {
            bail!(
                "{}: its {section} differs from that of {}: one controller has one of each, write the same into both",
                file.display(),
                first.display()
            );
        }
        if let Some(twin) = configs[..at].iter().position(|other| other.cluster.name == config.cluster.name) {
            bail!("{} and {} both keep the cluster {}", files[twin].display(), file.display(), config.cluster.name);
        }
    }
    ensure!(
        configs.len() == 1 || configs[0].store.kind == StoreKind::Embedded,
        "{}: several clusters need store.kind = \"embedded\"; with etcd, run a controller for each cluster, with a prefix of its own",
        path.display()
    );
    Ok(configs)
}

/// The parts of every further cluster. They reach their agents with the client of the first one.
pub fn parts(
    configs: &[ControllerConfig],
    control: &HttpControl,
    protection: &watch::Receiver<Protection>,
) -> anyhow::Result<Vec<(ControllerConfig, Parts)>> {
    let made = configs.iter().map(|config| {
        let nodes = config.nodes.iter().map(|node| (node.name.clone(), node.agent.clone())).collect();
        let proxies = config.proxies.iter().map(|proxy| (proxy.name.clone(), proxy.agent.clone())).collect();
        let control = control.beside(nodes, proxies)?;
        let parts = parts_of(config, config.policy()?, control, protection.clone())?;
        Ok((config.clone(), parts))
    });
    made.collect::<anyhow::Result<_>>().context("prepare the clusters of this controller")
}

/// Starts all of them. The first one's store is where that of an only cluster is; each further one has a directory below it.
pub async fn start(
    config: &ControllerConfig,
    first: Parts,
    others: Vec<(ControllerConfig, Parts)>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Arc<dyn ControllerHandler>> {
    let (own, metrics) = (&config.controller.data_directory, metrics());
    let shared = Shared { directory: own, metrics: metrics.clone(), audit: None };
    let first = alone(config, first, Some(shared), stopped.clone()).await?;
    let mut handles = Vec::new();
    for (config, parts) in others {
        let directory = own.join("clusters").join(config.cluster.name.as_str());
        let shared = Shared { directory: &directory, metrics: metrics.clone(), audit: Some(first.store()) };
        let handle = alone(&config, parts, Some(shared), stopped.clone()).await;
        handles.push(handle.with_context(|| format!("start the cluster {}", config.cluster.name))?);
    }
    Ok(Arc::new(Clusters::new(first, handles)))
}

//! A whole site: lost at once and back, or left by plan; and what clients see that follow the name.
//!
//! The name server and the client stand in neither site, and the controller only if it is to outlive the lost one.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::faults::{RECOVERY_TIMEOUT, THAW_AFTER};
use super::recovery::{wait, wait_until_promoted};
use super::{Injected, controller};
use crate::api::wire::ClusterStatus;
use crate::domain::clock::Moment;
use crate::domain::ids::SiteName;
use crate::lab::client::{Client, Record};
use crate::lab::clock;
use crate::lab::layout::Layout;
use crate::lab::ledger;
use crate::lab::network::{self, Direction, LinkState, Order};
use crate::lab::process;
use crate::lab::report::Report;
use crate::lab::up::Lab;

/// After the name was changed, a client that keeps answers must write again by then: its time to live is 5 s.
const KEPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Lines first, so that nobody hears anything end; then every process of the site. Once another site serves, and the name leads there
/// for every client, the site is switched on again. `with_controller`: the controller is among what is lost, with all that it remembers.
pub(super) async fn lose(
    lab: &mut Lab,
    site: &SiteName,
    with_controller: bool,
    before: &ClusterStatus,
    client: &Client,
    at: &mut Moment,
) -> anyhow::Result<()> {
    let layout = lab.layout().clone();
    let hosts = layout.hosts_in(site);
    let orders = |state| {
        let order = move |host: &str| Order { host: host.to_owned(), peer: None, state, direction: Direction::Both };
        hosts.iter().map(|(host, _)| order(host)).collect::<Vec<_>>()
    };
    *at = clock::now();
    for order in orders(LinkState::CUT) {
        network::order(&layout, &order).await?;
    }
    for (_, directory) in &hosts {
        process::kill_all_of(lab.manifest.uid, directory);
    }
    let rescued = if with_controller { rescue(lab, site).await } else { Ok(()) };
    let followed = match rescued {
        Ok(()) => follow(lab, site, before, client, *at).await,
        Err(error) => Err(error),
    };
    for order in orders(LinkState::default()) {
        network::order(&layout, &order).await?;
    }
    for node in layout.nodes.iter().filter(|node| node.site == *site) {
        lab.start_node(node)?;
    }
    for proxy in layout.proxies.iter().filter(|proxy| proxy.site == *site) {
        lab.start_proxy(proxy)?;
    }
    followed
}

/// What the operations page tells an operator to do whose only controller is lost with its site: another one, with nothing in its
/// store, and the oath that everything in that site is off.
async fn rescue(lab: &mut Lab, site: &SiteName) -> anyhow::Result<()> {
    let former = controller::controller_process(lab)?;
    controller::lose(lab, former).await?;
    let other = other_site(lab.layout(), site)?;
    let deadline = clock::now().plus(RECOVERY_TIMEOUT);
    // Refused until it has heard the survivors, and for as long as a promotion of the lost controller may be on its way.
    while let Err(refusal) = lab.controller.failover_by_oath(other.as_str()).await {
        ensure!(
            clock::now() < deadline,
            "the controller without a store does not take an operator's word: {refusal:#}"
        );
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn other_site(layout: &Layout, site: &SiteName) -> anyhow::Result<SiteName> {
    let node = layout.nodes.iter().find(|node| node.site != *site).context("the lab has two sites")?;
    Ok(node.site.clone())
}

/// Another site has the primary, the name leads there, and every client has found it.
async fn follow(
    lab: &mut Lab,
    site: &SiteName,
    before: &ClusterStatus,
    client: &Client,
    at: Moment,
) -> anyhow::Result<()> {
    wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await?;
    let status = named(lab, site, clock::now().plus(RECOVERY_TIMEOUT)).await?;
    let primary = status.primary.context("somebody is the primary")?;
    ensure!(lab.layout().node(&primary)?.site != *site, "{primary} is of the site that was lost");
    let deadline = clock::now().plus(KEPT_TIMEOUT);
    let wrote_again = |moment: Option<Moment>| moment.is_some_and(|moment| moment > at.plus(Duration::from_secs(1)));
    while !wrote_again(client.last_kept_acknowledgement()) || !wrote_again(client.last_acknowledgement()) {
        ensure!(clock::now() < deadline, "clients that follow the name do not write again");
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(THAW_AFTER).await;
    Ok(())
}

/// Waits until the name leads out of `site`.
async fn named(lab: &mut Lab, site: &SiteName, deadline: Moment) -> anyhow::Result<ClusterStatus> {
    wait(lab, deadline, |status| match &status.name {
        Some(name) if name.agrees && name.site != site.as_str() => Ok(()),
        Some(name) => Err(name.error.clone().unwrap_or_else(|| format!("{} leads to site {site}", name.name))),
        None => Err("nobody looked at the name".to_owned()),
    })
    .await
}

/// A planned move out of `site`.
pub(super) async fn switch(
    lab: &mut Lab,
    site: &SiteName,
    before: &ClusterStatus,
    at: &mut Moment,
) -> anyhow::Result<()> {
    let other = other_site(lab.layout(), site)?;
    *at = clock::now();
    lab.controller.switchover_to(other.as_str()).await?;
    wait_until_promoted(lab, before.epoch, clock::now().plus(RECOVERY_TIMEOUT)).await?;
    named(lab, site, clock::now().plus(RECOVERY_TIMEOUT)).await.map(drop)
}

/// How much longer a client waits that keeps the name's answer for its time to live.
pub(super) fn ttl_wait_seconds(injected: &[Injected], record: &Record, stopped_at: Moment) -> Option<f64> {
    let longest = |acknowledgements, one: &Injected| {
        ledger::longest_gap(acknowledgements, one.at, one.healed.unwrap_or(stopped_at), stopped_at)
    };
    injected
        .iter()
        .filter_map(|one| Some(longest(&record.keeping, one)?.saturating_sub(longest(&record.proxied, one)?)))
        .max()
        .map(|wait| wait.as_secs_f64())
}

/// What is wrong with the name at the end.
pub(super) fn misled(layout: &Layout, report: &Report) -> Option<String> {
    let site = report.new_primary.as_ref().and_then(|primary| layout.node(primary).ok()).map(|node| &node.site)?;
    let proxies = layout.proxies.iter().filter(|proxy| proxy.site == *site);
    let mut wanted: Vec<&str> = proxies.map(|proxy| proxy.write.host.as_str()).collect();
    wanted.sort_unstable();
    let wanted = wanted.join(", ");
    let answer = report.dns_answer.as_deref().unwrap_or("nothing");
    (answer != wanted).then(|| format!("the name leads to {answer}, and the proxies of site {site} are at {wanted}"))
}

//! The lab's network: a process of its own that carries what hosts say to each other, and how it is told to break that.
//!
//! Orders come over a Unix socket, one a line, so that a lab that was left running can be broken too. Which links there
//! are is the layout's; what never passes here is what a host says to itself.

mod frame;
mod link;
mod switch;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

pub use link::LinkState;
use switch::Switch;

use super::layout::{Layout, LinkLayout, socket};
use super::manifest::Manifest;

/// An order is carried out at once; without an answer by then the process hangs.
const ORDER_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes every link between two hosts what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// One of them.
    pub host: String,
    /// The other; every other one if not given, but between namespaces not [`OUTSIDE`](super::namespaces::OUTSIDE): the
    /// client that bypasses HAProxy stands on the cut-off host's side, where it does the most harm.
    pub peer: Option<String>,
    /// What to do to the links between them.
    pub state: LinkState,
    /// Which way; one way alone only between namespaces.
    #[serde(default)]
    pub direction: Direction,
}

/// Which way a fault lies, seen from the order's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Both.
    #[default]
    Both,
    /// What the host sends; it still hears.
    Out,
    /// What the host would hear; it still sends.
    In,
}

impl Order {
    /// Whether it is about `link`.
    fn names(&self, link: &LinkLayout) -> bool {
        let ends = [link.from.as_str(), link.to.as_str()];
        ends.contains(&self.host.as_str()) && self.peer.as_deref().is_none_or(|peer| ends.contains(&peer))
    }
}

/// Serves every link of the lab in `directory` until it is killed.
pub async fn serve(directory: &Path) -> anyhow::Result<()> {
    let manifest = Manifest::read(directory)?
        .with_context(|| format!("there is no lab in {}: start one with stormglass lab up", directory.display()))?;
    // A network does not slow down because the hosts on it are busy. Where it is not allowed it shares with them.
    let _ = rustix::process::setpriority_process(None, -10);
    let layout = manifest.layout;
    let file = layout.network_socket();
    let _ = std::fs::remove_file(&file);
    let orders = UnixListener::bind(&file).with_context(|| format!("listen on {}", file.display()))?;
    if layout.has_namespaces {
        let switch = Switch::open().await?;
        let rules = switch.rules();
        tokio::spawn(switch.serve());
        return take_orders(&orders, |order| rules.obey(order)).await;
    }
    let mut links = Vec::new();
    for link in &layout.links {
        let (state, seen) = watch::channel(LinkState::default());
        tokio::spawn(link::serve(socket(&link.listen)?, socket(&link.target)?, seen));
        links.push((link, state));
    }
    take_orders(&orders, |order| obey(order, &links)).await
}

async fn take_orders(orders: &UnixListener, obey: impl Fn(&Order) -> usize) -> anyhow::Result<()> {
    loop {
        let (connection, _) = orders.accept().await.context("accept an order")?;
        let mut connection = BufReader::new(connection);
        let mut line = String::new();
        if connection.read_line(&mut line).await.is_err() {
            continue;
        }
        let answer = match serde_json::from_str::<Order>(&line) {
            Ok(order) => obey(&order),
            Err(error) => {
                tracing::warn!(%error, "an order that nobody understands");
                0
            }
        };
        let _ = connection.write_all(format!("{answer}\n").as_bytes()).await;
    }
}

/// Returns to how many links it applied.
fn obey(order: &Order, links: &[(&LinkLayout, watch::Sender<LinkState>)]) -> usize {
    if order.direction != Direction::Both {
        return 0;
    }
    let named = links.iter().filter(|(link, _)| order.names(link));
    named.fold(0, |count, (_, state)| {
        state.send_replace(order.state);
        count + 1
    })
}

/// Gives an order to the network of `layout` and returns to how many links it applied.
pub async fn order(layout: &Layout, order: &Order) -> anyhow::Result<usize> {
    if order.direction != Direction::Both && !layout.has_namespaces {
        bail!("one direction alone breaks only between namespaces: start the lab as root, with --namespaces");
    }
    let file = layout.network_socket();
    let exchange = async {
        let mut connection = BufReader::new(UnixStream::connect(&file).await?);
        connection.write_all((serde_json::to_string(order)? + "\n").as_bytes()).await?;
        let mut answer = String::new();
        connection.read_line(&mut answer).await?;
        Ok::<String, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ORDER_TIMEOUT, exchange)
        .await
        .context("the lab's network does not answer")?
        .with_context(|| format!("reach the lab's network at {}", file.display()))?;
    match answer.trim().parse() {
        Ok(0) | Err(_) => {
            bail!("no link of the lab is between {} and {}", order.host, order.peer.as_deref().unwrap_or("others"))
        }
        Ok(count) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::random::Random;

    fn targets(host: &str, peer: Option<&str>) -> Vec<String> {
        let mut layout = Layout::find(Path::new("/tmp/lab"), &mut Random::new(4)).expect("layout");
        layout.lay_links().expect("laid");
        let order = Order {
            host: host.into(),
            peer: peer.map(str::to_owned),
            state: LinkState::default(),
            direction: Direction::Both,
        };
        let mut found: Vec<String> = layout
            .links
            .iter()
            .filter(|link| order.names(link))
            .map(|link| format!("{}-{}", link.from, link.to))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn an_order_names_links_in_both_directions() {
        assert_eq!(targets("n1", Some("controller")), ["controller-n1", "n1-controller"]);
        assert_eq!(targets("controller", Some("n1")), ["controller-n1", "n1-controller"]);
        assert_eq!(
            targets("n2", None),
            ["controller-n2", "database-n2", "n1-n2", "n2-controller", "n2-n1", "n2-n3", "n3-n2", "p1-n2", "p2-n2"]
        );
        assert!(targets("n9", None).is_empty());
    }
}

//! Clients: one writer on every node, past the proxy and inside every partition, and one through the proxy; and the proxy itself.

use std::sync::Arc;
use std::time::Duration;

use stormglass::api::controller::ControllerHandler;
use stormglass::domain::command::ProxyAssignment;
use stormglass::domain::epoch::Epoch;
use stormglass::domain::ids::{ProxyName, SiteName};
use stormglass::domain::report::ProxyReport;

use super::controllers::leading;
use super::server::Disk;
use super::world::{HOSTS, Proxy, State, World, address, cluster, index_at};

pub fn proxy_name() -> ProxyName {
    ProxyName::new("p1").expect("valid")
}

impl Proxy {
    /// Takes a newer assignment and says how it stands.
    pub fn take(&mut self, assignment: &ProxyAssignment) -> ProxyReport {
        let known = self.assignment.as_ref();
        let newer = known.is_none_or(|known| {
            let (theirs, own) = ((assignment.epoch, assignment.number), (known.epoch, known.number));
            if assignment.leader == known.leader {
                assignment.sequence >= known.sequence && theirs >= own
            } else {
                theirs >= own
            }
        });
        if newer {
            self.assignment = Some(assignment.clone());
        }
        self.report()
    }

    pub fn target(&self) -> Option<usize> {
        let assignment = self.assignment.as_ref().filter(|assignment| !assignment.hold)?;
        index_at(&assignment.primary.as_ref()?.address)
    }

    fn report(&mut self) -> ProxyReport {
        self.sequence += 1;
        let led = self.assignment.as_ref().and_then(|known| known.primary.as_ref());
        ProxyReport {
            cluster: cluster(),
            proxy: proxy_name(),
            site: SiteName::new("a").expect("valid"),
            write_address: address(9),
            sequence: self.sequence,
            incarnation: "proxy".to_owned(),
            write_target: led.map(|primary| primary.address.clone()),
            holding: self.assignment.as_ref().is_some_and(|known| known.hold),
            epoch: self.assignment.as_ref().map_or(Epoch(0), |known| known.epoch),
            path: None,
            error: None,
            traffic: None,
            protection: None,
        }
    }
}

/// The proxy's agent, in short: it asks the controller twice a second.
pub async fn tend_proxy(world: Arc<World>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let report = world.lock().proxy.report();
        let controllers = world.lock().controllers.len();
        for index in 0..controllers {
            let Some((process, handle)) = leading(&world, index) else { continue };
            let report = report.clone();
            let asked = async {
                process.pass().await;
                handle.proxy_heartbeat(report).await
            };
            if let Ok(Ok(assignment)) = tokio::time::timeout(Duration::from_secs(1), asked).await {
                world.lock().proxy.take(&assignment);
            }
        }
    }
}

impl State {
    /// A client's transaction: flushed here, told to the client once a standby has it too.
    pub fn write(&mut self, host: usize) {
        let now = self.now();
        let server = &self.hosts[host].server;
        if !self.hosts[host].up || !server.writes(now) || server.disk != Disk::Fine {
            return;
        }
        let identity = self.append(host);
        let server = &mut self.hosts[host].server;
        let position = server.records();
        if let Some(run) = server.run.as_mut() {
            run.waiting.push((identity, position));
        }
    }

    /// All clients, once.
    pub fn clients(&mut self) {
        for host in 0..HOSTS {
            if self.random.percent(20) {
                self.write(host);
            }
        }
        if self.random.percent(30)
            && let Some(target) = self.proxy.target()
        {
            self.write(target);
        }
    }
}

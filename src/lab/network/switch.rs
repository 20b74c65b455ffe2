//! The switch between a lab's namespaces: every packet between two hosts passes here, so that it can be lost or late.
//!
//! Each host's card is a VXLAN tunnel whose other end is this process: packets are real, and what is done to them is done
//! below TCP. It needs no right of its own, and no traffic control in the kernel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::frame::{Destination, destination, mend_checksum};
use super::{Direction, LinkState, Order};
use crate::lab::namespaces::{self, HOSTS, OUTSIDE, TUNNEL_PORT};
use crate::lab::random::Random;

/// Largest packet: jumbo frames and the tunnel's headers.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Packets on their way between two hosts; what comes on top of them is lost, as in any switch.
const QUEUE_LENGTH: usize = 20_000;

/// Packets with the moment when each is due.
type Queue = mpsc::Sender<(Instant, Vec<u8>)>;

/// What is done to packets, by (from, to).
#[derive(Debug, Clone, Default)]
pub(super) struct Rules(Arc<Mutex<BTreeMap<(u8, u8), LinkState>>>);

/// The switch.
pub(super) struct Switch {
    socket: Arc<UdpSocket>,
    rules: Rules,
}

impl Rules {
    /// Returns to how many ways it applied.
    pub(super) fn obey(&self, order: &Order) -> usize {
        let Some(host) = namespaces::number(&order.host) else { return 0 };
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (name, peer) in HOSTS {
            let is_meant = match &order.peer {
                Some(peer) => name == peer,
                None => name != OUTSIDE,
            };
            if !is_meant || peer == host {
                continue;
            }
            if order.direction != Direction::In {
                rules.insert((host, peer), order.state);
                count += 1;
            }
            if order.direction != Direction::Out {
                rules.insert((peer, host), order.state);
                count += 1;
            }
        }
        count
    }

    fn of(&self, from: u8, to: u8) -> LinkState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(from, to)).copied().unwrap_or_default()
    }
}

impl Switch {
    /// Listens where every tunnel ends.
    pub(super) async fn open() -> anyhow::Result<Self> {
        let address = SocketAddr::from((namespaces::tunnel_end(), TUNNEL_PORT));
        let socket = UdpSocket::bind(address).await.with_context(|| format!("listen on {address}"))?;
        Ok(Self { socket: Arc::new(socket), rules: Rules::default() })
    }

    /// How it is told what to do.
    pub(super) fn rules(&self) -> Rules {
        self.rules.clone()
    }

    /// Carries packets for as long as the process lives.
    pub(super) async fn serve(self) {
        let mut random = Random::new(uuid::Uuid::now_v7().as_u128() as u64);
        let mut late: BTreeMap<(u8, u8), Queue> = BTreeMap::new();
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        loop {
            let Ok((length, SocketAddr::V4(source))) = self.socket.recv_from(&mut buffer).await else { continue };
            let packet = &mut buffer[..length];
            let Some(destination) = destination(packet) else { continue };
            mend_checksum(packet);
            let from = source.ip().octets()[3];
            for (_, to) in HOSTS {
                if to == from || !matches!(destination, Destination::All) && destination != Destination::Host(to) {
                    continue;
                }
                let state = self.rules.of(from, to);
                if state.loses(&mut random) {
                    continue;
                }
                let wait = state.held_back(&mut random);
                // As long as others are on their way, none overtakes them.
                let is_behind = late.get(&(from, to)).is_some_and(|queue| queue.capacity() < QUEUE_LENGTH);
                if wait.is_zero() && !is_behind {
                    let _ = self.socket.try_send_to(packet, tunnel_of(to));
                    continue;
                }
                let queue = late.entry((from, to)).or_insert_with(|| deliver_late(Arc::clone(&self.socket), to));
                let _ = queue.try_send((Instant::now() + wait, packet.to_vec()));
            }
        }
    }
}

/// Sends packets to `to` when they are due, in the order in which they came.
fn deliver_late(socket: Arc<UdpSocket>, to: u8) -> Queue {
    let (sender, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE_LENGTH);
    tokio::spawn(async move {
        while let Some((due, packet)) = queue.recv().await {
            sleep_until(due).await;
            let _ = socket.send_to(&packet, tunnel_of(to)).await;
        }
    });
    sender
}

fn tunnel_of(host: u8) -> SocketAddr {
    SocketAddr::from((namespaces::tunnel_address(host), TUNNEL_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(host: &str, peer: Option<&str>, direction: Direction) -> (usize, Rules) {
        let rules = Rules::default();
        let order = Order { host: host.to_owned(), peer: peer.map(str::to_owned), state: LinkState::CUT, direction };
        (rules.obey(&order), rules)
    }

    #[test]
    fn one_direction_alone_can_be_broken() {
        let number = |name| namespaces::number(name).expect("a host");
        let (n1, n2) = (number("n1"), number("n2"));
        let (count, out) = rules("n1", Some("n2"), Direction::Out);
        assert_eq!(count, 1);
        assert!(out.of(n1, n2).cut && !out.of(n2, n1).cut);
        let (_, into) = rules("n1", Some("n2"), Direction::In);
        assert!(!into.of(n1, n2).cut && into.of(n2, n1).cut);
    }

    #[test]
    fn without_a_peer_everything_but_the_outside_is_meant() {
        let number = |name| namespaces::number(name).expect("a host");
        let (count, rules) = rules("n1", None, Direction::Both);
        assert_eq!(count, 2 * (HOSTS.len() - 2));
        assert!(rules.of(number("n1"), number("controller")).cut && rules.of(number("p2"), number("n1")).cut);
        assert!(!rules.of(number("n1"), number(OUTSIDE)).cut && !rules.of(number("n2"), number("n3")).cut);
        assert_eq!(super::tests::rules("n9", None, Direction::Both).0, 0);
    }
}

//! One link between two hosts of the lab: a TCP proxy that can be cut, slowed down and made lossy.
//!
//! Until then nobody can tell it from a direct connection: it refuses while its target refuses, and passes an end or a
//! reset on at once, so that a death is seen through it as fast as without it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};

use crate::lab::random::Random;

/// Connections that may wait to be accepted, as PostgreSQL and HAProxy have it.
const BACKLOG: u32 = 1024;

/// Between two looks at a target that refuses: the longest time that the link lags behind its return.
const TARGET_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// After this the port is tried again; somebody else may hold it for a moment.
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// How long TCP waits before it sends a lost segment again, at least.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// What is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What a link does to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkState {
    /// Nothing passes, no connection comes about, and nobody is told.
    pub cut: bool,
    /// What passes is held back for this long. Each chunk waits for the one before it.
    pub delay: Duration,
    /// Up to so much more, at random.
    #[serde(default)]
    pub jitter: Duration,
    /// Share in per cent of what is lost: of packets between namespaces; else of chunks, each of which stands still for
    /// one retransmission, which is what loss is to whoever uses TCP.
    pub loss_percent: u8,
}

impl LinkState {
    /// Nothing passes.
    pub const CUT: Self = Self { cut: true, delay: Duration::ZERO, jitter: Duration::ZERO, loss_percent: 0 };

    /// Whether the next packet is lost.
    pub(super) fn loses(&self, random: &mut Random) -> bool {
        self.cut || random.below(100) < u64::from(self.loss_percent)
    }

    /// How long the next packet is held back.
    pub(super) fn held_back(&self, random: &mut Random) -> Duration {
        let jitter = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX);
        self.delay + Duration::from_micros(if jitter == 0 { 0 } else { random.below(jitter) })
    }
}

/// Serves a link for as long as the process lives.
pub(super) async fn serve(listen: SocketAddr, target: SocketAddr, state: watch::Receiver<LinkState>) {
    let doubt = Arc::new(Notify::new());
    loop {
        // As long as the target refuses, so does the link: nothing listens.
        while TcpStream::connect(target).await.is_err() {
            tokio::time::sleep(TARGET_POLL_INTERVAL).await;
        }
        match bind(listen) {
            Ok(listener) => accept_while_alive(listener, target, &state, &doubt).await,
            Err(error) => {
                tracing::debug!(%listen, %error, "the link's port is taken");
                tokio::time::sleep(BIND_PAUSE).await;
            }
        }
    }
}

fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// Accepts until the target refuses.
async fn accept_while_alive(
    listener: TcpListener,
    target: SocketAddr,
    state: &watch::Receiver<LinkState>,
    doubt: &Arc<Notify>,
) {
    let mut seen = state.clone();
    loop {
        if seen.borrow_and_update().cut {
            let Ok(()) = stay_dark(&listener, &mut seen).await else { return };
            continue;
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = doubt.notified() => if TcpStream::connect(target).await.is_err() { return },
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                let Ok(far) = TcpStream::connect(target).await else {
                    let _ = near.set_zero_linger();
                    return;
                };
                let (state, doubt) = (state.clone(), Arc::clone(doubt));
                tokio::spawn(async move {
                    if carry(near, far, state).await == Ended::ByTarget {
                        doubt.notify_one();
                    }
                });
            }
        }
    }
}

/// Makes the kernel drop requests for connections, as a dead line does: it answers them by itself for as long as there
/// is room for one that nobody accepted. A single one of our own fills a queue of length 0.
async fn stay_dark(listener: &TcpListener, state: &mut watch::Receiver<LinkState>) -> std::io::Result<()> {
    rustix::net::listen(listener, 0)?;
    let healed = state.wait_for(|state| !state.cut);
    tokio::pin!(healed);
    let filler = tokio::select! {
        filler = TcpStream::connect(listener.local_addr()?) => Some(filler?),
        // A client was faster and fills the queue itself.
        _ = &mut healed => None,
    };
    if let Some(filler) = filler {
        let own = filler.local_addr()?;
        let _ = healed.await;
        while let Ok((connection, peer)) = listener.accept().await {
            let _ = connection.set_zero_linger();
            if peer == own {
                break;
            }
        }
    }
    Ok(rustix::net::listen(listener, i32::try_from(BACKLOG).expect("the backlog is a small number"))?)
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    ByTarget,
    ByClient,
}

/// Carries bytes both ways until one side ends.
async fn carry(mut near: TcpStream, mut far: TcpStream, state: watch::Receiver<LinkState>) -> Ended {
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (ended, is_orderly) = both_ways(&mut near, &mut far, state).await;
    if !is_orderly {
        let _ = near.set_zero_linger();
        let _ = far.set_zero_linger();
    }
    ended
}

/// Who ended first, and whether both ended in order.
async fn both_ways(near: &mut TcpStream, far: &mut TcpStream, state: watch::Receiver<LinkState>) -> (Ended, bool) {
    let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
    let forth = pump(near_read, far_write, state.clone());
    let back = pump(far_read, near_write, state);
    tokio::pin!(forth, back);
    tokio::select! {
        is_orderly = &mut forth => (Ended::ByClient, is_orderly && back.await),
        is_orderly = &mut back => (Ended::ByTarget, is_orderly && forth.await),
    }
}

/// Carries bytes one way. True at an orderly end, which is passed on; false at a reset.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut state: watch::Receiver<LinkState>) -> bool {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // Not even read while the line is cut: the sender's own buffers fill.
        uncut(&mut state).await;
        let length = from.read(&mut chunk).await;
        uncut(&mut state).await;
        slow_down(&state).await;
        match length {
            Ok(0) => return to.shutdown().await.is_ok(),
            Ok(length) if to.write_all(&chunk[..length]).await.is_ok() => {}
            _ => return false,
        }
    }
}

async fn uncut(state: &mut watch::Receiver<LinkState>) {
    // The sender of the state lives as long as the process; without it the link is as it was.
    let _ = state.wait_for(|state| !state.cut).await;
}

async fn slow_down(state: &watch::Receiver<LinkState>) {
    let now = *state.borrow();
    let mut random = Random::new(uuid::Uuid::now_v7().as_u128() as u64);
    let wait = now.held_back(&mut random) + if now.loses(&mut random) { RETRANSMISSION } else { Duration::ZERO };
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener as StdListener};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Line {
        listen: SocketAddr,
        target: Option<TcpListener>,
        state: watch::Sender<LinkState>,
    }

    async fn line() -> Line {
        let free = |last: u8| {
            StdListener::bind((Ipv4Addr::new(127, 9, 9, last), 0)).expect("bound").local_addr().expect("address")
        };
        let listen = free(1);
        let target = TcpListener::bind((Ipv4Addr::new(127, 9, 9, 2), 0)).await.expect("bound");
        let (state, receiver) = watch::channel(LinkState::default());
        tokio::spawn(serve(listen, target.local_addr().expect("address"), receiver));
        // The link looked at its target before it began to listen.
        target.accept().await.expect("looked at");
        Line { listen, target: Some(target), state }
    }

    async fn pair(line: &Line) -> (TcpStream, TcpStream) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let near = loop {
            match TcpStream::connect(line.listen).await {
                Ok(near) => break near,
                Err(_) if tokio::time::Instant::now() < deadline => tokio::task::yield_now().await,
                Err(error) => panic!("the link never listened: {error}"),
            }
        };
        let target = line.target.as_ref().expect("alive");
        let (far, _) = tokio::time::timeout(PATIENCE, target.accept()).await.expect("in time").expect("accepted");
        (near, far)
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways() {
        let line = line().await;
        let (mut near, mut far) = pair(&line).await;
        let mut word = [0; 4];
        near.write_all(b"ping").await.expect("sent");
        far.read_exact(&mut word).await.expect("received");
        assert_eq!(&word, b"ping");
        far.write_all(b"pong").await.expect("sent");
        near.read_exact(&mut word).await.expect("received");
        drop(far);
        assert_eq!(near.read(&mut word).await.expect("an orderly end"), 0);
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_and_a_dead_target_is_refused() {
        let mut line = line().await;
        let (mut near, far) = pair(&line).await;
        line.target = None;
        far.set_zero_linger().expect("set");
        drop(far);
        let mut word = [0; 1];
        assert!(near.read(&mut word).await.is_err(), "reset");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while TcpStream::connect(line.listen).await.is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "still listening for a dead target");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_cut_line_is_silent_and_a_healed_one_goes_on() {
        let line = line().await;
        let (mut near, mut far) = pair(&line).await;
        line.state.send_replace(LinkState { cut: true, ..LinkState::default() });
        near.write_all(b"ping").await.expect("the kernel takes it");
        let short = Duration::from_millis(300);
        let mut word = [0; 4];
        assert!(tokio::time::timeout(short, far.read_exact(&mut word)).await.is_err(), "bytes passed a cut line");
        assert!(tokio::time::timeout(short, TcpStream::connect(line.listen)).await.is_err(), "a connection came about");
        line.state.send_replace(LinkState::default());
        tokio::time::timeout(PATIENCE, far.read_exact(&mut word)).await.expect("in time").expect("received");
        assert_eq!(&word, b"ping");
        let (mut near, mut far) = pair(&line).await;
        near.write_all(b"ping").await.expect("sent");
        far.read_exact(&mut word).await.expect("received");
    }

    #[tokio::test]
    async fn a_delayed_line_is_late() {
        let line = line().await;
        let (mut near, mut far) = pair(&line).await;
        line.state.send_replace(LinkState { delay: Duration::from_millis(80), ..LinkState::default() });
        let began = tokio::time::Instant::now();
        near.write_all(b"ping").await.expect("sent");
        far.read_exact(&mut [0; 4]).await.expect("received");
        assert!(began.elapsed() >= Duration::from_millis(80));
    }
}

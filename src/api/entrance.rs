//! Accepts connections, over TLS where there is a certificate, and says who is at the other end.
//!
//! A handshake is made beside the others: one that hangs holds nobody up. What a certificate entitles to is the routes' to say.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::domain::certificate::{CertificateSummary, Holder};

/// A handshake within a region takes milliseconds; across the world, a second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at the same time. More wait in the socket's queue.
const HANDSHAKES_MAX: usize = 512;
/// Connections that wait to be served: they are taken at once.
const READY_MAX: usize = 64;
/// Failed handshakes that are written down in each minute: everybody can make them, and the disk is finite.
const FAILURES_PER_MINUTE: u32 = 10;

/// A bound socket, and how it is spoken to.
#[derive(Debug)]
pub struct Door {
    listener: std::net::TcpListener,
    tls: Option<Arc<ServerConfig>>,
}

impl Door {
    /// TLS with this configuration; plain HTTP without one.
    pub fn new(listener: std::net::TcpListener, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { listener, tls }
    }

    /// Another way to the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { listener: self.listener.try_clone()?, tls: self.tls.clone() })
    }
}

impl From<std::net::TcpListener> for Door {
    fn from(listener: std::net::TcpListener) -> Self {
        Self::new(listener, None)
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Whose certificate it showed, and proved to have the key of.
    pub holder: Option<Holder>,
}

impl Connected<IncomingStream<'_, Entrance>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Entrance>) -> Self {
        stream.remote_addr().clone()
    }
}

/// What `axum::serve` accepts connections from.
#[derive(Debug)]
pub struct Entrance {
    address: SocketAddr,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Plain(TcpListener),
    Tls { ready: mpsc::Receiver<(Stream, Peer)>, task: JoinHandle<()> },
}

impl Entrance {
    /// Begins to accept.
    pub fn open(door: Door) -> io::Result<Self> {
        door.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(door.listener)?;
        let address = listener.local_addr()?;
        let way = match door.tls {
            None => Way::Plain(listener),
            Some(tls) => {
                let (hand_over, ready) = mpsc::channel(READY_MAX);
                Way::Tls { ready, task: tokio::spawn(shake_hands(listener, TlsAcceptor::from(tls), hand_over)) }
            }
        };
        Ok(Self { address, way })
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if let Way::Tls { task, .. } = &self.way {
            task.abort();
        }
    }
}

impl Listener for Entrance {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        match &mut self.way {
            Way::Plain(listener) => {
                let (stream, address) = accepted(listener).await;
                (Stream::Plain(stream), Peer { address, holder: None })
            }
            Way::Tls { ready, .. } => match ready.recv().await {
                Some(connection) => connection,
                // The task ends only with this entrance.
                None => std::future::pending().await,
            },
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.address, holder: None })
    }
}

async fn accepted(listener: &mut TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, address) = Listener::accept(listener).await;
    // Nagle's algorithm would hold small answers back for up to 40 ms. A connection that is gone already fails at its first read.
    let _gone = stream.set_nodelay(true);
    (stream, address)
}

async fn shake_hands(mut listener: TcpListener, acceptor: TlsAcceptor, hand_over: mpsc::Sender<(Stream, Peer)>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut minute = (Instant::now(), 0);
    let (fail, mut failed) = mpsc::channel::<(SocketAddr, io::Error)>(READY_MAX);
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let (stream, address) = tokio::select! {
            Some((peer, error)) = failed.recv() => {
                if minute.0.elapsed() > Duration::from_secs(60) {
                    minute = (Instant::now(), 0);
                }
                minute.1 += 1;
                if minute.1 <= FAILURES_PER_MINUTE {
                    tracing::warn!(%peer, %error, "refused a connection: no TLS came about");
                }
                continue;
            }
            accepted = accepted(&mut listener) => accepted,
        };
        let (acceptor, hand_over, fail) = (acceptor.clone(), hand_over.clone(), fail.clone());
        tokio::spawn(async move {
            let _place = place;
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    let peer = Peer { address, holder: holder(&stream) };
                    // Nobody takes it when the process stops.
                    let _ = hand_over.send((Stream::Tls(Box::new(stream)), peer)).await;
                }
                // A check whether the port is open says nothing, and is no failure.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => drop(fail.try_send((address, error))),
            }
        });
    }
}

/// Whose certificate the client showed. That it was signed by an authority that counts here was checked in the handshake.
fn holder(stream: &TlsStream<TcpStream>) -> Option<Holder> {
    let (_, connection) = stream.get_ref();
    CertificateSummary::of(connection.peer_certificates()?.first()?).ok()?.holder
}

/// A connection, with or without TLS.
#[derive(Debug)]
pub enum Stream {
    /// As it comes.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

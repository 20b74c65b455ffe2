//! The agent's side of the guard's socket; a guard that died is replaced from here.
//!
//! A lease that no guard watches over is not renewed: [`GuardClient::hold`] fails, and the agent fences in time.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::process;
use super::protocol::{SOCKET, ToAgent, ToGuard, line};
use crate::domain::epoch::Epoch;
use crate::ports::agent::{GuardError, GuardEvent, GuardLink, HeldLease};

/// A guard answers within microseconds; one that does not is hung, and the lease is not renewed with its help.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// A new guard opens its socket within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two attempts at the socket.
const CONNECT_LOOK: Duration = Duration::from_millis(5);

/// Between two attempts at replacing a guard.
const REPLACE_PAUSE: Duration = Duration::from_millis(100);

/// Orders that wait for the guard; more than a few mean that it is gone.
const ORDERS_MAX: usize = 64;

/// How a new guard is started.
#[derive(Debug)]
pub struct GuardReplacement {
    /// The program, by path.
    pub executable: PathBuf,
    /// Its arguments, without the hidden ones.
    pub arguments: Vec<OsString>,
    /// The socket of the health port, which the new guard holds from then on.
    pub health_port: TcpListener,
}

enum Order {
    Hold(HeldLease, oneshot::Sender<()>),
    Release(Epoch),
    Paused(bool),
}

/// Speaks to the guard.
pub struct GuardClient {
    held_at_start: Option<HeldLease>,
    fenced_at_start: Option<Epoch>,
    orders: mpsc::Sender<Order>,
    events: Mutex<mpsc::Receiver<GuardEvent>>,
}

impl GuardClient {
    /// Connects to the guard that started this agent.
    pub async fn connect(state_directory: PathBuf, replacement: GuardReplacement) -> Result<Self, GuardError> {
        let path = state_directory.join(SOCKET);
        let (stream, hello) = Stream::connect(&path).await?;
        let (orders, order_receiver) = mpsc::channel(ORDERS_MAX);
        let (event_sender, events) = mpsc::channel(1);
        let speaker = Speaker {
            path,
            replacement,
            orders: order_receiver,
            events: event_sender,
            held: hello.held,
            paused: false,
            released: None,
            waiting: Vec::new(),
            sequence: 0,
        };
        tokio::spawn(speaker.run(stream));
        Ok(Self { held_at_start: hello.held, fenced_at_start: hello.fenced, orders, events: Mutex::new(events) })
    }

    fn order(&self, order: Order) -> Result<(), GuardError> {
        self.orders.try_send(order).map_err(|_| GuardError("it does not take orders".to_owned()))
    }
}

#[async_trait]
impl GuardLink for GuardClient {
    fn at_start(&self) -> (Option<HeldLease>, Option<Epoch>) {
        (self.held_at_start, self.fenced_at_start)
    }

    async fn hold(&self, held: HeldLease) -> Result<(), GuardError> {
        let (sender, receiver) = oneshot::channel();
        self.order(Order::Hold(held, sender))?;
        match tokio::time::timeout(ANSWER_TIMEOUT, receiver).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(GuardError("it is gone, and a new one is being started".to_owned())),
            Err(_) => Err(GuardError(format!("no answer within {ANSWER_TIMEOUT:?}"))),
        }
    }

    fn release(&self, epoch: Epoch) {
        if let Err(error) = self.order(Order::Release(epoch)) {
            tracing::error!(%error, %epoch, "the guard does not hear that the lease was given back");
        }
    }

    fn paused(&self, paused: bool) {
        if let Err(error) = self.order(Order::Paused(paused)) {
            tracing::warn!(%error, paused, "the guard does not hear of the pause");
        }
    }

    async fn next_event(&self) -> GuardEvent {
        match self.events.lock().await.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

struct Hello {
    held: Option<HeldLease>,
    fenced: Option<Epoch>,
}

struct Stream {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Stream {
    async fn connect(path: &std::path::Path) -> Result<(Self, Hello), GuardError> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, async {
            loop {
                match Self::greet(path).await {
                    Ok(connected) => return connected,
                    Err(error) => tracing::debug!(%error, "the guard is not there yet"),
                }
                tokio::time::sleep(CONNECT_LOOK).await;
            }
        });
        connected.await.map_err(|_| GuardError(format!("no guard at {} within {CONNECT_TIMEOUT:?}", path.display())))
    }

    async fn greet(path: &std::path::Path) -> std::io::Result<(Self, Hello)> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let mut stream = Self { lines: BufReader::new(reader).lines(), writer };
        match stream.hear().await? {
            ToAgent::Hello { held, fenced, oom_score_adjust, .. } => {
                // Before anything is started: PostgreSQL must not inherit the guard's protection.
                if let Err(error) = process::set_oom_score_adjust(oom_score_adjust) {
                    tracing::warn!(%error, "the agent keeps the guard's protection from the OOM killer");
                }
                Ok((stream, Hello { held, fenced }))
            }
            other => Err(std::io::Error::other(format!("the guard begins with {other:?}"))),
        }
    }

    /// Safe to abandon at any time: an unfinished line stays in the buffer.
    async fn hear(&mut self) -> std::io::Result<ToAgent> {
        let text = self.lines.next_line().await?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&text)?)
    }

    async fn say(&mut self, message: &ToGuard) -> std::io::Result<()> {
        self.writer.write_all(&line(message)).await
    }
}

struct Speaker {
    path: PathBuf,
    replacement: GuardReplacement,
    orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<GuardEvent>,
    held: Option<HeldLease>,
    released: Option<Epoch>,
    paused: bool,
    waiting: Vec<(u64, oneshot::Sender<()>)>,
    sequence: u64,
}

impl Speaker {
    async fn run(mut self, mut stream: Stream) {
        loop {
            let Err(error) = self.speak(&mut stream).await else { return };
            // Whoever waits learns at once that nobody watches over that deadline.
            self.waiting.clear();
            tracing::error!(%error, "the guard is gone: starting a new one");
            stream = loop {
                match self.replace().await {
                    Ok(stream) => break stream,
                    Err(error) => {
                        tracing::error!(%error, "there is no guard; PostgreSQL is fenced when the lease ends")
                    }
                }
                tokio::time::sleep(REPLACE_PAUSE).await;
            };
        }
    }

    /// Returns `Ok` when the agent ends, an error when the guard is gone.
    async fn speak(&mut self, stream: &mut Stream) -> std::io::Result<()> {
        loop {
            tokio::select! {
                heard = stream.hear() => match heard? {
                    ToAgent::Held { sequence } => {
                        if let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == sequence) {
                            // Whoever gave up waiting treats the lease as not renewed.
                            let _gave_up = self.waiting.swap_remove(at).1.send(());
                        }
                    }
                    ToAgent::Stop => {
                        // One stop is as good as two.
                        let _full = self.events.try_send(GuardEvent::Stop);
                    }
                    ToAgent::Hello { .. } => {}
                },
                order = self.orders.recv() => match order {
                    Some(order) => self.carry(order, stream).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn carry(&mut self, order: Order, stream: &mut Stream) -> std::io::Result<()> {
        match order {
            Order::Hold(held, answer) => {
                self.waiting.retain(|(_, answer)| !answer.is_closed());
                self.sequence += 1;
                self.waiting.push((self.sequence, answer));
                if self.held.is_none_or(|before| (before.epoch, before.deadline) < (held.epoch, held.deadline)) {
                    self.held = Some(held);
                }
                stream.say(&ToGuard::Hold { held, sequence: self.sequence }).await
            }
            Order::Release(epoch) => {
                self.held = self.held.filter(|held| held.epoch > epoch);
                self.released = self.released.max(Some(epoch));
                stream.say(&ToGuard::Release { epoch }).await
            }
            Order::Paused(paused) => {
                self.paused = paused;
                stream.say(&ToGuard::Paused { paused }).await
            }
        }
    }

    /// Starts a guard that adopts this process, and tells it at once what to watch over.
    async fn replace(&mut self) -> Result<Stream, GuardError> {
        // A guard that only dropped the connection is still there, and then a second one could not get its lock.
        let (mut stream, _) = match Stream::greet(&self.path).await {
            Ok(connected) => connected,
            Err(_) => {
                self.start().map_err(|error| GuardError(format!("start a new guard: {error}")))?;
                Stream::connect(&self.path).await?
            }
        };
        self.sequence += 1;
        let mut messages = vec![ToGuard::Paused { paused: self.paused }];
        messages.extend(self.released.map(|epoch| ToGuard::Release { epoch }));
        messages.extend(self.held.map(|held| ToGuard::Hold { held, sequence: self.sequence }));
        for message in messages {
            stream.say(&message).await.map_err(|error| GuardError(error.to_string()))?;
        }
        Ok(stream)
    }

    fn start(&self) -> std::io::Result<()> {
        let mut guard = tokio::process::Command::new(&self.replacement.executable)
            .args(&self.replacement.arguments)
            .arg("--guard-of")
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(OwnedFd::from(self.replacement.health_port.try_clone()?)))
            .process_group(0)
            .spawn()?;
        tokio::spawn(async move {
            let status = guard.wait().await;
            tracing::error!(?status, "the guard ended");
        });
        Ok(())
    }
}

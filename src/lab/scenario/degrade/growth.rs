//! Faults that grow: each takes a resource of the primary's host away, bit by bit, until it is told to stop.
//!
//! They are tied to the host and not to the role: what moves away from the host is rid of them.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rustix::process::Signal;
use tokio::task::JoinHandle;

use super::squeeze;
use crate::domain::clock::Moment;
use crate::domain::ids::Address;
use crate::lab::arguments::NamedFault;
use crate::lab::client::Session;
use crate::lab::clock;
use crate::lab::confinement::{Confined, Resource};
use crate::lab::layout::NodeLayout;
use crate::lab::process::postgres_family;
use crate::lab::up::Lab;
use crate::lab::volume;

/// How often it takes a bit more.
pub(super) const BITE: Duration = Duration::from_millis(250);
/// Connections that are leaked: a few more than the server has.
const CONNECTIONS: u32 = 220;
/// A thief of processor time lets the processes run for so long, and then stops them for what makes his share.
const SLICE: Duration = Duration::from_millis(50);
/// They are never stopped for longer.
const STOPPED_MAX: Duration = Duration::from_secs(5);
/// WAL that one message adds.
const MESSAGE_BYTES: u64 = 512 * 1024;
/// Name of the slot that nobody reads. Not one of ours: an agent drops what looks like a node's and is none.
const SLOT: &str = "forgotten_consumer";

/// A fault under way.
pub(super) struct Growth {
    brake: Brake,
    task: JoinHandle<anyhow::Result<()>>,
    relief: Relief,
}

/// A server in a limit that does not get tighter before the fault begins.
pub(super) struct Confinement {
    brake: Brake,
    task: JoinHandle<anyhow::Result<()>>,
    began: Arc<OnceLock<Moment>>,
}

/// Ends the fault also where nobody waits for that any more: of a lab that is taken down, nothing may hang in a limit.
struct Brake {
    stop: Arc<AtomicBool>,
    confined: Option<Arc<Confined>>,
}

impl Brake {
    fn pull(&self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        self.confined.as_ref().map_or(Ok(()), |confined| confined.let_go())
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        // Who could be told has asked before.
        let _ = self.pull();
    }
}

/// What gives the resource back.
enum Relief {
    Nothing,
    File(PathBuf),
    Slot(Address, String),
}

impl Confinement {
    /// Confines what a limit will take from; `None` for the other faults.
    pub fn of(lab: &Lab, fault: NamedFault, node: &NodeLayout, grows_for: Duration) -> anyhow::Result<Option<Self>> {
        let resource = match fault {
            NamedFault::DiskSlowing => Resource::Writes,
            NamedFault::MemoryPressure => Resource::Memory,
            _ => return Ok(None),
        };
        let data = node.data_directory();
        let (stop, began) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let confined = Arc::new(Confined::new(lab.manifest.uid, &data, resource)?);
        let brake = Brake { stop: Arc::clone(&stop), confined: Some(Arc::clone(&confined)) };
        let task = squeeze::start(confined, resource, &data, grows_for, Arc::clone(&began), stop);
        Ok(Some(Self { brake, task, began }))
    }
}

impl Growth {
    /// Begins to take; `confinement` where it is a limit that takes.
    pub async fn start(
        lab: &Lab,
        fault: NamedFault,
        node: &NodeLayout,
        grows_for: Duration,
        confinement: Option<Confinement>,
    ) -> anyhow::Result<Self> {
        if let Some(Confinement { brake, task, began }) = confinement {
            began.get_or_init(clock::now);
            return Ok(Self { brake, task, relief: Relief::Nothing });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let brake = Brake { stop, confined: None };
        let volume = node.volume.clone().context("the node has no volume of limited size")?;
        let (task, relief) = match fault {
            NamedFault::DiskFilling => {
                let file = volume.join("ballast");
                let each = free_bytes(&volume)? / bites(grows_for);
                let relief = Relief::File(file.clone());
                (tokio::task::spawn(async move { fill(file, each, &seen).await }), relief)
            }
            NamedFault::ConnectionsLeaking => {
                let address = node.postgres.clone();
                (
                    tokio::task::spawn(async move { leak(&address, grows_for / CONNECTIONS, &seen).await }),
                    Relief::Nothing,
                )
            }
            NamedFault::WalPilingUp => {
                let file = lab.layout().secret("replicator");
                let password = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
                let password = password.trim().to_owned();
                let address = node.postgres.clone();
                let replication = replication(&address, &password).await?;
                let create = format!("SELECT pg_create_physical_replication_slot('{SLOT}', true)");
                replication.simple_query(&create).await.context("make the slot")?;
                let each = free_bytes(&volume)? / bites(grows_for);
                let relief = Relief::Slot(address.clone(), password);
                (tokio::task::spawn(async move { pile_up(&address, each, &seen).await }), relief)
            }
            NamedFault::ProcessorStolen => {
                let (uid, data) = (lab.manifest.uid, node.data_directory());
                let task = tokio::task::spawn(async move {
                    steal(uid, &data, grows_for, &seen).await;
                    Ok(())
                });
                (task, Relief::Nothing)
            }
            other => bail!("{} does not grow", other.label()),
        };
        Ok(Self { brake, task, relief })
    }

    /// Takes no more, and gives back what was taken.
    pub async fn stop(self) -> anyhow::Result<()> {
        // Limits are lifted first of all: until then the server's processes hang in them.
        let lifted = self.brake.pull();
        let ended = self.task.await.context("wait for the fault")?;
        match self.relief {
            Relief::Nothing => {}
            Relief::File(file) => volume::remove(&file)?,
            // A node that comes back as a standby keeps its slots, and what they hold. It may not answer at once.
            Relief::Slot(address, password) => drop_slot(&address, &password).await,
        }
        lifted.and(ended)
    }
}

fn bites(grows_for: Duration) -> u64 {
    u64::try_from(grows_for.as_millis() / BITE.as_millis()).unwrap_or(1).max(1)
}

fn free_bytes(volume: &std::path::Path) -> anyhow::Result<u64> {
    let space = rustix::fs::statvfs(volume).with_context(|| format!("look at {}", volume.display()))?;
    Ok(space.f_bavail * space.f_frsize)
}

/// Fills the volume with a file that grows, as a log would.
async fn fill(file: PathBuf, each: u64, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut ballast = std::fs::File::create(&file).with_context(|| format!("make {}", file.display()))?;
    let bite = vec![0; usize::try_from(each).unwrap_or(usize::MAX).max(4096)];
    while !stop.load(Ordering::Acquire) {
        match ballast.write(&bite) {
            Ok(_) => {}
            // Full: it stays so until somebody gives the space back.
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {}
            Err(error) => return Err(error).with_context(|| format!("fill {}", file.display())),
        }
        tokio::time::sleep(BITE).await;
    }
    Ok(())
}

/// Opens connections to this server and forgets to close them.
async fn leak(address: &Address, pause: Duration, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut leaked = Vec::new();
    while !stop.load(Ordering::Acquire) {
        // Refused: there are none left, or the server does not take connections any more.
        if let Ok(session) = Session::open(address, "lab-leak").await {
            leaked.push(session);
        }
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Stops all processes of a server for a growing share of the time, as a hypervisor does that gives their processor to others.
async fn steal(uid: u32, data: &std::path::Path, grows_for: Duration, stop: &AtomicBool) {
    let began = clock::now();
    let signal_all = |signal| {
        for process in postgres_family(uid, data) {
            process.identity.signal(signal);
        }
    };
    while !stop.load(Ordering::Acquire) {
        let share = (clock::now().since(began).as_secs_f64() / grows_for.as_secs_f64()).min(0.999);
        signal_all(Signal::STOP);
        tokio::time::sleep(SLICE.mul_f64(share / (1.0 - share)).min(STOPPED_MAX)).await;
        signal_all(Signal::CONT);
        tokio::time::sleep(SLICE).await;
    }
    signal_all(Signal::CONT);
}

/// Writes WAL that the slot keeps.
async fn pile_up(address: &Address, each: u64, stop: &AtomicBool) -> anyhow::Result<()> {
    let session = Session::open(address, "lab-wal").await.map_err(|error| anyhow!("{error}"))?;
    let mut owed = 0;
    while !stop.load(Ordering::Acquire) {
        owed += each;
        while owed >= MESSAGE_BYTES {
            owed -= MESSAGE_BYTES;
            let message = format!("SELECT pg_logical_emit_message(false, 'lab', repeat('x', {MESSAGE_BYTES}))");
            // The server may have moved away from under it.
            if session.execute(&message).await.is_err() {
                return Ok(());
            }
        }
        tokio::time::sleep(BITE).await;
    }
    Ok(())
}

async fn replication(address: &Address, password: &str) -> anyhow::Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&address.host)
        .port(address.port)
        .user("replicator")
        .password(password)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(2));
    let (client, connection) =
        config.connect(tokio_postgres::NoTls).await.context("connect as the replication role")?;
    tokio::spawn(connection);
    Ok(client)
}

async fn drop_slot(address: &Address, password: &str) {
    for _ in 0..40 {
        let statement = format!("SELECT pg_drop_replication_slot('{SLOT}')");
        if let Ok(client) = replication(address, password).await
            && client.simple_query(&statement).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(BITE).await;
    }
    tracing::warn!(slot = SLOT, "the slot could not be dropped");
}

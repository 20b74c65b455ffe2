//! Control groups in which the PostgreSQL of one node is made short of memory, or of writes to its disk. Version 1 and 2.
//!
//! Root makes them before a lab starts and hands them to the lab's user. The whole lab begins in one group, at rest; what is
//! squeezed moves to a second one, and back. How tight is not decided here.
//! Invariant: groups end with the lab that they were made for, and a limit with whoever set it.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::clock;
use super::place::User;
use super::process::{ProcessIdentity, postgres_family};
use crate::domain::control_group::{below, mounted, own_group, value_sum};

/// Beginning of the names of a lab's groups; the process that made them follows.
const PREFIX: &str = "stormglass-lab-";
/// Where the lab begins.
const REST: &str = "rest";
/// Where what is squeezed goes.
const SQUEEZED: &str = "squeezed";
/// The file that takes processes in.
const MEMBERS: &str = "cgroup.procs";
/// What a parent lets its children limit, in version 2.
const PASSED_ON: &str = "cgroup.subtree_control";
/// What the kernel can read again.
const PAGES_OF_FILES: [&str; 2] = ["active_file", "inactive_file"];
/// Processes on their way out keep a group for a moment.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);
/// A server that forks meanwhile is looked at again, so many times at most.
const MOVES_MAX: u32 = 16;

/// A version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// A tree for each resource.
    One,
    /// One tree for all.
    Two,
}

/// The groups of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    version: Version,
    /// Where memory is limited.
    memory: PathBuf,
    /// Where block devices are; in version 2 the same.
    blocks: PathBuf,
    /// What the root of version 2 did not pass on before.
    switched_on: Vec<&'static str>,
}

/// A file of a group, and what is written to it.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    file: PathBuf,
    text: String,
}

/// Where groups can be made on this host.
#[derive(Debug, PartialEq, Eq)]
struct Trees {
    version: Version,
    memory: PathBuf,
    blocks: PathBuf,
}

impl Groups {
    /// Makes the groups for a lab of `user`.
    pub fn make(user: &User) -> anyhow::Result<Self> {
        let trees = Trees::here()?;
        sweep(&trees);
        let own = ProcessIdentity::of(std::process::id()).context("find this process in /proc")?;
        let name = format!("{PREFIX}{}-{}", own.pid, own.started_ticks);
        // A group of version 2 with processes in it cannot have children that limit: the root can.
        let mut groups = Self {
            version: trees.version,
            memory: trees.memory.join(&name),
            blocks: trees.blocks.join(&name),
            switched_on: Vec::new(),
        };
        let made = groups.fill(&trees, user);
        if made.is_err() {
            let _ = groups.remove();
        }
        made.map(|()| groups)
    }

    fn fill(&mut self, trees: &Trees, user: &User) -> anyhow::Result<()> {
        if self.version == Version::Two {
            let file = trees.memory.join(PASSED_ON);
            let passed_on = read(&file)?;
            for controller in ["memory", "io"] {
                if !passed_on.split_whitespace().any(|word| word == controller) {
                    write(&Order { file: file.clone(), text: format!("+{controller}") })?;
                    self.switched_on.push(controller);
                }
            }
        }
        for parent in self.parents() {
            make_directory(&parent)?;
            if self.version == Version::Two {
                write(&Order { file: parent.join(PASSED_ON), text: "+memory +io".to_owned() })?;
            }
            for child in [REST, SQUEEZED] {
                make_directory(&parent.join(child))?;
                give(&parent.join(child).join(MEMBERS), user)?;
            }
            // Version 2 asks for the right to write in what both groups have in common.
            give(&parent.join(MEMBERS), user)?;
        }
        for order in [self.memory_limit(None), self.write_limit((0, 0), None)] {
            give(&order.file, user)?;
        }
        Ok(())
    }

    /// The groups that this process was started in.
    pub fn own() -> anyhow::Result<Self> {
        let trees = Trees::here()?;
        let above = |place: &Path| {
            let is_rest = place.file_name().is_some_and(|name| name == REST);
            place.parent().filter(|_| is_rest).map(Path::to_owned)
        };
        let (Some(memory), Some(blocks)) = (above(&trees.own(&trees.memory)?), above(&trees.own(&trees.blocks)?))
        else {
            bail!("this lab was not started in control groups of its own");
        };
        Ok(Self { version: trees.version, memory, blocks, switched_on: Vec::new() })
    }

    /// The files that take the lab in: whoever writes 0 to each is inside.
    pub fn entrances(&self) -> Vec<PathBuf> {
        self.parents().into_iter().map(|parent| parent.join(REST).join(MEMBERS)).collect()
    }

    fn parents(&self) -> Vec<PathBuf> {
        let mut parents = vec![self.memory.clone(), self.blocks.clone()];
        parents.dedup();
        parents
    }

    /// Removes them, after the last process inside has gone.
    pub fn remove(&self) -> anyhow::Result<()> {
        let deadline = clock::now().plus(REMOVAL_PATIENCE);
        for parent in self.parents() {
            for group in [parent.join(SQUEEZED), parent.join(REST), parent.clone()] {
                while let Err(error) = fs::remove_dir(&group) {
                    if error.kind() == io::ErrorKind::NotFound {
                        break;
                    }
                    if clock::now() > deadline {
                        return Err(error).with_context(|| format!("remove the control group {}", group.display()));
                    }
                    sleep(Duration::from_millis(50));
                }
            }
        }
        for controller in &self.switched_on {
            let file = self.memory.parent().context("a group has a parent")?.join(PASSED_ON);
            // Somebody else may need it by now, and then the kernel refuses.
            let _ = write(&Order { file, text: format!("-{controller}") });
        }
        Ok(())
    }

    /// So many bytes may be in memory; `None`: as many as there are.
    fn memory_limit(&self, bytes: Option<u64>) -> Order {
        let (name, unlimited) = match self.version {
            Version::One => ("memory.limit_in_bytes", "-1"),
            Version::Two => ("memory.max", "max"),
        };
        let text = bytes.map_or_else(|| unlimited.to_owned(), |bytes| bytes.to_string());
        Order { file: self.memory.join(SQUEEZED).join(name), text }
    }

    /// So many writes a second may begin on a device; `None`: as many as it takes.
    fn write_limit(&self, (major, minor): (u32, u32), per_second: Option<u64>) -> Order {
        let (name, text) = match self.version {
            // Zero is no limit.
            Version::One => {
                ("blkio.throttle.write_iops_device", format!("{major}:{minor} {}", per_second.unwrap_or(0)))
            }
            Version::Two => {
                let limit = per_second.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
                ("io.max", format!("{major}:{minor} wiops={limit}"))
            }
        };
        Order { file: self.blocks.join(SQUEEZED).join(name), text }
    }

    /// Bytes in memory that cannot be had back: everything but pages of files.
    fn bytes_held(&self) -> anyhow::Result<u64> {
        let group = self.memory.join(SQUEEZED);
        let name = if self.version == Version::One { "memory.usage_in_bytes" } else { "memory.current" };
        let used: u64 = read(&group.join(name))?.trim().parse().context("understand how much memory is used")?;
        Ok(used.saturating_sub(value_sum(&read(&group.join("memory.stat"))?, &PAGES_OF_FILES)))
    }
}

/// What is made short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Memory of the processes, and of the files that they read and write.
    Memory,
    /// Writes to the device that the data are on.
    Writes,
}

/// The PostgreSQL of a node, confined until it is let go.
pub struct Confined {
    groups: Groups,
    uid: u32,
    data: PathBuf,
    device: (u32, u32),
    resource: Resource,
    /// Set once and for all when it is let go: whoever tightens after that does nothing.
    is_over: Mutex<bool>,
}

impl Confined {
    /// Prepares to confine the server on `data`, on a lab whose groups this process was started in. Nothing is moved yet.
    pub fn new(uid: u32, data: &Path, resource: Resource) -> anyhow::Result<Self> {
        let device = rustix::fs::stat(data).with_context(|| format!("look at {}", data.display()))?.st_dev;
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        let data = data.to_owned();
        Ok(Self { groups: Groups::own()?, uid, data, device, resource, is_over: Mutex::new(false) })
    }

    /// Allows so many writes a second, or so many bytes above what cannot be had back. False once it is over.
    pub fn tighten(&self, allowed: u64) -> anyhow::Result<bool> {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_over {
            return Ok(false);
        }
        // Every time: a server that was started again is in the group of whoever started it.
        self.move_all(SQUEEZED)?;
        match self.resource {
            Resource::Memory => {
                let limit = self.groups.bytes_held()? + allowed;
                match set(&self.groups.memory_limit(Some(limit))) {
                    // So much cannot be had back at this moment; the limit before holds.
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
                    other => other.context("limit the memory")?,
                }
            }
            // None at all would be no slow disk but none.
            Resource::Writes => write(&self.groups.write_limit(self.device, Some(allowed.max(1))))?,
        }
        Ok(true)
    }

    /// Lifts the limit and moves the processes back to the others of the lab.
    pub fn let_go(&self) -> anyhow::Result<()> {
        let mut is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        *is_over = true;
        let order = match self.resource {
            Resource::Memory => self.groups.memory_limit(None),
            Resource::Writes => self.groups.write_limit(self.device, None),
        };
        write(&order)?;
        self.move_all(REST)
    }

    /// Moves every process of the server, and those that it forks meanwhile.
    fn move_all(&self, group: &str) -> anyhow::Result<()> {
        let parent = if self.resource == Resource::Memory { &self.groups.memory } else { &self.groups.blocks };
        let file = parent.join(group).join(MEMBERS);
        for _ in 0..MOVES_MAX {
            let members = read(&file)?;
            let members: Vec<u32> = members.lines().filter_map(|line| line.parse().ok()).collect();
            let family = postgres_family(self.uid, &self.data);
            let outside: Vec<u32> =
                family.iter().map(|process| process.identity.pid).filter(|pid| !members.contains(pid)).collect();
            if outside.is_empty() {
                return Ok(());
            }
            for pid in outside {
                match set(&Order { file: file.clone(), text: pid.to_string() }) {
                    // It has ended since.
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                    other => other.with_context(|| format!("move process {pid} to {}", file.display()))?,
                }
            }
        }
        Ok(())
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // Of a lab that is interrupted, too, nothing may wait for a disk that hardly writes.
        let _ = self.let_go();
    }
}

impl Trees {
    /// Finds where memory and block devices can be limited. In version 1 below this process; in version 2 at the root.
    fn here() -> anyhow::Result<Self> {
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let own = read(Path::new("/proc/self/cgroup"))?;
        Self::find(&mounts, &own, |tree| read(&tree.join("cgroup.controllers")).unwrap_or_default())
            .context("neither version 1 nor version 2 of control groups limits both memory and block devices here")
    }

    fn find(mounts: &str, own: &str, controllers: impl Fn(&Path) -> String) -> Option<Self> {
        let one = |controller: &str| {
            let (tree, root) = mounted(mounts, |kind, options| {
                kind == "cgroup" && options.split(',').any(|option| option == controller)
            })
            .next()?;
            Some(tree.join(below(&root, &own_group(own, controller)?)))
        };
        if let (Some(memory), Some(blocks)) = (one("memory"), one("blkio")) {
            return Some(Self { version: Version::One, memory, blocks });
        }
        let (tree, _) = mounted(mounts, |kind, _| kind == "cgroup2").find(|(tree, _)| {
            let offered = controllers(tree);
            ["memory", "io"].iter().all(|wanted| offered.split_whitespace().any(|word| word == *wanted))
        })?;
        Some(Self { version: Version::Two, memory: tree.clone(), blocks: tree })
    }

    /// Where this process is in a tree.
    fn own(&self, tree: &Path) -> anyhow::Result<PathBuf> {
        if self.version == Version::One {
            return Ok(tree.to_owned());
        }
        let own = own_group(&read(Path::new("/proc/self/cgroup"))?, "").context("find this process's control group")?;
        Ok(tree.join(own.strip_prefix("/").unwrap_or(&own)))
    }
}

/// Removes groups whose maker has died, as far as nothing is left in them.
fn sweep(trees: &Trees) {
    let mut places = vec![&trees.memory, &trees.blocks];
    places.dedup();
    let entries = places.into_iter().filter_map(|place| fs::read_dir(place).ok()).flatten().filter_map(Result::ok);
    for entry in entries {
        let name = entry.file_name();
        let Some(maker) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(maker) else { continue };
        if !maker.is_alive() {
            for group in [entry.path().join(SQUEEZED), entry.path().join(REST), entry.path()] {
                let _ = fs::remove_dir(group);
            }
        }
    }
}

fn maker(text: &str) -> Option<ProcessIdentity> {
    let (pid, started_ticks) = text.split_once('-')?;
    Some(ProcessIdentity { pid: pid.parse().ok()?, started_ticks: started_ticks.parse().ok()? })
}

fn make_directory(group: &Path) -> anyhow::Result<()> {
    fs::create_dir(group).with_context(|| format!("make the control group {}", group.display()))
}

fn give(file: &Path, user: &User) -> anyhow::Result<()> {
    chown(file, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} away", file.display()))
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn set(order: &Order) -> io::Result<()> {
    // Not made where it is missing: a control group's files are the kernel's.
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(&order.file)?, order.text.as_bytes())
}

fn write(order: &Order) -> anyhow::Result<()> {
    set(order).with_context(|| format!("write {} to {}", order.text, order.file.display()))
}

#[cfg(test)]
mod tests;

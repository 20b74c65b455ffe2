//! Volumes of limited size: one filesystem a node, mounted by an ordinary user in namespaces of the run's own.
//!
//! The run starts again inside: one namespace in which it may mount, and in that another one in which it is itself
//! again, because PostgreSQL refuses to run as root of any kind. The volumes end with the last process inside.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use super::layout::{Layout, NODE_NAMES};
use super::place::{self, User};
use super::{down, exit, say, unprivileged, up};

/// Size of each: a database of the lab and its WAL take a third of it.
pub const SIZE_MEBIBYTES: u32 = 512;

/// The file that takes the space.
const BALLAST: &str = "ballast";

/// What is written at once.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Mounts a volume for each node and gives way to the program, as the user who started all this.
/// Arguments: size, uid, gid, volumes…, `--`, program and its arguments.
const SCRIPT: &str = r#"set -e
size=$1 uid=$2 gid=$3; shift 3
while [ "$1" != -- ]; do mount -t tmpfs -o "size=$size,mode=0700" stormglass "$1"; shift; done
shift
exec unshare --user --map-user="$uid" --map-group="$gid" -- "$@"
"#;

/// Where a node's volume is.
pub fn of_node(directory: &Path, node: &str) -> PathBuf {
    directory.join(node).join("volume")
}

/// Runs this very command again where volumes of limited size can be mounted, and returns its exit code; 2 where the
/// host does not let an ordinary user do that.
pub async fn run_with_volumes(user: &User) -> anyhow::Result<u8> {
    run_again(user, std::env::args_os().skip(1).collect(), Stdio::inherit()).await
}

/// Runs this program with `given` where volumes of limited size can be mounted.
pub async fn run_again(user: &User, given: Vec<OsString>, out: Stdio) -> anyhow::Result<u8> {
    if let Err(error) = possible().await {
        say(&format!(
            "the scenario needs a filesystem of limited size, and this host does not let {} mount one in a user namespace: {error}; \
             allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0, where they exist) and install util-linux",
            user.name
        ));
        return Ok(exit::USAGE);
    }
    let directory = place::run_directory();
    place::create(&directory)?;
    let volumes: Vec<PathBuf> = NODE_NAMES.iter().map(|node| of_node(&directory, node)).collect();
    for volume in &volumes {
        fs::create_dir_all(volume).with_context(|| format!("make the directory {}", volume.display()))?;
    }
    let mut child = Command::new("unshare");
    child
        .args(["--user", "--map-root-user", "--mount", "--", "sh", "-c", SCRIPT, "volumes"])
        .arg(format!("{SIZE_MEBIBYTES}m"))
        .args([user.uid.to_string(), user.gid.to_string()])
        .args(&volumes)
        .arg("--")
        .arg(up::own_program()?)
        .args(given)
        .arg("--prepared")
        .arg(&directory)
        .stdout(out);
    let status = unprivileged::wait(child.spawn().context("start unshare")?).await?;
    // Inside, the mount points could not be removed.
    if place::is_lab_of(&directory, user.uid) {
        down::take_down(&directory, user.uid)?;
    } else if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    Ok(unprivileged::code_of(status))
}

/// Mounts a volume for each node of a lab in `directory`. Only in the middle of a lab's namespaces may its user do that;
/// they go with the last process inside.
pub fn mount_all(directory: &Path) -> anyhow::Result<()> {
    for node in NODE_NAMES {
        let volume = of_node(directory, node);
        fs::create_dir_all(&volume).with_context(|| format!("make the directory {}", volume.display()))?;
        let options = std::ffi::CString::new(format!("size={SIZE_MEBIBYTES}m,mode=0700")).expect("no zero byte in it");
        rustix::mount::mount("stormglass", &volume, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mount a volume on {}", volume.display()))?;
    }
    Ok(())
}

/// Tries the very thing that is needed.
async fn possible() -> anyhow::Result<()> {
    let tried = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--",
            "sh",
            "-c",
            "mount -t tmpfs -o size=1m stormglass /tmp && unshare --user --map-user=1 --map-group=1 true",
        ])
        .stdin(Stdio::null())
        .output()
        .await
        .context("run unshare")?;
    if !tried.status.success() {
        bail!("{}", String::from_utf8_lossy(&tried.stderr).trim());
    }
    Ok(())
}

/// Puts every node's data on its volume.
pub fn adopt(layout: &mut Layout) -> anyhow::Result<()> {
    for node in &mut layout.nodes {
        let volume = of_node(&layout.directory, node.name.as_str());
        let mounted = rustix::fs::statvfs(&volume).with_context(|| format!("look at {}", volume.display()))?;
        if mounted.f_blocks * mounted.f_frsize > u64::from(SIZE_MEBIBYTES) * 1024 * 1024 {
            bail!("{} is no volume of {SIZE_MEBIBYTES} MiB", volume.display());
        }
        node.volume = Some(volume);
    }
    Ok(())
}

/// Takes all space that is left. Returns how many bytes that was.
pub fn fill(volume: &Path) -> anyhow::Result<u64> {
    let file = volume.join(BALLAST);
    let mut ballast = fs::File::create(&file).with_context(|| format!("make {}", file.display()))?;
    let chunk = vec![0; CHUNK_BYTES];
    let mut taken = 0;
    loop {
        // A short write at the end takes the rest; after it there is nothing.
        match ballast.write(&chunk) {
            Ok(0) => return Ok(taken),
            Ok(length) => taken += length as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(taken),
            Err(error) => return Err(error).with_context(|| format!("fill {}", file.display())),
        }
    }
}

/// Gives the space back.
pub fn relieve(volume: &Path) -> anyhow::Result<()> {
    remove(&volume.join(BALLAST))
}

/// Removes what took the space.
pub fn remove(file: &Path) -> anyhow::Result<()> {
    fs::remove_file(file).with_context(|| format!("remove {}", file.display()))
}

//! Block devices: a small disk for each node, made by root for one run, with control groups that can slow it down.
//!
//! Root makes both in a mount namespace of the run's own and gives way to the lab's user. The disks are files without a
//! name: they and their devices end with the last process inside. The faults that need this are not here.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use tokio::process::Command;

use super::confinement::Groups;
use super::layout::NODE_NAMES;
use super::place::{self, User};
use super::unprivileged::{self, Stay};
use super::{down, volume};

/// Enters the groups, makes a disk for each node and gives way to the program, as the lab's user.
/// Arguments: size, uid, gid, files that take the shell into a group…, `--`, volumes…, `--`, program and its arguments.
///
/// The page cache of the file below a disk is left out: what a node reads and writes would be in memory twice.
const SCRIPT: &str = r#"set -e
size=$1 uid=$2 gid=$3; shift 3
while [ "$1" != -- ]; do echo 0 > "$1"; shift; done
shift
while [ "$1" != -- ]; do
    fallocate -l "$size" "$1.image"
    device=$(losetup --find --show "$1.image")
    rm "$1.image"
    losetup --direct-io=on "$device" 2>/dev/null || true
    mkfs.ext4 -q -m 0 -J size=8 -E "nodiscard,lazy_itable_init=0,root_owner=$uid:$gid" "$device" &&
        mount -t ext4 -o noatime "$device" "$1" || { losetup --detach "$device"; exit 1; }
    losetup --detach "$device"
    # Root's, and in the way of the user who clears the disk.
    rmdir "$1/lost+found"
    shift
done
shift
exec setpriv --reuid="$uid" --regid="$gid" --clear-groups -- "$@"
"#;

/// Size of the disk with which this host is tried.
const TRIAL_SIZE: &str = "64m";

/// What this host lacks; `None` if disks and groups can be made.
pub async fn missing() -> anyhow::Result<Option<String>> {
    let needs = "a disk that gets slower, and memory that gets short for one node alone, need root, loop devices, e2fsprogs, \
                 util-linux (losetup, setpriv, unshare) and control groups that limit memory and block devices";
    if !unprivileged::is_root() {
        return Ok(Some(format!("{needs}: run the command with sudo")));
    }
    let user = unprivileged::lab_user()?;
    let folder = place::run_directory();
    fs::create_dir(&folder).with_context(|| format!("make the directory {}", folder.display()))?;
    let tried = attempt(&user, &folder).await;
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    Ok(tried.err().map(|error| format!("{needs}; what failed here: {error:#}")))
}

/// Tries the very thing that is needed.
async fn attempt(user: &User, folder: &Path) -> anyhow::Result<()> {
    let volume = folder.join("trial");
    fs::create_dir(&volume).with_context(|| format!("make the directory {}", volume.display()))?;
    let groups = Groups::make(user)?;
    let tried = around(TRIAL_SIZE, user, &groups, &[volume]).arg("true").stdin(Stdio::null()).output().await;
    let removed = groups.remove();
    let tried = tried.context("run unshare")?;
    anyhow::ensure!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr).trim());
    removed
}

/// `unshare` with everything up to the program.
fn around(size: &str, user: &User, groups: &Groups, volumes: &[PathBuf]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", SCRIPT, "disks", size])
        .args([user.uid.to_string(), user.gid.to_string()])
        .args(groups.entrances())
        .arg("--")
        .args(volumes)
        .arg("--");
    command
}

/// Runs this program with `given`, as the lab's user, where every node has a disk and a group of its own.
pub async fn run_again(user: &User, given: Vec<OsString>, out: Stdio) -> anyhow::Result<u8> {
    let directory = place::run_directory();
    place::create(&directory)?;
    let volumes: Vec<PathBuf> = NODE_NAMES.iter().map(|node| volume::of_node(&directory, node)).collect();
    let groups = Groups::make(user)?;
    let ran = run_in(user, given, out, &directory, &volumes, &groups).await;
    // Also a lab that could not be started, or was killed in its tracks.
    let taken_down = if place::is_lab_of(&directory, user.uid) {
        down::take_down(&directory, user.uid).map(|_| ())
    } else {
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
    };
    let removed = groups.remove();
    let code = ran?;
    taken_down?;
    removed?;
    Ok(code)
}

async fn run_in(
    user: &User,
    given: Vec<OsString>,
    out: Stdio,
    directory: &Path,
    volumes: &[PathBuf],
    groups: &Groups,
) -> anyhow::Result<u8> {
    for volume in volumes {
        fs::create_dir_all(volume).with_context(|| format!("make the directory {}", volume.display()))?;
        let node = volume.parent().context("a volume is in its node's directory")?;
        for folder in [directory, node, volume] {
            chown(folder, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} away", folder.display()))?;
        }
    }
    let stay = Stay::make(user)?;
    unprivileged::allow_priority();
    let mut child = around(&format!("{}m", volume::SIZE_MEBIBYTES), user, groups, volumes);
    child.arg(stay.program()).args(given).arg("--prepared").arg(directory).stdout(out);
    stay.furnish(&mut child, user);
    let status = unprivileged::wait(child.spawn().context("start unshare")?).await?;
    Ok(unprivileged::code_of(status))
}

//! Filesystems that can be broken: a tmpfs of limited size, and ext4 on a loop device that can be aborted or frozen. Root only.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::Place;

/// A mounted filesystem; unmounted with its test, whatever state it is in.
pub struct Volume {
    pub directory: PathBuf,
    image: Option<PathBuf>,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ran = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
    if ran.status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {said}")) }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// `None`, with a message, where this host does not allow it.
fn or_skip(mounted: Result<(), String>) -> Option<()> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a filesystem needs root");
        return None;
    }
    mounted.inspect_err(|problem| println!("skipped: this host cannot mount the filesystem: {problem}")).ok()
}

impl Volume {
    pub fn tmpfs(place: &Place, name: &str, size: &str) -> Option<Self> {
        let directory = place.directory(name);
        or_skip(run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "stormglass", text(&directory)]))?;
        place.hand_over(&directory);
        Some(Self { directory, image: None })
    }

    pub fn ext4(place: &Place, name: &str) -> Option<Self> {
        let directory = place.directory(name);
        let image = directory.with_extension("image");
        fs::File::create(&image).and_then(|file| file.set_len(256 << 20)).expect("a sparse file");
        or_skip(run("mkfs.ext4", &["-q", text(&image)]).and_then(|()| mount(&image, &directory)))?;
        place.hand_over(&directory);
        Some(Self { directory, image: Some(image) })
    }

    /// What the kernel does after an I/O error in the journal: every write fails from now on.
    pub fn abort(&self) {
        run("sync", &["-f", text(&self.directory)]).expect("initdb left its files to the page cache");
        run("mount", &["-o", "remount,abort", text(&self.directory)]).expect("ext4");
    }

    /// Unmounts, repairs and mounts again: the disk was replaced.
    pub fn mount_again(&self) {
        let image = self.image.as_deref().expect("ext4");
        run("umount", &[text(&self.directory)]).expect("nobody uses it");
        mount(image, &self.directory).expect("its journal is replayed");
    }

    /// Every write hangs in the kernel until `thaw`.
    pub fn freeze(&self) {
        run("fsfreeze", &["-f", text(&self.directory)]).expect("ext4");
    }

    pub fn thaw(&self) {
        run("fsfreeze", &["-u", text(&self.directory)]).expect("frozen");
    }

    /// Takes it out of the tree while processes stand in it.
    pub fn detach(&self) {
        run("umount", &["-l", text(&self.directory)]).expect("mounted");
    }

    /// Moves a directory of PostgreSQL here and leaves a link.
    pub fn take_over(&self, place: &Place, directory: &Path, target: &Path) {
        run("cp", &["-a", text(directory), text(target)]).expect("copied");
        fs::remove_dir_all(directory).expect("own directory");
        std::os::unix::fs::symlink(target, directory).expect("linked");
        place.hand_over(target);
    }

    /// Takes all space that is left.
    pub fn fill(&self) {
        let mut ballast = fs::File::create(self.directory.join("ballast")).expect("made");
        let chunk = vec![0; 64 * 1024];
        loop {
            match ballast.write(&chunk) {
                Ok(length) if length > 0 => {}
                Err(error) if error.kind() != std::io::ErrorKind::StorageFull => panic!("fill: {error}"),
                _ => return,
            }
        }
    }

    pub fn relieve(&self) {
        fs::remove_file(self.directory.join("ballast")).expect("filled before");
    }
}

fn mount(image: &Path, directory: &Path) -> Result<(), String> {
    run("mount", &["-o", "loop,errors=remount-ro", text(image), text(directory)])
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.image.is_some() {
            // Fails unless a test broke off while it was frozen.
            let _thawed = run("fsfreeze", &["-u", text(&self.directory)]);
        }
        let _gone = run("umount", &["-l", text(&self.directory)]);
    }
}

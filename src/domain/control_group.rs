//! The kernel's words about control groups (cgroups(7)), version 1 and 2: where they are mounted, who is in which, what they hold.
//!
//! Pure text; who reads the files is elsewhere.

use std::path::{Path, PathBuf};

/// The sum of some lines of `memory.stat`.
pub fn value_sum(statistics: &str, names: &[&str]) -> u64 {
    let values = statistics.lines().filter_map(|line| line.split_once(' '));
    values.filter(|(name, _)| names.contains(name)).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

/// Mount point and root of every mount in the words of proc_pid_mountinfo(5) that is wanted by its type and options.
pub fn mounted<'m>(
    mounts: &'m str,
    is_wanted: impl Fn(&str, &str) -> bool + 'm,
) -> impl Iterator<Item = (PathBuf, PathBuf)> + 'm {
    mounts.lines().filter_map(move |line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (name, options) = (kind.next()?, kind.nth(1)?);
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        is_wanted(name, options).then(|| (PathBuf::from(point), PathBuf::from(root)))
    })
}

/// The path of a process's group, by what the tree limits (cgroups(7)); nothing for that of version 2.
pub fn own_group(text: &str, controller: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then(|| PathBuf::from(path))
    })
}

/// A path of /proc as it is found below a mount of `root`.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).or_else(|_| path.strip_prefix("/")).unwrap_or(path).to_owned()
}

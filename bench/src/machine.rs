//! Which machine and which source the figures are of.

use serde::Serialize;
use std::path::Path;
use std::process::Command;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// File system and device of the data directory.
    pub disk: Disk,
}

/// Where the data directory lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Type of the file system.
    pub file_system: String,
    /// What is mounted.
    pub device: String,
}

impl Disk {
    /// Whether a sync costs nothing here.
    pub fn is_memory(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs")
    }
}

impl Machine {
    /// This one, with the disk that holds `dir`.
    pub fn this(dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu =
            field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.into());
        Self {
            cpu,
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            memory_bytes: memory_kib * 1024,
            disk: disk_of(&read("/proc/self/mountinfo"), &dir),
        }
    }
}

/// The value of the first `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().into())
}

/// The mount that holds `dir`: the last one with the longest mount point above it.
fn disk_of(mountinfo: &str, dir: &Path) -> Disk {
    let mut best = (0, Disk::default());
    for line in mountinfo.lines() {
        // "36 35 98:0 /root /mount/point options ... - type device options"
        let Some((mount, system)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let mut system = system.split(' ').map(String::from);
        let disk = Disk {
            file_system: system.next().unwrap_or_default(),
            device: system.next().unwrap_or_default(),
        };
        if dir.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), disk);
        }
    }
    best.1
}

/// The commit of the source in the working directory, marked if there are changes on top of it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|list| !list.is_empty());
    if changed { format!("{commit}-dirty") } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_the_directory() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 22 0:26 / /tmp rw - tmpfs tmpfs rw\n\
                      31 22 0:27 / /tmpfile rw - xfs /dev/vdb rw\n";
        let disk = |dir: &str| disk_of(mounts, Path::new(dir)).file_system;
        assert_eq!(disk("/home/x"), "ext4");
        assert_eq!(disk("/tmp/x"), "tmpfs");
        assert_eq!(disk("/tmpfiles"), "ext4");
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(field("model\t: 3\nmodel name\t: A B\n", "model name").as_deref(), Some("A B"));
        assert_eq!(field("MemTotal:  12 kB\n", "MemTotal").as_deref(), Some("12 kB"));
        assert_eq!(field("a : b\n", "c"), None);
    }
}

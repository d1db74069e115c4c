//! Disks for tests whose power can be cut: a file system on a loop device, whose backing file lies on another one.
//!
//! ```text
//!   dir/data        what a node sees: ext4 on loop device 2
//!   dir/outer       ext4 on loop device 1, with inner.img, which backs loop device 2
//!   dir/outer.img   backs loop device 1
//! ```
//! The cut is the shutdown call of the *outer* file system: from then on every write and sync of the inner one
//! fails, and what its device had taken without a sync is gone with it, as with a real disk's volatile cache. Cutting
//! the inner one would lose only what its own page cache and journal hold.
//!
//! Mounts live in a name space of the thread that makes them, which its child processes inherit: whatever ends
//! the test, even `kill -9`, takes them along with the loop devices.

use crate::processes::GUARD;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// `EXT4_IOC_SHUTDOWN`, the same number as `XFS_IOC_GOINGDOWN`: `_IOR('X', 125, u32)`.
const SHUTDOWN: libc::c_ulong = 0x8004_587D;
/// Stop at once, without writing the journal out.
const NO_LOG_FLUSH: u32 = 2;

/// One disk.
pub struct LoopDisk {
    dir: PathBuf,
}

impl LoopDisk {
    /// A new one in `dir`, with a file system of so many MiB, mounted. Its bytes are taken as they are written.
    pub fn create(dir: &Path, mib: u64) -> Result<Self, String> {
        let disk = Self { dir: dir.to_path_buf() };
        for part in ["outer", "data"] {
            std::fs::create_dir_all(dir.join(part)).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        disk.format("outer.img", 2 * mib + 32)?;
        disk.mount_one("outer.img", "outer")?;
        disk.format("outer/inner.img", mib)?;
        disk.mount_one("outer/inner.img", "data")?;
        // The backing file itself is to survive.
        run(Command::new("sync").arg("-f").arg(disk.dir.join("outer")))?;
        Ok(disk)
    }

    /// Where the node's data goes.
    pub fn path(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Cuts the power: nothing that isn't synced by now ever will be.
    pub fn cut(&self) {
        let root = File::open(self.dir.join("outer")).unwrap();
        let flags = NO_LOG_FLUSH;
        // SAFETY: the descriptor is open until the end of the function, and the call reads one u32 from where it is told.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const flags) };
        assert_eq!(result, 0, "the file system's shutdown: {}", std::io::Error::last_os_error());
    }

    /// The power comes back. Whoever used the disk has been killed.
    pub fn restore(&self) {
        for part in ["data", "outer"] {
            let until = Instant::now() + GUARD;
            // The kernel lets go of a dead process's ring, and of the files that it holds, a little later.
            while let Err(reason) = run(Command::new("umount").arg(self.dir.join(part))) {
                assert!(Instant::now() < until, "{reason}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.mount_one("outer.img", "outer").unwrap();
        self.mount_one("outer/inner.img", "data").unwrap();
    }

    fn format(&self, image: &str, mib: u64) -> Result<(), String> {
        let image = self.dir.join(image);
        let file = File::create(&image).map_err(|error| format!("{}: {error}", image.display()))?;
        file.set_len(mib << 20).map_err(|error| format!("{}: {error}", image.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))
    }

    fn mount_one(&self, image: &str, at: &str) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.dir.join(image)).arg(self.dir.join(at)))
    }
}

/// Runs a test on a thread that may mount, in a directory of its own. Where nobody may it is skipped, with the reason
/// printed, but not under `CI=true` on a machine that has loop devices.
pub fn with_mounts(test: impl FnOnce(&Path) + Send + 'static) {
    let mut dir = crate::processes::temp_dir();
    dir.disable_cleanup(std::env::var("FLOE_KEEP").is_ok());
    let path = dir.path().to_path_buf();
    let body = move || {
        let ready = private_mounts().and_then(|()| LoopDisk::create(&path.join("probe"), 16));
        match ready {
            Ok(_) => test(&path),
            Err(reason) => skip(&reason),
        }
    };
    // The directory goes when nobody has mounts in it any more.
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn skip(reason: &str) {
    let is_required = std::env::var("CI").is_ok_and(|ci| ci == "true") && Path::new("/dev/loop0").exists();
    assert!(!is_required, "loop devices can't be used, which CI must be able to: {reason}");
    println!("skipped, loop devices can't be used here: {reason}");
}

/// Gives this thread mounts of its own.
fn private_mounts() -> Result<(), String> {
    // SAFETY: it changes what this thread sees of the file system, and touches no memory.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => run(Command::new("mount").args(["--make-rprivate", "/"])),
        _ => Err(format!("no mounts of one's own: {}", std::io::Error::last_os_error())),
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

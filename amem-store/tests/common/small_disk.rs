//! A disk that is soon full.
//!
//! A test that is not allowed to mount one says so and passes; with `AMEM_REQUIRE_SMALL_DISK=1` it fails.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Stdio};

/// A file system of two megabytes.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` if this user may not mount one, which is told.
    pub(crate) fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "amem-test"]).arg(dir.path()).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        let required = std::env::var("AMEM_REQUIRE_SMALL_DISK").is_ok_and(|value| value == "1");
        assert!(!required, "no small file system can be mounted, and AMEM_REQUIRE_SMALL_DISK wants one");
        eprintln!("SKIPPED: mounting a small file system needs the rights of the superuser");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

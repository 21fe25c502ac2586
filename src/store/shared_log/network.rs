//! What is different on NFS, as far as it is a matter of single files. Why, and what follows for the log, stands in
//! [`follow`](super::follow).

use std::fs::File;
use std::io;

/// Whether a file is on NFS.
#[cfg(target_os = "linux")]
pub(super) fn is_on_nfs(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == rustix::fs::NFS_SUPER_MAGIC)
}

/// Elsewhere it cannot be told, so every read asks for the lock, which is right on any file system.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_on_nfs(_: &File) -> bool {
    true
}

/// Lets every read and write of a file on NFS go to the server, past what this machine has in memory of it. On other file
/// systems it does nothing.
///
/// A lock should make that fresh, and nearly always does. But the server may promise a client that nobody else writes to a
/// file, when nobody else has it open at that moment; then the client trusts its memory, lock or not, even if that is older
/// than what somebody wrote who has closed the file since. NFS asks for no alignment here, as disks do.
#[cfg(target_os = "linux")]
pub(super) fn read_past_the_cache(file: &File) -> io::Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    if is_on_nfs(file) {
        fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT)?;
    }
    Ok(())
}

/// There is no such switch.
#[cfg(not(target_os = "linux"))]
pub(super) fn read_past_the_cache(_: &File) -> io::Result<()> {
    Ok(())
}

//! Memory that is used again: fresh pages from the system cost more than the arithmetic on them.

/// Have the C library keep freed memory for the next tensor rather than return it to the system.
///
/// GNU's returns large blocks as soon as they are freed, and fresh ones cost a page fault for every 4 KiB. With other
/// libraries nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call changes two numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

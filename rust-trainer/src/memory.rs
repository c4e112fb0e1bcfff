//! What this process asks of the C library and of Candle before it begins.

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

/// Have Candle do its own simple operations with one thread.
///
/// Candle 0.11 divides each of them among threads that wait for each other by spinning: on two busy cores a seventh of
/// the time of a training step. The heavy operations are ours, and use rayon's threads, which sleep.
pub fn keep_candle_from_spinning() {
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: called first of all, while there is one thread.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

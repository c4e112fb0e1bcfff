//! Threads that prepare what is needed next, and how many of them are of use.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::errors::Result;

/// How long each number of threads is tried.
const MEASURED: Duration = Duration::from_millis(100);
/// Twice the threads have to read so many times as much; less is within the noise, or not worth the cores.
const WORTHWHILE: f64 = 1.2;

/// Results of `work(0)`, `work(1)`, ... in order, prepared by threads that keep up to two results each in stock.
pub struct Prefetch<T> {
    results: Receiver<(usize, Result<T>)>,
    early: BTreeMap<usize, Result<T>>,
    permits: Option<SyncSender<()>>,
    next: usize,
    count: usize,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    in_place: Option<Box<dyn FnMut(usize) -> Result<T> + Send>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Start `workers` threads on tasks 0 to count - 1; with 0 workers each task is done when it is asked for.
    pub fn new(count: usize, workers: usize, work: impl Fn(usize) -> Result<T> + Send + Sync + 'static) -> Self {
        let (sender, results) = sync_channel(2 * workers + 1);
        let stop = Arc::new(AtomicBool::new(false));
        let mut prefetch = Self {
            results,
            early: BTreeMap::new(),
            permits: None,
            next: 0,
            count,
            stop,
            threads: Vec::new(),
            in_place: None,
        };
        if workers == 0 {
            prefetch.in_place = Some(Box::new(work));
            return prefetch;
        }
        // A permit is a task that may be begun: so many results at most wait for the reader, whatever their order.
        let (permits, allowed) = sync_channel::<()>(count.max(1) + 2 * workers);
        for _ in 0..2 * workers + 1 {
            let _ = permits.try_send(());
        }
        prefetch.permits = Some(permits);
        let (work, allowed, begun) = (Arc::new(work), Arc::new(Mutex::new(allowed)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..workers.min(count) {
            let (work, allowed, begun) = (work.clone(), allowed.clone(), begun.clone());
            let (stop, sender) = (prefetch.stop.clone(), sender.clone());
            prefetch.threads.push(std::thread::spawn(move || {
                loop {
                    let permit = allowed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let task = begun.fetch_add(1, Ordering::Relaxed);
                    if permit.is_err() || task >= count || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if sender.send((task, work(task))).is_err() {
                        return;
                    }
                }
            }));
        }
        prefetch
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if self.next == self.count {
            return None;
        }
        let wanted = self.next;
        self.next += 1;
        if let Some(work) = &mut self.in_place {
            return Some(work(wanted));
        }
        loop {
            if let Some(result) = self.early.remove(&wanted) {
                if let Some(permits) = &self.permits {
                    let _ = permits.try_send(());
                }
                return Some(result);
            }
            let (task, result) = self.results.recv().expect("a reading thread ended early: it panicked");
            self.early.insert(task, result);
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.permits = None;
        // Room in the channel for those that are about to send.
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            while self.results.try_recv().is_ok() {}
            std::thread::sleep(Duration::from_micros(200));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Return how many cores this process may use.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Return the number of threads beyond which twice as many would hardly read more, and why it was picked.
///
/// `read` does what a thread will have to do, on some of what there is to read; measured in some tenths of a second.
pub fn pick_workers(tasks: &[usize], read: impl Fn(usize) + Sync) -> (usize, String) {
    let next = AtomicUsize::new(0);
    let mut rates: Vec<(usize, f64)> = Vec::new();
    // A slow disk gains from more threads than there are cores; more than four a core have not been seen to help.
    for workers in (0..7).map(|power| 1 << power).take_while(|&workers| workers <= 4 * available_cores()) {
        rates.push((workers, rate(tasks, &next, &read, workers)));
        if workers > 1 && !gained(&rates) {
            break;
        }
    }
    let most = rates.last().map_or(1, |&(workers, _)| workers);
    let picked = if rates.len() == 1 || gained(&rates) { most } else { most / 2 };
    let tried: Vec<String> = rates.iter().map(|(workers, rate)| format!("{rate:.0} with {workers}")).collect();
    (picked, format!("measured samples/s: {}", tried.join(", ")))
}

fn gained(rates: &[(usize, f64)]) -> bool {
    match rates {
        [.., (_, before), (_, after)] => *after > 0.0 && *after >= WORTHWHILE * before,
        _ => false,
    }
}

fn rate(tasks: &[usize], next: &AtomicUsize, read: &(impl Fn(usize) + Sync), workers: usize) -> f64 {
    let (began, done) = (Instant::now(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while began.elapsed() < MEASURED {
                    let Some(&task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    read(task);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

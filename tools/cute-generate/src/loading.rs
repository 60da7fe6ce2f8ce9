//! Hashing the model's files while its weights are loaded.

use anyhow::Context;
use cute_checkpoint::Checkpoint;
use cute_cli::watched;
use cute_records::FileDigest;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// A digest of every file, under way. Whoever stops waiting for it leaves it behind.
pub struct Hashing {
    thread: JoinHandle<Result<Vec<FileDigest>, cute_checkpoint::Error>>,
    done: Arc<AtomicU64>,
    total: u64,
}

impl Hashing {
    /// Starts to hash, shards in parallel, on threads of its own and those of the pool.
    pub fn start(checkpoint: &Arc<Checkpoint>) -> anyhow::Result<Hashing> {
        let (done, total) = (Arc::new(AtomicU64::new(0)), checkpoint.total_bytes());
        let (files, count) = (checkpoint.clone(), done.clone());
        let hash = move || files.digest(|n| _ = count.fetch_add(n, Ordering::Relaxed));
        let thread = std::thread::Builder::new().name("hash".into()).spawn(hash);
        Ok(Hashing { thread: thread.context("starting a thread to hash the model")?, done, total })
    }

    /// Waits for the digests.
    pub fn finish(self) -> anyhow::Result<Vec<FileDigest>> {
        let Hashing { thread, done, total } = self;
        let wait = || thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(watched(total, "hashing the model", || done.load(Ordering::Relaxed), wait)?)
    }
}

/// Does what loads the weights, under a bar of the bytes that are read meanwhile. Returns their number as well.
pub fn loading<T>(checkpoint: &Checkpoint, load: impl FnOnce() -> T) -> (T, u64) {
    let before = checkpoint.bytes_read();
    let read = || checkpoint.bytes_read() - before;
    (watched(checkpoint.weight_bytes(), "loading", read, load), read())
}

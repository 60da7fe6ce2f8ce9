//! The device that CUDA tests run on.
#![allow(dead_code)] // each test binary uses a part

use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::{Driver, Emulated, Settings};
use cute_engine::backend::{CacheShape, KvDtype};
use cute_engine::batch::{Batch, BatchKind, Segment};
use std::sync::Arc;

/// The device to test, or a line that says why there is none.
pub fn device() -> Option<Arc<dyn Gpu>> {
    device_or(Settings::default())
}

/// The same; emulated with such settings.
pub fn device_or(settings: Settings) -> Option<Arc<dyn Gpu>> {
    let gpu = match std::env::var("CUTE_TEST_DEVICE") {
        Ok(name) => {
            let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).expect("cuda:N");
            Driver::open(ordinal).map(|d| Arc::new(d) as Arc<dyn Gpu>)
        }
        Err(_) => Emulated::new(settings).map(|d| Arc::new(d) as Arc<dyn Gpu>),
    };
    match gpu {
        Ok(gpu) => Some(gpu),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

/// A device is quick; emulated, a part stands for the whole.
pub fn on_a_device() -> bool {
    std::env::var("CUTE_TEST_DEVICE").is_ok()
}

/// Caches for a [`batch`] of up to `rows` rows.
pub fn cache_shape(rows: usize) -> CacheShape {
    CacheShape {
        num_pages: rows + 1,
        page_size: 64,
        kv_dtype: KvDtype::F32,
        num_slots: rows + 1,
        max_rows: rows,
        max_len: 64,
    }
}

/// A step of `n` rows, each the only one of its sequence: a prompt's products then take the decode step's kernels.
pub fn batch(kind: BatchKind, n: usize) -> Batch {
    let segment = |i| Segment {
        owner: i as u64,
        slot: i as u32 + 1,
        epoch: 1,
        pages: vec![i as u32 + 1],
        page_epochs: vec![1],
        start: 0,
        row: i,
        len: 1,
    };
    Batch {
        kind,
        tokens: (0..n as u32).collect(),
        segments: (0..n).map(segment).collect(),
        logit_rows: (0..n).rev().collect(),
    }
}

//! The device that CUDA tests run on.

use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::{Driver, Emulated, Settings};
use std::sync::Arc;

/// The device to test, or a line that says why there is none.
pub fn device() -> Option<Arc<dyn Gpu>> {
    let gpu = match std::env::var("CUTE_TEST_DEVICE") {
        Ok(name) => {
            let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).expect("cuda:N");
            Driver::open(ordinal).map(|d| Arc::new(d) as Arc<dyn Gpu>)
        }
        Err(_) => Emulated::new(Settings::default()).map(|d| Arc::new(d) as Arc<dyn Gpu>),
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

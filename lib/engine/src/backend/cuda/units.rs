//! Which kernels a model uses, each specialised to the model's shapes.

use super::gpu::Unit;
use cute_checkpoint::Config;

/// Every unit that a model of this shape can ask for.
pub fn units(_config: &Config) -> Vec<Unit> {
    vec![Unit { file: "probe.cu", defines: vec![("BLOCK", "256".to_owned())] }]
}

//! cute-generate: run the engine over prompts; print completion records
fn main() {}

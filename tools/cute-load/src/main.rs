//! cute-load: open, hash and check a checkpoint; print one model record
fn main() {}

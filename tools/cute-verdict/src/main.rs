//! cute-verdict: judge records; the exit code is the judgment
fn main() {}

//! cute-audit: check records for invariants; append findings
fn main() {}

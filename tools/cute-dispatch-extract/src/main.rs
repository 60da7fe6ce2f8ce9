//! cute-dispatch-extract: text logs to typed records
fn main() {}

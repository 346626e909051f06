//! nixbox
fn main() {}

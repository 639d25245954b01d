//! virtsnapd.
fn main() {}

//! Black-box tests: they see the public face of the crate, and the fakes.

mod architecture;
mod crashes;
mod faults;
mod harness;
mod model;

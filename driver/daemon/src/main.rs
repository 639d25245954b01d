//! virtsnapd.
#![allow(dead_code, reason = "parts are landed before they are wired")]

mod dispatch;
mod outbox;
mod service;
mod session;
mod stream;
mod wire;

fn main() {}

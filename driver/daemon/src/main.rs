//! virtsnapd.
#![allow(dead_code, reason = "parts are landed before they are wired")]

mod config;
mod dispatch;
mod domains;
mod events;
#[cfg(test)]
mod fake;
mod host;
mod outbox;
mod service;
mod session;
mod stream;
mod vir_error;
mod wire;

fn main() {}

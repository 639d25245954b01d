//! When a silent client is pinged, and when it is given up: as libvirt's daemons do by default.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(5);
/// Pings that may go unanswered.
const COUNT: u32 = 5;

#[derive(Debug)]
pub(crate) struct Keepalive {
    heard: Instant,
    unanswered: u32,
}

impl Keepalive {
    pub(crate) fn new() -> Self {
        Self { heard: Instant::now(), unanswered: 0 }
    }

    /// Anything from the client counts as life.
    pub(crate) fn heard(&mut self) {
        *self = Self::new();
    }

    /// When to ping next, or to give up.
    pub(crate) fn deadline(&self, enabled: bool) -> Option<Instant> {
        enabled.then(|| self.heard + INTERVAL * self.unanswered.saturating_add(1))
    }

    /// The deadline has passed: breaks if enough pings were sent, else the caller sends one.
    pub(crate) fn expired(&mut self) -> ControlFlow<()> {
        if self.unanswered >= COUNT {
            return ControlFlow::Break(());
        }
        self.unanswered += 1;
        ControlFlow::Continue(())
    }
}

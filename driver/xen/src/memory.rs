//! How far a guest's memory is on its way to a file, and what became of that.

use std::fs::File;
use std::io::{self, Seek};
use std::time::{Duration, Instant};

use virtsnap_engine::inspect::MemoryJob;

/// The last save of a guest's memory in this life of it.
#[derive(Debug, Default)]
pub(crate) enum Memory {
    #[default]
    NotSaved,
    OnItsWay(OnItsWay),
    Saved(MemoryJob),
    GivenUp(Instant),
}

impl Memory {
    pub(crate) fn job(&self) -> Option<MemoryJob> {
        match self {
            Self::OnItsWay(save) => Some(save.figures()),
            _ => None,
        }
    }

    pub(crate) fn saved(&self) -> Option<MemoryJob> {
        match self {
            Self::Saved(figures) => Some(*figures),
            _ => None,
        }
    }

    /// Not long before that time: the guest may still do what it was asked for then.
    pub(crate) fn was_given_up(&self, now: Instant) -> bool {
        /// Much longer than a guest needs that runs at all.
        const LATELY: Duration = Duration::from_secs(120);
        matches!(self, Self::GivenUp(at) if now.saturating_duration_since(*at) < LATELY)
    }

    pub(crate) fn succeeded(&mut self) {
        if let Self::OnItsWay(save) = self {
            *self = Self::Saved(MemoryJob { remaining: 0, ..save.figures() });
        }
    }

    /// `took_part`: the guest did what it was asked for.
    pub(crate) fn failed(&mut self, took_part: bool) {
        if let Self::OnItsWay(_) = self {
            *self = if took_part { Self::NotSaved } else { Self::GivenUp(Instant::now()) };
        }
    }
}

/// libxl tells of no progress; the file, into which it writes, does.
#[derive(Debug)]
pub(crate) struct OnItsWay {
    /// Shares its position with libxl's.
    file: File,
    stream_at: u64,
    /// Bytes of the guest's memory. With it pages are saved more than once while the guest runs.
    total: u64,
    since: Instant,
}

impl OnItsWay {
    pub(crate) fn new(file: &File, stream_at: u64, total: u64) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, stream_at, total, since: Instant::now() })
    }

    fn figures(&self) -> MemoryJob {
        let position = (&self.file).stream_position().unwrap_or(0);
        let processed = position.saturating_sub(self.stream_at);
        let elapsed = self.since.elapsed();
        MemoryJob {
            elapsed: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            total: self.total,
            processed,
            remaining: self.total.saturating_sub(processed),
            bytes_per_second: (processed as f64 / elapsed.as_secs_f64().max(0.001)) as u64,
            ..MemoryJob::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_written_is_what_is_done() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"head").unwrap();
        let mut memory = Memory::OnItsWay(OnItsWay::new(&file, 4, 10).unwrap());
        // By whoever has the file too.
        file.try_clone().unwrap().write_all(b"pages").unwrap();
        let figures = memory.job().unwrap();
        assert_eq!((figures.total, figures.processed, figures.remaining), (10, 5, 5));
        assert!(memory.saved().is_none());
        memory.succeeded();
        let saved = memory.saved().unwrap();
        assert_eq!((saved.total, saved.processed, saved.remaining), (10, 5, 0));
        assert!(memory.job().is_none() && !memory.was_given_up(Instant::now()));
    }

    #[test]
    fn what_was_given_up_is_so_for_a_while() {
        let on_its_way =
            || Memory::OnItsWay(OnItsWay::new(&tempfile::tempfile().unwrap(), 0, 1).unwrap());
        let mut memory = on_its_way();
        memory.failed(true);
        assert!(!memory.was_given_up(Instant::now()));
        memory.failed(false);
        assert!(!memory.was_given_up(Instant::now()), "it had not begun");
        let mut memory = on_its_way();
        memory.failed(false);
        let now = Instant::now();
        assert!(memory.was_given_up(now));
        assert!(!memory.was_given_up(now + Duration::from_secs(121)));
        assert!(memory.saved().is_none());
    }
}

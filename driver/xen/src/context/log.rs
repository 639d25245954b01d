//! Errors of libxl are numbers; what it says beside them goes to a logger. The last lines are kept, so
//! that an error tells them.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Mutex;

use virtsnap_engine::error::{Condition, Error};
use virtsnap_xen_sys::v4_17 as xl;

use super::lock;

/// Lines that are kept.
const MAX_LINES: usize = 200;

/// libxl's own words of a guest that did nothing speak of its inner working.
const TOOK_NO_PART: &str = "the guest was asked to stand still for it and did not within a minute: \
    it hangs, is just booting or going down, or has no driver of Xen's. It goes on as before; try \
    again, take a snapshot of its disks alone (DISK_ONLY), or shut it down";

#[derive(Default)]
pub(super) struct Log {
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    count: u64,
    errors: VecDeque<(u64, String)>,
}

impl Log {
    /// A line at that level; where nothing of the system failed, `errno` is negative or zero.
    pub(super) fn hear(&self, level: xl::xentoollog_level, said: &str, errno: c_int) {
        let line = with_cause(said, errno);
        match level {
            xl::XTL_ERROR.. => {
                tracing::warn!("libxl: {line}");
                self.keep(line);
            }
            xl::XTL_NOTICE | xl::XTL_WARN => tracing::info!("libxl: {line}"),
            _ => tracing::debug!("libxl: {line}"),
        }
    }

    /// What is said from here on comes after this.
    pub(super) fn mark(&self) -> u64 {
        lock(&self.said).count
    }

    fn keep(&self, line: String) {
        let mut said = lock(&self.said);
        said.count += 1;
        let count = said.count;
        said.errors.push_back((count, line));
        if said.errors.len() > MAX_LINES {
            said.errors.pop_front();
        }
    }

    /// What libxl said since, of that domain where it names one.
    pub(super) fn error(&self, rc: c_int, mark: u64, id: Option<u32>, refusal: &str) -> Error {
        let condition = match rc {
            xl::ERROR_TIMEDOUT | xl::ERROR_GUEST_TIMEDOUT => Condition::Timeout,
            xl::ERROR_ABORTED => Condition::Aborted,
            xl::ERROR_DOMAIN_NOTFOUND | xl::ERROR_DOMAIN_DESTROYED => Condition::OperationInvalid,
            _ => Condition::OperationFailed,
        };
        let said = lock(&self.said);
        let since = said.errors.iter().filter(|(number, _)| *number > mark);
        let about = since.map(|(_, line)| line.as_str()).filter(|line| concerns(line, id));
        let lines: Vec<&str> = about.take(4).collect();
        let why = match lines.as_slice() {
            _ if rc == xl::ERROR_GUEST_TIMEDOUT => TOOK_NO_PART.to_owned(),
            [] => format!("libxl's error {rc}"),
            lines => lines.join("; "),
        };
        let what = match id {
            Some(id) => format!("domain {id}: {refusal}"),
            None => refusal.to_owned(),
        };
        Error::new(condition, what).caused_by(std::io::Error::other(why))
    }
}

/// `libxl: error: FILE:LINE:FUNCTION: Domain 5:why`: of no domain, or of this one.
fn concerns(line: &str, id: Option<u32>) -> bool {
    let Some((_, rest)) = line.split_once("Domain ") else { return true };
    let Some((number, _)) = rest.split_once(':') else { return true };
    let (number, Some(id)) = (number.parse::<u32>(), id) else { return true };
    number.is_ok_and(|number| number == id)
}

fn with_cause(said: &str, errno: c_int) -> String {
    match errno {
        1.. => format!("{said}: {}", std::io::Error::from_raw_os_error(errno)),
        _ => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_what_libxl_said_of_that_domain() {
        let log = Log::default();
        log.hear(xl::XTL_ERROR, "Domain 5:before", 0);
        let mark = log.mark();
        for line in ["Domain 5:no memory", "Domain 51:another", "of no domain"] {
            log.hear(xl::XTL_ERROR, line, 0);
        }
        log.hear(xl::XTL_WARN, "Domain 5:no error", 0);
        let told = log.error(xl::ERROR_NOMEM, mark, Some(5), "cannot be made").chain();
        assert_eq!(told, "domain 5: cannot be made: Domain 5:no memory; of no domain");
        let bare = log.error(xl::ERROR_TIMEDOUT, log.mark(), None, "cannot");
        assert_eq!(
            (bare.condition, bare.chain().as_str()),
            (Condition::Timeout, "cannot: libxl's error -9")
        );
    }

    #[test]
    fn a_guest_that_takes_no_part_is_told_of_in_our_words() {
        let log = Log::default();
        log.hear(xl::XTL_ERROR, "Domain 5:saving domain: domain did not respond", 0);
        assert!(with_cause("cannot open", 2).contains("No such file"));
        assert_eq!(with_cause("cannot open", -1), "cannot open");
        let refusal = "its memory cannot be saved";
        let told = log.error(xl::ERROR_GUEST_TIMEDOUT, 0, Some(5), refusal);
        assert_eq!(told.condition, Condition::Timeout);
        let told = told.chain();
        assert!(told.starts_with("domain 5: its memory cannot be saved: the guest was asked"));
        assert!(told.contains("DISK_ONLY") && !told.contains("os error"), "{told}");
    }
}

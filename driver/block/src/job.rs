//! QEMU's jobs: found by id, waited for, dismissed.
//!
//! Ids are ours and fixed (never derived from a snapshot's name, which is no identifier): after a
//! crash of the daemon the job that still runs is found again by its id.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout};
use virtsnap_engine::error::{Condition, Error, Result};

use crate::qmp::{Qmp, QmpError, QmpEvent};

/// A job that shows no progress for this long is given up. While QEMU saves or loads memory in
/// a job its monitor is silent, so that this also bounds how long that may take.
const STALL: Duration = Duration::from_secs(3600);
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    pub id: String,
    /// `stream`, `commit`, …
    #[serde(rename = "type", default)]
    pub kind: String,
    pub status: String,
    #[serde(default)]
    current_progress: i64,
    #[serde(default)]
    total_progress: i64,
    #[serde(default)]
    pub error: Option<String>,
}

impl Job {
    pub fn is_concluded(&self) -> bool {
        self.status == "concluded"
    }

    /// What is done, and what there is to do as far as it is known, in units of the job's own.
    pub fn progress(&self) -> (u64, u64) {
        let known = |number: i64| u64::try_from(number).unwrap_or(0);
        (known(self.current_progress), known(self.total_progress))
    }
}

pub async fn all(qmp: &Qmp) -> Result<Vec<Job>, QmpError> {
    all_within(qmp, STALL).await
}

async fn all_within(qmp: &Qmp, patience: Duration) -> Result<Vec<Job>, QmpError> {
    let answer = qmp.execute_within("query-jobs", Value::Null, patience).await?;
    serde_json::from_value(answer).map_err(|err| QmpError::Protocol(err.to_string()))
}

pub async fn find(qmp: &Qmp, id: &str) -> Result<Option<Job>, QmpError> {
    Ok(all(qmp).await?.into_iter().find(|job| job.id == id))
}

/// The job as it is when something has been told of it, or a while has passed.
pub async fn next(
    qmp: &Qmp,
    events: &mut Receiver<QmpEvent>,
    id: &str,
    patience: Duration,
) -> Result<Option<Job>, QmpError> {
    let _ = timeout(LOOK_EVERY, told(events, id)).await;
    Ok(all_within(qmp, patience).await?.into_iter().find(|job| job.id == id))
}

/// Waits until the job is as `until` says; none if there is no such job (any more).
pub async fn wait(
    qmp: &Qmp,
    id: &str,
    until: impl Fn(&Job) -> bool,
) -> Result<Option<Job>, QmpError> {
    wait_while_it_moves(qmp, id, until, STALL).await
}

/// The same of a client's job: the client ends it, however long it does not move.
pub async fn wait_for_ever(
    qmp: &Qmp,
    id: &str,
    until: impl Fn(&Job) -> bool,
) -> Result<Option<Job>, QmpError> {
    wait_while_it_moves(qmp, id, until, Duration::MAX).await
}

async fn wait_while_it_moves(
    qmp: &Qmp,
    id: &str,
    until: impl Fn(&Job) -> bool,
    patience: Duration,
) -> Result<Option<Job>, QmpError> {
    let mut events = qmp.events();
    let mut seen = (None, Instant::now());
    loop {
        let Some(job) = find(qmp, id).await? else { return Ok(None) };
        if until(&job) {
            return Ok(Some(job));
        }
        let now = Some((job.status, job.current_progress, job.total_progress));
        if now != seen.0 {
            seen = (now, Instant::now());
        } else if seen.1.elapsed() > patience {
            return Err(QmpError::Timeout { command: id.to_owned() });
        }
        let _ = timeout(LOOK_EVERY, told(&mut events, id)).await;
    }
}

async fn told(events: &mut Receiver<QmpEvent>, id: &str) {
    loop {
        match events.recv().await {
            Ok(event) if event.text("id") == Some(id) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            // The next question says that the connection has ended.
            Err(RecvError::Closed) => std::future::pending::<()>().await,
        }
    }
}

/// Ends the job where it is; it is concluded soon after. One that is over already is done.
pub async fn cancel(qmp: &Qmp, id: &str) -> Result<(), QmpError> {
    match qmp.execute("job-cancel", json!({ "id": id })).await {
        Err(err) if err.in_doubt() => Err(err),
        _ => Ok(()),
    }
}

pub async fn complete(qmp: &Qmp, id: &str) -> Result<(), QmpError> {
    qmp.execute("job-complete", json!({ "id": id })).await.map(drop)
}

pub async fn finalize(qmp: &Qmp, id: &str) -> Result<(), QmpError> {
    qmp.execute_within("job-finalize", json!({ "id": id }), STALL).await.map(drop)
}

/// Takes the concluded job off QEMU's list. Gone is done.
pub async fn dismiss(qmp: &Qmp, id: &str) -> Result<(), QmpError> {
    match qmp.execute("job-dismiss", json!({ "id": id })).await {
        Ok(_) => Ok(()),
        Err(err) => match find(qmp, id).await? {
            None => Ok(()),
            Some(_) => Err(err),
        },
    }
}

/// The outcome of a concluded job.
pub fn outcome(job: &Job, what: &str) -> Result<()> {
    match &job.error {
        None => Ok(()),
        Some(error) => {
            Err(Error::new(Condition::OperationFailed, format!("{what} failed: {error}")))
        }
    }
}

/// An identifier as QEMU wants it: letters, digits, `-`, `.`, `_`.
pub fn id(kind: &str, of: &str) -> String {
    let plain: String =
        of.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("virtsnap-{kind}-{plain}")
}

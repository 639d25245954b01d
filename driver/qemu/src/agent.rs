//! The guest's agent: JSON lines over the channel `org.qemu.guest_agent.0`.
//!
//! A conversation is a connection of its own, and begins with `guest-sync-delimited`: what an
//! earlier, abandoned one left in the channel comes before the 0xFF byte of its answer, and is
//! dropped. The guest is not trusted: a line is bounded, and every step has a deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use virtsnap_engine::domain::State;
use virtsnap_engine::error::{Condition, Error, Result};

use crate::events::AGENT_PORT;
use crate::hypervisor::Qemu;
use crate::instance::Instance;
use crate::setup::devices;

/// An agent that lives answers a sync at once.
const SYNC_DEADLINE: Duration = Duration::from_secs(5);
/// A command may wait for the guest's disks.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
/// Between two attempts at a thaw that nobody waits for.
const THAW_PAUSE: Duration = Duration::from_secs(1);
const MAX_LINE: usize = 10 << 20;
/// Begins the answer to a delimited sync; never part of JSON.
const DELIMITER: u8 = 0xff;

impl Qemu {
    /// Freezes all file systems of the guest, for a consistent snapshot.
    pub(crate) async fn freeze_filesystems(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        let deadline = self.config().freeze_deadline;
        let mut agent = Agent::connect(&instance).await?;
        if instance.owes_thaw() {
            return Err(unresponsive(
                "the guest's file systems are not thawed yet after an earlier freeze",
            ));
        }
        // From here on it may freeze, whatever we hear of it.
        instance.set_owes_thaw(true)?;
        match agent.command("guest-fsfreeze-freeze", Value::Null, deadline).await {
            Ok(frozen) => {
                tracing::info!(domain = instance.name, filesystems = %frozen, "frozen");
                Ok(())
            }
            Err(err) if err.condition == Condition::AgentUnresponsive => {
                let seconds = deadline.as_secs();
                let message = format!(
                    "the guest's file systems were not frozen within {seconds} seconds; it thaws \
                     them as soon as its agent answers"
                );
                Err(unresponsive(&message).caused_by(err))
            }
            // A freeze that the agent refused left nothing frozen, or what somebody else froze.
            Err(err) => {
                instance.set_owes_thaw(false)?;
                Err(err)
            }
        }
    }

    /// Thaws what was frozen by us. See [`thaw`].
    pub(crate) async fn thaw_filesystems(&self, domain: Uuid) -> Result<()> {
        if let Some(instance) = self.instance(domain) {
            thaw(&instance).await;
        }
        Ok(())
    }

    /// A command as a client wrote it; the answer as the agent wrote it. Without a deadline of
    /// the client's it is ours.
    pub(crate) async fn raw_agent_command(
        &self,
        domain: Uuid,
        command: &str,
        seconds: Option<u32>,
    ) -> Result<String> {
        let instance = self.running(domain)?;
        let request: Value = serde_json::from_str(command).map_err(|err| {
            let message = "the command for the guest's agent is not JSON";
            Error::new(Condition::InvalidArgument, message).caused_by(err)
        })?;
        let deadline = seconds.map_or(COMMAND_DEADLINE, |s| Duration::from_secs(u64::from(s)));
        let mut agent = Agent::connect(&instance).await?;
        Ok(agent.ask(&request, deadline).await?.to_string())
    }
}

/// Thaws the file systems, if the agent was told to freeze them. No operation fails of an agent that
/// does not answer now, nor waits for it: a task of its own stays with it.
///
/// That one must stay connected. The agent cannot go on to the next command before it could write
/// its answer to the last, and it can write only while somebody listens.
pub(crate) async fn thaw(instance: &Arc<Instance>) {
    if !instance.owes_thaw() || !instance.begin_thaw() {
        return;
    }
    let Err(err) = try_thaw(instance, SYNC_DEADLINE).await else {
        instance.end_thaw();
        return;
    };
    tracing::error!(
        domain = instance.name,
        "the guest's file systems may be frozen yet: {}",
        err.chain()
    );
    let instance = Arc::clone(instance);
    tokio::spawn(async move {
        let until_thawed = async {
            while instance.owes_thaw() && try_thaw(&instance, COMMAND_DEADLINE).await.is_err() {
                sleep(THAW_PAUSE).await;
            }
        };
        tokio::select! {
            () = instance.wait_ended() => {}
            () = until_thawed => {}
        }
        instance.end_thaw();
    });
}

async fn try_thaw(instance: &Instance, patience: Duration) -> Result<()> {
    let thawed = Agent::open(instance).await?.thaw(patience).await?;
    instance.set_owes_thaw(false)?;
    let domain = &instance.name;
    if thawed.as_u64() == Some(0) {
        tracing::warn!(domain, "the guest's file systems were not frozen any more");
    } else {
        tracing::info!(domain, filesystems = %thawed, "thawed");
    }
    Ok(())
}

/// One conversation.
struct Agent {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Agent {
    async fn connect(instance: &Instance) -> Result<Self> {
        if !matches!(instance.state(), State::Running(_)) {
            let message = "domain is not running: its agent cannot answer";
            return Err(Error::new(Condition::OperationInvalid, message));
        }
        let mut agent = Self::open(instance).await?;
        timeout(SYNC_DEADLINE, agent.sync(""))
            .await
            .unwrap_or_else(|_| Err(unresponsive("the guest's agent does not answer")))?;
        Ok(agent)
    }

    async fn open(instance: &Instance) -> Result<Self> {
        let path = socket(instance)?;
        if !instance.agent_connected() {
            return Err(unresponsive("the guest's agent is not connected"));
        }
        let stream = UnixStream::connect(&path).await.map_err(|err| {
            let message = format!("cannot reach the guest's agent at '{}'", path.display());
            Error::new(Condition::AgentUnresponsive, message).caused_by(err)
        })?;
        let (read, write) = stream.into_split();
        Ok(Self { read: BufReader::new(read), write })
    }

    /// The command follows the sync at once, so that an agent that is late finds it.
    async fn thaw(&mut self, patience: Duration) -> Result<Value> {
        let command = json!({ "execute": "guest-fsfreeze-thaw" });
        timeout(patience, self.sync(&format!("{command}\n")))
            .await
            .unwrap_or_else(|_| Err(unresponsive("the guest's agent does not answer")))?;
        timeout(COMMAND_DEADLINE, self.answer())
            .await
            .unwrap_or_else(|_| Err(unresponsive("the guest's agent did not answer in time")))
            .and_then(|answer| returned("guest-fsfreeze-thaw", answer))
    }

    /// Waits for the answer to a sync; `next` is asked in the same breath.
    async fn sync(&mut self, next: &str) -> Result<()> {
        let id = Uuid::new_v4().as_u64_pair().0 & 0x7fff_ffff;
        let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        // The leading delimiter ends what an earlier conversation may have left half said.
        self.write.write_all(&[DELIMITER]).await.map_err(lost)?;
        self.write.write_all(format!("{request}\n{next}").as_bytes()).await.map_err(lost)?;
        loop {
            let line = self.line().await?;
            let Some(answer) = line.rsplit(|&byte| byte == DELIMITER).next() else { continue };
            let Ok(answer) = serde_json::from_slice::<Value>(answer) else { continue };
            if answer.get("return").and_then(Value::as_u64) == Some(id) {
                return Ok(());
            }
        }
    }

    /// The value returned, or the agent's refusal.
    async fn command(
        &mut self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let answer = self.ask(&request, deadline).await?;
        returned(command, answer)
    }

    async fn ask(&mut self, request: &Value, deadline: Duration) -> Result<Value> {
        let exchange = async {
            self.write.write_all(format!("{request}\n").as_bytes()).await.map_err(lost)?;
            self.answer().await
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(unresponsive("the guest's agent did not answer in time")))
    }

    async fn answer(&mut self) -> Result<Value> {
        let line = self.line().await?;
        serde_json::from_slice(&line).map_err(|err| {
            let message = "the guest's agent does not answer in JSON";
            Error::new(Condition::Internal, message).caused_by(err)
        })
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let part = self.read.fill_buf().await.map_err(lost)?;
            if part.is_empty() {
                return Err(unresponsive("the guest's agent closed the channel"));
            }
            let end = part.iter().position(|&byte| byte == b'\n');
            let text = part.split(|&byte| byte == b'\n').next().unwrap_or_default();
            if line.len() + text.len() > MAX_LINE {
                return Err(unresponsive("the guest's agent sends a line without end"));
            }
            line.extend_from_slice(text);
            let taken = end.map_or(part.len(), |end| end + 1);
            self.read.consume(taken);
            if end.is_some() && !line.is_empty() {
                return Ok(line);
            }
        }
    }
}

/// The value in an answer, or the agent's refusal.
fn returned(command: &str, mut answer: Value) -> Result<Value> {
    if let Some(error) = answer.get("error") {
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason was given");
        let message = format!("the guest's agent refused '{command}': {text}");
        return Err(Error::new(Condition::Internal, message));
    }
    Ok(answer.get_mut("return").map(Value::take).unwrap_or(Value::Null))
}

fn socket(instance: &Instance) -> Result<PathBuf> {
    let live = instance.live();
    let agent = devices(&live, "channel").find(|channel| {
        channel.child("target").and_then(|target| target.attr("name")) == Some(AGENT_PORT)
    });
    let Some(agent) = agent else {
        let message = "QEMU guest agent is not configured: the domain has no such channel";
        return Err(Error::new(Condition::ArgumentUnsupported, message));
    };
    let path = agent.child("source").and_then(|source| source.attr("path"));
    match (agent.attr("type"), path) {
        (Some("unix"), Some(path)) => Ok(PathBuf::from(path)),
        _ => {
            let message = "the channel of the guest's agent is not a unix socket";
            Err(Error::new(Condition::ArgumentUnsupported, message))
        }
    }
}

fn unresponsive(message: &str) -> Error {
    Error::new(Condition::AgentUnresponsive, message)
}

fn lost(err: std::io::Error) -> Error {
    unresponsive("the channel to the guest's agent was lost").caused_by(err)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn pair() -> (Agent, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        let (read, write) = ours.into_split();
        (Agent { read: BufReader::new(read), write }, guest)
    }

    #[tokio::test]
    async fn what_an_earlier_conversation_left_is_dropped() {
        let (mut agent, mut guest) = pair();
        let play = async {
            let mut asked = Vec::new();
            while asked.last() != Some(&b'\n') {
                guest.read_buf(&mut asked).await.unwrap();
            }
            assert_eq!(asked[0], DELIMITER);
            let asked: Value = serde_json::from_slice(&asked[1..]).unwrap();
            let id = &asked["arguments"]["id"];
            let answer = "{\"return\": 7}\n{\"ret";
            guest.write_all(answer.as_bytes()).await.unwrap();
            guest.write_all(&[DELIMITER]).await.unwrap();
            guest.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).await.unwrap();
            let mut asked = vec![0; 4096];
            assert!(guest.read(&mut asked).await.unwrap() > 0);
            guest.write_all(b"{\"error\": {\"desc\": \"not now\"}}\n").await.unwrap();
        };
        let converse = async {
            agent.sync("").await.unwrap();
            agent.command("guest-fsfreeze-freeze", Value::Null, COMMAND_DEADLINE).await.unwrap_err()
        };
        let ((), err) = tokio::join!(play, converse);
        assert!(err.message.contains("not now"), "{}", err.message);
    }

    #[tokio::test]
    async fn a_guest_that_floods_or_hangs_is_given_up() {
        let (mut agent, mut guest) = pair();
        tokio::spawn(async move {
            let chunk = vec![b'x'; 1 << 16];
            while guest.write_all(&chunk).await.is_ok() {}
        });
        assert!(agent.line().await.is_err());
        let (mut agent, _guest) = pair();
        let err = agent.ask(&json!({}), Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(err.condition, Condition::AgentUnresponsive);
    }
}

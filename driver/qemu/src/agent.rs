//! The guest's agent: JSON lines over the channel `org.qemu.guest_agent.0`.
//!
//! A conversation is a connection of its own, and begins with `guest-sync-delimited`: what an
//! earlier, abandoned one left in the channel comes before the 0xFF byte of its answer, and is
//! dropped. The guest is not trusted: a line is bounded, and every step has a deadline.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
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
const MAX_LINE: usize = 10 << 20;
/// Begins the answer to a delimited sync; never part of JSON.
const DELIMITER: u8 = 0xff;

impl Qemu {
    /// Freezes all file systems of the guest, for a consistent snapshot.
    pub(crate) async fn freeze_filesystems(&self, domain: Uuid) -> Result<()> {
        let instance = self.running(domain)?;
        let mut agent = Agent::connect(&instance).await?;
        agent.command("guest-fsfreeze-freeze", Value::Null, COMMAND_DEADLINE).await?;
        Ok(())
    }

    /// Thaws them. A domain that is down has nothing frozen.
    pub(crate) async fn thaw_filesystems(&self, domain: Uuid) -> Result<()> {
        let Some(instance) = self.instance(domain) else { return Ok(()) };
        let mut agent = Agent::connect(&instance).await?;
        agent.command("guest-fsfreeze-thaw", Value::Null, COMMAND_DEADLINE).await?;
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
        let path = socket(instance)?;
        if !instance.agent_connected() {
            return Err(unresponsive("the guest's agent is not connected"));
        }
        let stream = UnixStream::connect(&path).await.map_err(|err| {
            let message = format!("cannot reach the guest's agent at '{}'", path.display());
            Error::new(Condition::AgentUnresponsive, message).caused_by(err)
        })?;
        let (read, write) = stream.into_split();
        let mut agent = Self { read: BufReader::new(read), write };
        timeout(SYNC_DEADLINE, agent.sync())
            .await
            .unwrap_or_else(|_| Err(unresponsive("the guest's agent does not answer")))?;
        Ok(agent)
    }

    async fn sync(&mut self) -> Result<()> {
        let id = Uuid::new_v4().as_u64_pair().0 & 0x7fff_ffff;
        let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        // The leading delimiter ends what an earlier conversation may have left half said.
        self.write.write_all(&[DELIMITER]).await.map_err(lost)?;
        self.write.write_all(format!("{request}\n").as_bytes()).await.map_err(lost)?;
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
        let mut answer = self.ask(&request, deadline).await?;
        if let Some(error) = answer.get("error") {
            let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason was given");
            let message = format!("the guest's agent refused '{command}': {text}");
            return Err(Error::new(Condition::Internal, message));
        }
        Ok(answer.get_mut("return").map(Value::take).unwrap_or(Value::Null))
    }

    async fn ask(&mut self, request: &Value, deadline: Duration) -> Result<Value> {
        let exchange = async {
            self.write.write_all(format!("{request}\n").as_bytes()).await.map_err(lost)?;
            let line = self.line().await?;
            serde_json::from_slice(&line).map_err(|err| {
                let message = "the guest's agent does not answer in JSON";
                Error::new(Condition::Internal, message).caused_by(err)
            })
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(unresponsive("the guest's agent did not answer in time")))
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
            agent.sync().await.unwrap();
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

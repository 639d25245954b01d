//! What a QEMU binary can do, asked once from the binary itself: no guest, machine `none`.
//!
//! `query-version`, `query-machines`, `qom-list-types`, `query-cpu-definitions` and the properties
//! of the CPU model `max`. Kept for as long as the file stays the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use virtsnap_block::child::confine_tool;
use virtsnap_engine::error::{Condition, Error, Result};

use crate::argv::QemuFacts;

const DEADLINE: Duration = Duration::from_secs(60);
const MAX_ANSWER: u64 = 16 << 20;

/// One QEMU binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    pub emulator: PathBuf,
    pub facts: QemuFacts,
    pub arch: String,
    pub machines: Vec<Machine>,
    pub cpus: Vec<CpuModel>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub name: String,
    /// `pc`, of `pc-i440fx-10.0`.
    pub alias: Option<String>,
    pub is_default: bool,
    pub is_deprecated: bool,
    pub max_cpus: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    pub name: String,
    /// Usable on this host as it is.
    pub is_usable: bool,
    pub is_deprecated: bool,
}

impl Probed {
    /// The machine that a name or an alias means.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        let is_meant = |m: &&Machine| m.name == name || m.alias.as_deref() == Some(name);
        self.machines.iter().find(is_meant)
    }

    pub fn default_machine(&self) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.is_default)
    }

    pub fn aliases(&self) -> BTreeMap<String, String> {
        let with_alias =
            self.machines.iter().filter_map(|m| Some((m.alias.clone()?, m.name.clone())));
        with_alias.collect()
    }
}

/// Answers that were got, with what the file was then.
#[derive(Debug, Default)]
pub(crate) struct Cache(BTreeMap<PathBuf, (Stamp, Arc<Probed>)>);

type Stamp = (u64, u64, i64, i64);

impl Cache {
    /// Runs the binary unless it was asked before. Blocks for as long as that takes.
    pub(crate) fn get(&mut self, emulator: &Path) -> Result<Arc<Probed>> {
        let stamp = stamp(emulator).map_err(|err| cannot(emulator, &err.to_string()))?;
        if let Some((known, probed)) = self.0.get(emulator)
            && *known == stamp
        {
            return Ok(Arc::clone(probed));
        }
        let probed = Arc::new(probe(emulator)?);
        self.0.insert(emulator.to_owned(), (stamp, Arc::clone(&probed)));
        Ok(probed)
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

fn cannot(emulator: &Path, why: &str) -> Error {
    let message = format!("cannot ask '{}' what it can do: {why}", emulator.display());
    Error::new(Condition::Internal, message)
}

fn probe(emulator: &Path) -> Result<Probed> {
    let questions = [
        json!({ "execute": "qmp_capabilities", "id": 0 }),
        json!({ "execute": "query-version", "id": 1 }),
        json!({ "execute": "query-target", "id": 2 }),
        json!({ "execute": "query-machines", "id": 3 }),
        json!({ "execute": "qom-list-types", "id": 4,
                "arguments": { "implements": "device", "abstract": false } }),
        json!({ "execute": "query-cpu-definitions", "id": 5 }),
        json!({ "execute": "device-list-properties", "id": 6,
                "arguments": { "typename": "max-x86_64-cpu" } }),
        json!({ "execute": "quit", "id": 7 }),
    ];
    let text = ask(emulator, &questions).map_err(|err| cannot(emulator, &err.to_string()))?;
    let mut answers: BTreeMap<u64, Value> = BTreeMap::new();
    for line in text.lines() {
        let Ok(Value::Object(mut object)) = serde_json::from_str::<Value>(line) else { continue };
        let id = object.get("id").and_then(Value::as_u64);
        if let (Some(id), Some(value)) = (id, object.remove("return")) {
            answers.insert(id, value);
        }
    }
    let answer = |id: u64| answers.get(&id).cloned().unwrap_or(Value::Null);
    let version = answer(1);
    let part = |name: &str| {
        let number = version.get("qemu").and_then(|qemu| qemu.get(name)).and_then(Value::as_u64);
        number.and_then(|number| u32::try_from(number).ok())
    };
    let (Some(major), Some(minor), Some(micro)) = (part("major"), part("minor"), part("micro"))
    else {
        return Err(cannot(emulator, "it did not tell its version"));
    };
    Ok(Probed {
        emulator: emulator.to_owned(),
        facts: QemuFacts {
            version: (major, minor, micro),
            devices: names(&answer(4)),
            cpu_features: names(&answer(6)),
        },
        arch: answer(2).get("arch").and_then(Value::as_str).unwrap_or("x86_64").to_owned(),
        machines: machines(&answer(3)),
        cpus: cpus(&answer(5)),
    })
}

fn names(list: &Value) -> BTreeSet<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| Some(item.get("name")?.as_str()?.to_owned())).collect()
}

fn machines(list: &Value) -> Vec<Machine> {
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
    let is = |item: &Value, key: &str| item.get(key).and_then(Value::as_bool) == Some(true);
    let items = list.as_array().into_iter().flatten();
    let mut machines: Vec<_> = items
        .filter_map(|item| {
            Some(Machine {
                name: text(item, "name")?,
                alias: text(item, "alias"),
                is_default: is(item, "is-default"),
                is_deprecated: is(item, "deprecated"),
                max_cpus: item.get("cpu-max").and_then(Value::as_u64).unwrap_or(1),
            })
        })
        .filter(|machine| machine.name != "none")
        .collect();
    machines.sort_by(|a, b| (!a.is_default, &a.name).cmp(&(!b.is_default, &b.name)));
    machines
}

fn cpus(list: &Value) -> Vec<CpuModel> {
    let items = list.as_array().into_iter().flatten();
    let mut cpus: Vec<_> = items
        .filter_map(|item| {
            let blockers = item.get("unavailable-features").and_then(Value::as_array);
            Some(CpuModel {
                name: item.get("name")?.as_str()?.to_owned(),
                is_usable: blockers.is_some_and(Vec::is_empty),
                is_deprecated: item.get("deprecated").and_then(Value::as_bool) == Some(true),
            })
        })
        .collect();
    cpus.sort_by(|a, b| a.name.cmp(&b.name));
    cpus
}

/// Puts all questions at once and reads until QEMU ends. A thread reads, so that a QEMU that
/// hangs can be killed at the deadline.
fn ask(emulator: &Path, questions: &[Value]) -> io::Result<String> {
    let mut command = Command::new(emulator);
    command.args(["-S", "-no-user-config", "-nodefaults", "-nographic", "-display", "none"]);
    command.args(["-machine", "none,accel=tcg", "-qmp", "stdio"]);
    command.env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    confine_tool(&mut command);
    let mut child = command.spawn()?;
    let outcome = converse(&mut child, questions);
    if outcome.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    outcome
}

fn converse(child: &mut Child, questions: &[Value]) -> io::Result<String> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let outcome = stdout.take(MAX_ANSWER).read_to_string(&mut text).map(|_| text);
        let _ = sender.send(outcome);
    });
    for question in questions {
        writeln!(stdin, "{question}")?;
    }
    stdin.flush()?;
    receiver.recv_timeout(DEADLINE).map_err(|_| io::Error::other("it does not answer"))?
}

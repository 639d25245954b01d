//! The daemon dies, or a call fails, at every call of an operation on a real QEMU; the guest
//! writes on, and in one half of the cases dies as well before the daemon is back. Then the old
//! world or the new one holds, on the disks and in every moment, and nothing is left lying about.
//!
//! `CRASHES=all` runs every kind of trouble, not only those that are hardest. [`guests`] is about a
//! QEMU that dies under a daemon that lives.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "crashes/guests.rs"]
mod guests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::domain::{Active, Event, ShutOffReason, Start, StartFrom, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{DomainFacts, PathKind, Place, Room};
use virtsnap_engine::options::{
    Consolidate, DeleteOptions, Meanwhile, New, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::plan::{Conclude, Finish, Pivot, Step, moment_image};
use virtsnap_engine::ports::{EventSink, Hypervisor, Journals, PivotError, Records, Subject};
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::{Trouble, World};
use virtsnap_qemu::hypervisor::{Qemu, QemuConfig};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Location, Request, Survivor};

const DISKS: [&str; 2] = ["vda", "vdb"];
const CLUSTER: usize = 64 * 1024;
/// Written by the guest while there is no daemon: where the uppermost layer has data.
const MEANWHILE: usize = 1;
const CLUSTERS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Start,
    Stop,
    Write(usize),
    Full(u8),
    Disks(u8),
    Revert(u8),
    Delete(u8),
    /// With the overlay left, not the base.
    Stream(u8),
    /// The vCPUs go.
    Run,
    /// Memory in a save image, overlays.
    Memory(u8),
    /// The same, of a guest that is stopped for the last pages only.
    Live(u8),
    /// Memory in a save image, one disk inside, one outside.
    Mixed(u8),
    /// Memory in a qcow2 image of its own, overlays.
    Apart(u8),
}
use Op::{Apart, Delete, Disks, Full, Live, Memory, Mixed, Revert, Run, Stop, Stream, Write};

impl Op {
    /// What is asked of a snapshot with memory that is not all inside.
    fn request(self) -> Option<(u8, Request)> {
        let (n, memory, first) = match self {
            Memory(n) | Live(n) => (n, "external", "external"),
            Mixed(n) => (n, "external", "internal"),
            Apart(n) => (n, "internal", "external"),
            _ => return None,
        };
        let text = format!(
            "<domainsnapshot><name>s{n}</name><memory snapshot='{memory}'/><disks>\
             <disk name='vda' snapshot='{first}'/><disk name='vdb' snapshot='external'/>\
             </disks></domainsnapshot>"
        );
        Some((n, Request::parse(&Element::parse(&text).unwrap()).unwrap()))
    }
}

struct Nobody;

impl EventSink for Nobody {
    fn emit(&self, _: Uuid, _: &str, _: i32, _: Event) {}
}

/// A hypervisor of which one call goes wrong.
struct Mortal {
    qemu: Qemu,
    records: World,
    calls: AtomicUsize,
    trouble: Option<(usize, Trouble)>,
    /// When the guest's process is killed.
    murder: Option<guests::Murder>,
}

#[derive(Debug, PartialEq)]
enum Fate {
    Lives,
    Fails,
    FailsAfter,
    Dead,
    DiesAfter,
}

impl Mortal {
    fn fate(&self) -> Fate {
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.trouble {
            Some((at, Trouble::Fails)) if n == at => Fate::Fails,
            Some((at, Trouble::FailsAfterEffect)) if n == at => Fate::FailsAfter,
            Some((at, Trouble::DiesBefore)) if n >= at => Fate::Dead,
            Some((at, Trouble::DiesAfter)) if n == at => Fate::DiesAfter,
            Some((at, Trouble::DiesAfter)) if n > at => Fate::Dead,
            _ => Fate::Lives,
        }
    }

    /// The store is the daemon's as well.
    fn die(&self) {
        self.records.arm(0, Trouble::DiesBefore);
    }

    async fn call<T>(&self, act: impl Future<Output = Result<T>>) -> Result<T> {
        let trouble = || Error::new(Condition::Internal, "trouble");
        if let Some(murder) = &self.murder {
            return murder.around(self.calls.fetch_add(1, Ordering::SeqCst), act).await;
        }
        match self.fate() {
            Fate::Lives => act.await,
            Fate::Fails => Err(trouble()),
            Fate::FailsAfter => act.await.and(Err(trouble())),
            Fate::Dead => {
                self.die();
                Err(trouble())
            }
            Fate::DiesAfter => {
                let done = act.await;
                self.die();
                done.and(Err(trouble()))
            }
        }
    }

    fn was_struck(&self) -> bool {
        self.trouble.is_some_and(|(at, _)| self.calls.load(Ordering::SeqCst) > at)
    }
}

impl Hypervisor for Mortal {
    fn complete(&self, domain: Element) -> Result<Element> {
        self.qemu.complete(domain)
    }
    async fn capabilities(&self) -> Result<Element> {
        self.qemu.capabilities().await
    }
    async fn reconnect(&self) -> Result<Vec<Active>> {
        self.qemu.reconnect().await
    }
    async fn start(&self, domain: Element, start: Start) -> Result<Active> {
        self.qemu.start(domain, start).await
    }
    fn active(&self, domain: Uuid) -> Option<Active> {
        self.qemu.active(domain)
    }
    fn all_active(&self) -> Vec<Active> {
        self.qemu.all_active()
    }
    fn set_live(&self, domain: Uuid, live: Element) -> Result<()> {
        self.qemu.set_live(domain, live)
    }
    async fn suspend(&self, domain: Uuid) -> Result<()> {
        self.qemu.suspend(domain).await
    }
    async fn resume(&self, domain: Uuid) -> Result<()> {
        self.qemu.resume(domain).await
    }
    async fn shutdown(&self, domain: Uuid) -> Result<()> {
        self.qemu.shutdown(domain).await
    }
    async fn reboot(&self, domain: Uuid) -> Result<()> {
        self.qemu.reboot(domain).await
    }
    async fn reset(&self, domain: Uuid) -> Result<()> {
        self.qemu.reset(domain).await
    }
    async fn destroy(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        self.qemu.destroy(domain, reason).await
    }
    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        self.qemu.facts(subject).await
    }
    async fn probe(&self, path: &Path) -> Result<PathKind> {
        self.qemu.probe(path).await
    }
    async fn room(&self, directory: &Path) -> Option<Room> {
        self.qemu.room(directory).await
    }
    async fn place(&self, at: &Path, below: &Path, facts: &DomainFacts) -> Result<Place> {
        self.qemu.place(at, below, facts).await
    }
    async fn act(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.call(self.qemu.act(domain, step)).await
    }
    async fn undo(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.call(self.qemu.undo(domain, step)).await
    }
    async fn pivot(&self, domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        let trouble = || Error::new(Condition::Internal, "trouble");
        if let Some(murder) = &self.murder {
            let n = self.calls.fetch_add(1, Ordering::SeqCst);
            return murder.around(n, self.qemu.pivot(domain, pivot)).await;
        }
        match self.fate() {
            Fate::Lives => self.qemu.pivot(domain, pivot).await,
            Fate::Fails => Err(PivotError::Refused(trouble())),
            Fate::FailsAfter => {
                self.qemu.pivot(domain, pivot).await?;
                Err(PivotError::InDoubt(trouble()))
            }
            Fate::Dead => {
                self.die();
                Err(PivotError::InDoubt(trouble()))
            }
            Fate::DiesAfter => {
                let done = self.qemu.pivot(domain, pivot).await;
                self.die();
                done.and(Err(PivotError::InDoubt(trouble())))
            }
        }
    }
    async fn pivoted(&self, domain: Uuid, pivot: &Pivot) -> Result<bool> {
        self.qemu.pivoted(domain, pivot).await
    }
    async fn finish(&self, domain: Uuid, finish: &Finish) -> Result<()> {
        self.call(self.qemu.finish(domain, finish)).await
    }
    async fn conclude(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        self.call(self.qemu.conclude(domain, conclude)).await
    }
    async fn release(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        self.call(self.qemu.release(domain, conclude)).await
    }
}

/// What outlives the daemon.
struct Host {
    dir: tempfile::TempDir,
    records: World,
}

/// One life of the daemon.
struct Daemon<'a> {
    host: &'a Host,
    runtime: Option<Runtime>,
    hypervisor: Arc<Mortal>,
    book: Mutex<Book>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let records = World::new(&[]);
        let mut disks = String::new();
        for target in DISKS {
            let image = path(&dir.path().join(format!("{target}.qcow2")));
            tool("qemu-img", &["create", "-q", "-f", "qcow2", &image, "1M"]);
            disks.push_str(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                 <source file='{image}'/><target dev='{target}' bus='virtio'/></disk>"
            ));
        }
        let written = format!(
            "<domain type='qemu'><name>vm</name><uuid>{}</uuid><memory unit='MiB'>16</memory>\
             <vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disks}\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
            records.uuid
        );
        let host = Self { dir, records };
        let completed = host.qemu().complete(Element::parse(&written).unwrap()).unwrap();
        Records::set_config(&host.records, host.records.uuid, &completed).unwrap();
        host
    }

    fn qemu(&self) -> Qemu {
        let sub = |name: &str| self.dir.path().join(name);
        let config = QemuConfig::new(sub("run"), sub("state"), sub("log"));
        Qemu::new(config, Arc::new(Nobody))
    }

    /// The daemon starts, and finds its guest again.
    fn daemon(&self, trouble: Option<(usize, Trouble)>) -> Daemon<'_> {
        self.records.revive();
        let runtime = Runtime::new().unwrap();
        let qemu = self.qemu();
        runtime.block_on(qemu.reconnect()).unwrap();
        let records = self.records.clone();
        let calls = AtomicUsize::new(0);
        let mortal = Mortal { qemu, records, calls, trouble, murder: None };
        let book = self.records.book();
        Daemon { host: self, runtime: Some(runtime), hypervisor: Arc::new(mortal), book }
    }

    fn kill_guest(&self) {
        if let Some(pid) = guest_of(&self.status()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn status(&self) -> PathBuf {
        self.dir.path().join("run").join(self.records.uuid.to_string()).join("status.json")
    }

    fn tidy(&self, context: &str) {
        self.tidy_with(context, |out, _| out.status.success());
    }

    /// What a QEMU that is killed was about to use in an image stays allocated, and what it was about
    /// to say is nobody else's is taken for shared: no byte of a guest's is wrong by either.
    fn tidy_but_for_leaks(&self, context: &str) {
        self.tidy_with(context, |out, file| match out.status.code() {
            Some(0 | 3) => true,
            Some(2) => {
                let told = String::from_utf8_lossy(&out.stderr);
                only_taken_for_shared(&told) && is_mended_as_it_reads(file)
            }
            _ => false,
        });
    }

    fn tidy_with(&self, context: &str, is_right: impl Fn(&Output, &Path) -> bool) {
        assert!(!self.records.has_journal(), "{context}: the journal is left");
        let owned = self.records.book().into_inner().unwrap().owned;
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if !file.is_file() || name == "content.raw" {
                continue;
            }
            let is_first = DISKS.iter().any(|disk| name == format!("{disk}.qcow2"));
            assert!(is_first || owned.contains(&file), "{context}: '{name}' is nobody's");
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.starts_with(b"LibvirtQemudPart"), "{context}: '{name}' is half");
            if !bytes.starts_with(b"LibvirtQemudSave") {
                let check = ["check", "-q", "-U", "-f", "qcow2"];
                let out = Command::new("qemu-img").args(check).arg(&file).output().unwrap();
                assert!(is_right(&out, &file), "{context}: '{name}': {out:?}");
            }
        }
        for file in owned {
            assert!(file.exists(), "{context}: '{}' is gone", file.display());
        }
    }
}

/// Every error is of a cluster that one entry alone refers to, and of the entry's highest bit
/// (`OFLAG_COPIED`, "nobody else does"):
/// - it is not set where the count says one. A deletion of an internal snapshot lowers the counts
///   before it sets that bit (`qcow2_snapshot_delete`); until then the guest's next write there
///   goes to a new cluster.
/// - it is set where the count says two. A creation raises the counts, and writes that first, before
///   it takes the bit away and lists the snapshot (`qcow2_update_snapshot_refcount`); without
///   the snapshot the guest writes there as before, rightly.
fn only_taken_for_shared(told: &str) -> bool {
    const CLUSTER: u64 = 64 << 10;
    const COPIED: u64 = 1 << 63;
    let is_right = |line: &str| {
        let (entry, count) = line.split_once("entry=")?.1.split_once(' ')?;
        let entry = u64::from_str_radix(entry, 16).ok()?;
        let cluster = (entry & !COPIED) / CLUSTER;
        let leak = format!("Leaked cluster {cluster} refcount=2 reference=1");
        Some(match count {
            "refcount=1" => entry & COPIED == 0,
            "refcount=2" => entry & COPIED != 0 && told.lines().any(|line| line == leak),
            _ => false,
        })
    };
    let mut errors = told.lines().filter(|line| line.starts_with("ERROR")).peekable();
    errors.peek().is_some()
        && errors.all(|line| {
            line.starts_with("ERROR OFLAG_COPIED") && is_right(line).is_some_and(|right| right)
        })
}

#[test]
fn what_is_taken_for_shared_is_no_damage_and_damage_is() {
    let leak = "Leaked cluster 5 refcount=2 reference=1";
    let data = |entry: &str, count: u32| {
        format!("ERROR OFLAG_COPIED data cluster: l2_entry={entry} refcount={count}")
    };
    assert!(only_taken_for_shared(&data("50000", 1)));
    assert!(only_taken_for_shared(&format!("{leak}\n{}", data("8000000000050000", 2))));
    // Two refer to it, and one of them would write into it.
    assert!(!only_taken_for_shared(&data("8000000000050000", 2)));
    assert!(!only_taken_for_shared(&format!("{leak}\n{}", data("8000000000060000", 2))));
    assert!(!only_taken_for_shared(&data("8000000000050000", 1)));
    assert!(!only_taken_for_shared("ERROR cluster 5 refcount=1 reference=2"));
    assert!(!only_taken_for_shared(leak));
}

/// All that is wrong with it can be put right, and it reads the same then.
fn is_mended_as_it_reads(file: &Path) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let mended = dir.path().join("mended.qcow2");
    std::fs::copy(file, &mended).unwrap();
    let run = |arguments: &[&str], images: &[&Path]| {
        Command::new("qemu-img").args(arguments).args(images).status().unwrap().success()
    };
    run(&["check", "-q", "-f", "qcow2", "-r", "all"], &[&mended])
        && run(&["check", "-q", "-f", "qcow2"], &[&mended])
        && run(&["compare", "-q", "-U", "-f", "qcow2", "-F", "qcow2"], &[file, &mended])
}

/// The process that a status file names.
fn guest_of(status: &Path) -> Option<rustix::process::Pid> {
    let text = std::fs::read_to_string(status).ok()?;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pid = i32::try_from(status["process"]["pid"].as_i64().unwrap()).unwrap();
    rustix::process::Pid::from_raw(pid)
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_guest();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(20));
        }
    }
}

/// All that a user can tell of the world.
#[derive(Debug, Clone, PartialEq)]
struct View {
    disks: Vec<Vec<u8>>,
    moments: BTreeMap<String, (Option<String>, Vec<Vec<u8>>)>,
    current: Option<String>,
    is_up: bool,
    runs: bool,
}

impl Daemon<'_> {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    fn snapshots(&self) -> Snapshots<Mortal, World, World> {
        let records = Arc::new(self.host.records.clone());
        Snapshots::new(Arc::clone(&self.hypervisor), Arc::clone(&records), records)
    }

    fn uuid(&self) -> Uuid {
        self.host.records.uuid
    }

    fn is_up(&self) -> bool {
        self.hypervisor.active(self.uuid()).is_some()
    }

    fn runs(&self) -> bool {
        let active = self.hypervisor.active(self.uuid());
        active.is_some_and(|active| matches!(active.state, State::Running(_)))
    }

    fn apply(&self, op: Op, value: u8) -> Result<()> {
        let new = New::plain;
        let request = |n| Request { name: Some(format!("s{n}")), ..Request::default() };
        let snapshots = self.snapshots();
        match op {
            Op::Start => {
                let config = self.book.lock().unwrap().config.clone().unwrap();
                let start = Start { paused: true, from: StartFrom::Boot };
                self.run(self.hypervisor.start(config, start)).map(drop)
            }
            Stop => self.run(self.hypervisor.destroy(self.uuid(), ShutOffReason::Destroyed)),
            Write(cluster) => {
                for disk in DISKS {
                    let at = cluster * CLUSTER;
                    self.io(disk, &format!("write -P {value} {at} {CLUSTER}"));
                    self.io(disk, "flush");
                }
                Ok(())
            }
            Run => self.run(self.hypervisor.resume(self.uuid())),
            Memory(_) | Live(_) | Mixed(_) | Apart(_) => {
                let (_, request) = op.request().unwrap();
                let mut options = new(Scope::FullSystem { live: false });
                if !matches!(op, Live(_)) {
                    options.meanwhile = Meanwhile::StandsStill;
                }
                self.run(snapshots.create(&self.book, &request, &options)).map(drop)
            }
            Full(n) => {
                let options = new(Scope::FullSystem { live: false });
                self.run(snapshots.create(&self.book, &request(n), &options)).map(drop)
            }
            Disks(n) => {
                let options = new(Scope::DiskOnly { quiesce: false });
                self.run(snapshots.create(&self.book, &request(n), &options)).map(drop)
            }
            Revert(n) => {
                let state = RevertState::AsSnapshot;
                let options = RevertOptions { state, ..RevertOptions::default() };
                self.run(snapshots.revert(&self.book, &format!("s{n}"), &options))
            }
            Delete(n) | Stream(n) => {
                let keep = matches!(op, Stream(_)).then_some(Survivor::Overlay);
                let consolidate = Consolidate { keep, required: true };
                let options = DeleteOptions { consolidate, ..DeleteOptions::default() };
                self.run(snapshots.delete(&self.book, &format!("s{n}"), &options))
            }
        }
    }

    fn recover(&self) {
        for unfinished in self.host.records.unfinished().unwrap() {
            self.run(self.snapshots().recover(&self.book, &unfinished))
                .unwrap_or_else(|err| panic!("{}", err.chain()));
        }
    }

    fn active_image(&self, target: &str) -> PathBuf {
        let live = self.hypervisor.active(self.uuid()).map(|active| active.live);
        let definition = live.or_else(|| self.book.lock().unwrap().config.clone()).unwrap();
        PathBuf::from(domain::disk(&definition, target).unwrap().path().unwrap())
    }

    fn io(&self, target: &str, command: &str) {
        if !self.is_up() {
            tool("qemu-io", &["-f", "qcow2", "-c", command, &path(&self.active_image(target))]);
            return;
        }
        let n = DISKS.iter().position(|disk| *disk == target).unwrap();
        let device = format!("/machine/peripheral/virtio-disk{n}/virtio-backend");
        let command = format!("qemu-io -d {device} \"{command}\"");
        let said = self.run(self.hypervisor.qemu.monitor_command(self.uuid(), &command, true));
        let said = said.unwrap();
        assert!(!said.contains("rror") && !said.contains("ailed"), "{command}: {said}");
    }

    fn read(&self, image: &Path, tag: Option<&str>) -> Vec<u8> {
        let raw = path(&self.host.dir.path().join("content.raw"));
        let tag = tag.map(|tag| format!("snapshot.name={tag}"));
        let mut args = vec!["convert", "-U", "-f", "qcow2", "-O", "raw"];
        args.extend(tag.iter().flat_map(|tag| ["-l", tag]));
        let from = path(image);
        args.extend([from.as_str(), raw.as_str()]);
        tool("qemu-img", &args);
        let bytes = std::fs::read(&raw).unwrap();
        let first = |cluster: &[u8]| {
            assert!(cluster.iter().all(|byte| *byte == cluster[0]), "{from}");
            cluster[0]
        };
        bytes.chunks(CLUSTER).take(CLUSTERS).map(first).collect()
    }

    fn view(&self) -> View {
        let is_up = self.is_up();
        let disks = DISKS.map(|disk| {
            if is_up {
                self.io(disk, "flush");
            }
            self.read(&self.active_image(disk), None)
        });
        let book = self.book.lock().unwrap();
        let moments = book.moments.iter().map(|def| {
            let contents = DISKS.map(|target| {
                let disk = def.disks.iter().find(|disk| disk.name == target).unwrap();
                let tag = (disk.snapshot == Location::Internal).then_some(def.name.as_str());
                self.read(&moment_image(def, target).unwrap(), tag)
            });
            (def.name.clone(), (def.parent.clone(), contents.to_vec()))
        });
        View {
            disks: disks.to_vec(),
            moments: moments.collect(),
            current: book.moments.current().map(str::to_owned),
            is_up,
            runs: self.runs(),
        }
    }
}

fn situation(ops: &[Op]) -> Host {
    let host = Host::new();
    let daemon = host.daemon(None);
    for (n, op) in ops.iter().enumerate() {
        let value = u8::try_from(n + 1).unwrap();
        daemon.apply(*op, value).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    }
    drop(daemon);
    host
}

fn every_trouble(before: &[Op], op: Op) {
    if !is_possible() {
        return;
    }
    let host = situation(before);
    let daemon = host.daemon(None);
    let old = daemon.view();
    daemon.apply(op, 0).unwrap_or_else(|err| panic!("{op:?}: {}", err.chain()));
    let new = daemon.view();
    drop(daemon);
    host.tidy("without trouble");

    let mut troubles = vec![Trouble::DiesAfter];
    if std::env::var_os("CRASHES").is_some() {
        troubles.extend([Trouble::DiesBefore, Trouble::FailsAfterEffect, Trouble::Fails]);
    }
    for trouble in troubles {
        for guest_dies in [false, true] {
            for at in 0.. {
                let context = format!("{before:?} then {op:?}, {trouble:?} at {at}, {guest_dies}");
                if !one_trouble(before, op, (at, trouble), guest_dies, (&old, &new), &context) {
                    assert!(at > 0, "{context}");
                    break;
                }
            }
        }
    }
}

/// False: there was no such call.
fn one_trouble(
    before: &[Op],
    op: Op,
    trouble: (usize, Trouble),
    guest_dies: bool,
    (old, new): (&View, &View),
    context: &str,
) -> bool {
    let host = situation(before);
    let daemon = host.daemon(Some(trouble));
    let result = daemon.apply(op, 0);
    let was_struck = daemon.hypervisor.was_struck();
    drop(daemon);
    if !was_struck {
        assert!(result.is_ok(), "{context}");
        return false;
    }
    // A guest that is being reverted stands still.
    let writes = !matches!(op, Revert(_));
    let mut wrote = false;
    let daemon = host.daemon(None);
    if writes && daemon.is_up() {
        daemon.apply(Write(MEANWHILE), 200).unwrap();
        wrote = true;
    }
    drop(daemon);
    if guest_dies {
        host.kill_guest();
    }
    let daemon = host.daemon(None);
    daemon.recover();
    let seen = daemon.view();
    let expected = |view: &View| {
        let mut view = view.clone();
        if wrote {
            view.disks.iter_mut().for_each(|disk| disk[MEANWHILE] = 200);
        }
        view
    };
    let same = |view: &View| {
        let view = expected(view);
        // What comes up in the end may fail to, and a guest that died is down.
        let bare = |view: View| View { is_up: false, runs: false, ..view };
        bare(seen.clone()) == bare(view)
    };
    assert!(same(old) || same(new), "{context}: saw {seen:#?}\nold {old:#?}\nnew {new:#?}");
    if writes && !guest_dies {
        assert_eq!((seen.is_up, seen.runs), (old.is_up, old.runs), "{context}: the guest");
    }
    drop(daemon);
    host.tidy(context);
    true
}

fn is_possible() -> bool {
    for program in ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-img", "/usr/bin/qemu-io"] {
        if !Path::new(program).exists() {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            eprintln!("SKIPPED: {program} is not installed");
            return false;
        }
    }
    true
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn tool(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success() && !said.contains("rror"),
        "{program} {args:?}: {said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn a_live_disk_snapshot() {
    every_trouble(&[Op::Start, Write(0)], Disks(0));
}

#[test]
fn a_live_full_snapshot() {
    every_trouble(&[Op::Start, Write(0)], Full(0));
}

#[test]
fn a_disk_snapshot_of_a_domain_that_is_shut_off() {
    every_trouble(&[Write(0), Disks(0), Write(1)], Disks(1));
}

#[test]
fn an_internal_snapshot_of_a_domain_that_is_shut_off() {
    every_trouble(&[Write(0)], Full(0));
}

#[test]
fn a_live_deletion_of_the_active_layer() {
    every_trouble(&[Op::Start, Write(0), Disks(0), Write(1)], Delete(0));
}

#[test]
fn a_live_deletion_in_the_middle() {
    every_trouble(&[Op::Start, Write(0), Disks(0), Write(1), Disks(1), Write(2)], Delete(0));
}

#[test]
fn a_live_deletion_upwards() {
    every_trouble(&[Op::Start, Write(0), Disks(0), Write(1)], Stream(0));
}

#[test]
fn a_live_deletion_upwards_in_the_middle() {
    let before = [Op::Start, Write(0), Disks(0), Write(1), Disks(1), Write(2), Disks(2), Write(3)];
    every_trouble(&before, Stream(1));
}

#[test]
fn a_deletion_upwards_of_a_domain_that_is_shut_off() {
    every_trouble(&[Write(0), Disks(0), Write(1), Disks(1), Write(2)], Stream(0));
}

#[test]
fn a_live_deletion_inside_a_backing_layer() {
    every_trouble(&[Op::Start, Write(0), Full(0), Write(1), Disks(1), Write(2)], Delete(0));
}

#[test]
fn a_deletion_of_a_domain_that_is_shut_off() {
    every_trouble(&[Write(0), Disks(0), Write(1), Disks(1), Write(2)], Delete(0));
}

#[test]
fn a_revert_in_the_same_process() {
    every_trouble(&[Op::Start, Write(0), Full(0), Write(1)], Revert(0));
}

#[test]
fn a_revert_to_a_frozen_layer() {
    every_trouble(&[Write(0), Disks(0), Write(1), Op::Start, Write(2)], Revert(0));
}

#[test]
fn a_revert_to_an_internal_snapshot_of_a_layer_that_others_read() {
    every_trouble(&[Op::Start, Write(0), Full(0), Write(1), Disks(1), Write(2), Stop], Revert(0));
}

#[test]
fn memory_in_a_file_of_a_running_guest() {
    every_trouble(&[Op::Start, Run, Write(0)], Memory(0));
}

#[test]
fn memory_in_a_file_of_a_guest_that_runs_on() {
    every_trouble(&[Op::Start, Run, Write(0)], Live(0));
}

#[test]
fn memory_in_a_file_of_a_paused_guest_for_the_second_time() {
    every_trouble(&[Op::Start, Write(0), Memory(0), Write(1)], Memory(1));
}

#[test]
fn memory_in_a_file_and_disks_of_both_kinds() {
    every_trouble(&[Op::Start, Run, Write(0)], Mixed(0));
}

#[test]
fn memory_in_an_image_of_its_own() {
    every_trouble(&[Op::Start, Run, Write(0)], Apart(0));
}

#[test]
fn a_revert_to_memory_in_a_file() {
    every_trouble(&[Op::Start, Write(0), Mixed(0), Write(1)], Revert(0));
}

#[test]
fn a_deletion_with_memory_in_a_file() {
    every_trouble(&[Op::Start, Write(0), Memory(0), Write(1)], Delete(0));
}

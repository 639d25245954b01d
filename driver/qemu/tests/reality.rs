//! The simulation is held to reality: the same random sequences on the simulated world and on real
//! QEMU processes without a guest (`-S`). Outcomes and image contents must agree.
//!
//! `REALITY_SEQUENCES=200` runs more of them.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Runtime;
use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::domain::{Event, ShutOffReason, Start, StartFrom};
use virtsnap_engine::error::Error;
use virtsnap_engine::moment::MomentList;
use virtsnap_engine::options::{
    Consolidate, DeleteOptions, DeleteScope, New, RevertOptions, RevertState, Scope,
};
use virtsnap_engine::plan::moment_image;
use virtsnap_engine::ports::{EventSink, Hypervisor, Journals, Records};
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::{Content, World};
use virtsnap_qemu::hypervisor::{Qemu, QemuConfig};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{DiskRequest, Location, MemoryRequest, Request, Survivor};

const DISKS: [&str; 2] = ["vda", "vdb"];
const CLUSTERS: u8 = 4;
/// Bytes; qcow2's default, so that one of ours is one of an image's.
const CLUSTER: usize = 64 * 1024;
const MEBIBYTE: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Full(u8),
    Disks(u8),
    /// Each disk inside or outside, and memory in a file, inside or not at all.
    Mix(u8, [Location; DISKS.len()], Remembers),
    Revert(u8, RevertOptions),
    Delete(u8, DeleteScope, Option<Survivor>),
    Start,
    Stop,
    Write(u8),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Remembers {
    Nothing,
    Inside,
    Outside,
}

fn any_mix() -> impl Strategy<Value = Op> {
    let place = || prop_oneof![Just(Location::Internal), Just(Location::External)];
    let memory = prop_oneof![
        1 => Just(Remembers::Nothing),
        1 => Just(Remembers::Inside),
        2 => Just(Remembers::Outside),
    ];
    (0u8..4, [place(), place()], memory).prop_map(|(n, places, memory)| Op::Mix(n, places, memory))
}

fn any_op() -> impl Strategy<Value = Op> {
    let state = prop_oneof![
        3 => Just(RevertState::AsSnapshot),
        1 => Just(RevertState::Running),
        1 => Just(RevertState::Paused),
        1 => Just(RevertState::ShutOff),
    ];
    let gives_up = prop_oneof![
        4 => Just((false, false)),
        1 => Just((true, false)),
        1 => Just((false, true)),
        1 => Just((true, true)),
    ];
    let revert = (state, gives_up).prop_map(|(state, (discard, delete_children))| RevertOptions {
        state,
        discard,
        delete_children,
        ..RevertOptions::default()
    });
    let scope = prop_oneof![
        4 => Just(DeleteScope::Single),
        1 => Just(DeleteScope::WithDescendants),
        1 => Just(DeleteScope::DescendantsOnly),
    ];
    let keep = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Survivor::Overlay)),
    ];
    prop_oneof![
        3 => (0u8..4).prop_map(Op::Full),
        4 => (0u8..4).prop_map(Op::Disks),
        4 => any_mix(),
        4 => ((0u8..4), revert).prop_map(|(n, options)| Op::Revert(n, options)),
        4 => ((0u8..4), scope, keep).prop_map(|(n, scope, keep)| Op::Delete(n, scope, keep)),
        3 => Just(Op::Start),
        1 => Just(Op::Stop),
        6 => (0..CLUSTERS).prop_map(Op::Write),
    ]
}

/// What both worlds can be asked to do.
trait Side {
    fn snapshots(&self, op: Op) -> Result<(), Error>;
    fn start(&self);
    fn stop(&self);
    fn write(&self, target: &str, cluster: u8, value: u8);
    fn content(&self, target: &str) -> Vec<u8>;
    fn content_of(&self, moment: &str, target: &str) -> Vec<u8>;

    fn apply(&self, op: Op, serial: usize) -> Result<(), Error> {
        match op {
            Op::Start => self.start(),
            Op::Stop => self.stop(),
            Op::Write(cluster) => {
                for target in DISKS {
                    self.write(target, cluster, pattern(serial));
                }
            }
            Op::Full(_) | Op::Disks(_) | Op::Mix(..) | Op::Revert(..) | Op::Delete(..) => {
                return self.snapshots(op);
            }
        }
        Ok(())
    }
}

fn pattern(serial: usize) -> u8 {
    u8::try_from(serial % 255 + 1).unwrap()
}

async fn run<H: Hypervisor, R: Records, J: Journals>(
    snapshots: &Snapshots<H, R, J>,
    book: &Mutex<Book>,
    op: Op,
) -> Result<(), Error> {
    let name = |n: u8| format!("s{n}");
    let new = New::plain;
    let request = |n| Request { name: Some(name(n)), ..Request::default() };
    match op {
        Op::Full(n) => {
            let options = new(Scope::FullSystem { live: false });
            snapshots.create(book, &request(n), &options).await.map(|_| ())
        }
        Op::Disks(n) => {
            let options = new(Scope::DiskOnly { quiesce: false });
            snapshots.create(book, &request(n), &options).await.map(|_| ())
        }
        Op::Mix(n, places, memory) => {
            let disks = DISKS.iter().zip(places).map(|(disk, place)| DiskRequest {
                name: (*disk).to_owned(),
                snapshot: Some(place),
                source_type: None,
                source: None,
                format: None,
                driver: None,
                on_delete: None,
                extra: Vec::new(),
            });
            let (scope, memory) = match memory {
                Remembers::Nothing => (Scope::DiskOnly { quiesce: false }, None),
                Remembers::Inside => (Scope::FullSystem { live: false }, None),
                Remembers::Outside => {
                    let memory = MemoryRequest::External { file: None };
                    (Scope::FullSystem { live: false }, Some(memory))
                }
            };
            let request = Request { disks: disks.collect(), memory, ..request(n) };
            snapshots.create(book, &request, &new(scope)).await.map(|_| ())
        }
        Op::Revert(n, options) => snapshots.revert(book, &name(n), &options).await,
        Op::Delete(n, scope, keep) => {
            let consolidate = Consolidate { keep, required: false };
            let options = DeleteOptions { scope, consolidate, ..DeleteOptions::default() };
            snapshots.delete(book, &name(n), &options).await
        }
        Op::Start | Op::Stop | Op::Write(_) => unreachable!("not a snapshot call"),
    }
}

struct Simulated {
    world: World,
    book: Mutex<Book>,
    runtime: Arc<Runtime>,
}

fn flat(content: &Content) -> Vec<u8> {
    (0..CLUSTERS).map(|n| u8::try_from(content.get(&n).copied().unwrap_or(0)).unwrap()).collect()
}

impl Side for Simulated {
    fn snapshots(&self, op: Op) -> Result<(), Error> {
        self.world.tick();
        let world = Arc::new(self.world.clone());
        let snapshots = Snapshots::new(Arc::clone(&world), Arc::clone(&world), world);
        self.runtime.block_on(run(&snapshots, &self.book, op))
    }

    fn start(&self) {
        if self.world.guest().is_none() {
            self.world.start();
            self.world.pause();
        }
    }

    fn stop(&self) {
        self.world.stop();
    }

    fn write(&self, target: &str, cluster: u8, value: u8) {
        self.world.write(target, cluster, value.into());
    }

    fn content(&self, target: &str) -> Vec<u8> {
        flat(&self.world.content(target))
    }

    fn content_of(&self, moment: &str, target: &str) -> Vec<u8> {
        flat(&self.world.content_of(moment, target).unwrap())
    }
}

struct Nobody;

impl EventSink for Nobody {
    fn emit(&self, _: Uuid, _: &str, _: i32, _: Event) {}
}

struct Real {
    dir: tempfile::TempDir,
    uuid: Uuid,
    qemu: Arc<Qemu>,
    /// Definitions and moments in memory; its own images are not used.
    records: Arc<World>,
    book: Mutex<Book>,
    runtime: Arc<Runtime>,
}

impl Real {
    fn new(runtime: Arc<Runtime>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sub = |name: &str| dir.path().join(name);
        let config = QemuConfig::new(sub("run"), sub("state"), sub("log"));
        let qemu = Arc::new(Qemu::new(config, Arc::new(Nobody)));
        let uuid = Uuid::new_v4();
        let mut disks = String::new();
        for target in DISKS {
            let image = sub(&format!("{target}.qcow2"));
            tool("qemu-img", &["create", "-q", "-f", "qcow2", &path(&image), "1M"]);
            disks.push_str(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                 <source file='{}'/><target dev='{target}' bus='virtio'/></disk>",
                path(&image)
            ));
        }
        let written = format!(
            "<domain type='qemu'><name>reality</name><uuid>{uuid}</uuid>\
             <memory unit='MiB'>16</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os>\
             <devices>{disks}<controller type='usb' model='none'/><memballoon model='none'/>\
             </devices></domain>"
        );
        let config = qemu.complete(Element::parse(&written).unwrap()).unwrap();
        let book = Mutex::new(Book {
            uuid,
            name: "reality".to_owned(),
            config: Some(config),
            moments: MomentList::default(),
            owned: Default::default(),
            has_managed_save: false,
            has_unreadable_moments: false,
            left: None,
        });
        Self { dir, uuid, qemu, records: Arc::new(World::new(&[])), book, runtime }
    }

    fn active_image(&self, target: &str) -> PathBuf {
        let active = self.qemu.active(self.uuid).map(|active| active.live);
        let definition = active.or_else(|| self.book.lock().unwrap().config.clone()).unwrap();
        PathBuf::from(domain::disk(&definition, target).unwrap().path().unwrap())
    }

    /// One qemu-io command, inside the running QEMU or by the tool.
    fn io(&self, target: &str, command: &str) {
        if self.qemu.active(self.uuid).is_none() {
            let image = path(&self.active_image(target));
            tool("qemu-io", &["-f", "qcow2", "-c", command, &image]);
            return;
        }
        let device = format!("/machine/peripheral/virtio-disk{}/virtio-backend", index(target));
        let command = format!("qemu-io -d {device} \"{command}\"");
        let said =
            self.runtime.block_on(self.qemu.monitor_command(self.uuid, &command, true)).unwrap();
        assert!(!said.contains("rror") && !said.contains("ailed"), "{command}: {said}");
    }

    /// The first byte of each cluster, after a check that all of the cluster is that byte.
    fn read(&self, image: &Path, tag: Option<&str>) -> Vec<u8> {
        let raw = self.dir.path().join("content.raw");
        let tag = tag.map(|tag| format!("snapshot.name={tag}"));
        let mut args = vec!["convert", "-U", "-f", "qcow2", "-O", "raw"];
        args.extend(tag.iter().flat_map(|tag| ["-l", tag]));
        let (from, to) = (path(image), path(&raw));
        args.extend([from.as_str(), to.as_str()]);
        tool("qemu-img", &args);
        let bytes = std::fs::read(raw).unwrap();
        assert_eq!(bytes.len(), MEBIBYTE);
        let clusters = bytes.chunks(CLUSTER).take(CLUSTERS.into());
        clusters
            .map(|cluster| {
                assert!(cluster.iter().all(|byte| *byte == cluster[0]));
                cluster[0]
            })
            .collect()
    }

    /// The live definition shows the chains as they are.
    fn check_live(&self) {
        let Some(active) = self.qemu.active(self.uuid) else { return };
        for disk in domain::disks(&active.live) {
            let told = tool("qemu-img", &["info", "-U", "--backing-chain", disk.path().unwrap()]);
            let chain: Vec<_> =
                told.lines().filter_map(|line| line.strip_prefix("image: ")).collect();
            let mut shown = vec![disk.path().unwrap()];
            shown.extend(disk.backing_paths());
            assert_eq!(shown, chain);
        }
    }

    fn check_images(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if file.is_file() && name.starts_with("vd") {
                tool("qemu-img", &["check", "-q", "-U", "-f", "qcow2", &path(&file)]);
            }
            assert!(!name.starts_with('.'), "a claim is left: {name}");
        }
    }
}

impl Side for Real {
    fn snapshots(&self, op: Op) -> Result<(), Error> {
        let (qemu, records) = (Arc::clone(&self.qemu), Arc::clone(&self.records));
        let snapshots = Snapshots::new(qemu, Arc::clone(&records), records);
        self.runtime.block_on(run(&snapshots, &self.book, op))
    }

    fn start(&self) {
        if self.qemu.active(self.uuid).is_none() {
            let config = self.book.lock().unwrap().config.clone().unwrap();
            let start = Start { paused: true, from: StartFrom::Boot };
            self.runtime.block_on(Hypervisor::start(&*self.qemu, config, start)).unwrap();
        }
    }

    fn stop(&self) {
        let destroyed = ShutOffReason::Destroyed;
        self.runtime.block_on(Hypervisor::destroy(&*self.qemu, self.uuid, destroyed)).unwrap();
    }

    fn write(&self, target: &str, cluster: u8, value: u8) {
        let at = usize::from(cluster) * CLUSTER;
        self.io(target, &format!("write -P {value} {at} {CLUSTER}"));
    }

    fn content(&self, target: &str) -> Vec<u8> {
        if self.qemu.active(self.uuid).is_some() {
            // What QEMU still keeps of qcow2's tables reaches the file.
            self.io(target, "flush");
        }
        self.read(&self.active_image(target), None)
    }

    fn content_of(&self, moment: &str, target: &str) -> Vec<u8> {
        let (image, location) = {
            let book = self.book.lock().unwrap();
            let def = book.moments.get(moment).unwrap();
            let disk = def.disks.iter().find(|disk| disk.name == target).unwrap();
            (moment_image(def, target).unwrap(), disk.snapshot)
        };
        let tag = (location == Location::Internal).then_some(moment);
        self.read(&image, tag)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let destroyed = ShutOffReason::Destroyed;
        drop(self.runtime.block_on(Hypervisor::destroy(&*self.qemu, self.uuid, destroyed)));
    }
}

fn index(target: &str) -> usize {
    DISKS.iter().position(|disk| *disk == target).unwrap()
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn tool(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success() && !said.contains("rror"),
        "{program} {args:?}: {said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    said
}

/// `Ok`, or which refusal.
fn outcome(result: &Result<(), Error>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(err) => format!("{:?}", err.condition),
    }
}

fn play(ops: &[Op]) {
    let runtime = Arc::new(Runtime::new().unwrap());
    let world = World::new(&DISKS);
    let book = world.book();
    let simulated = Simulated { world, book, runtime: Arc::clone(&runtime) };
    let real = Real::new(runtime);
    for (serial, op) in ops.iter().enumerate() {
        let context = format!("{op:?}, number {serial} of {ops:?}");
        let (expected, seen) = (simulated.apply(*op, serial), real.apply(*op, serial));
        assert_eq!(
            outcome(&seen),
            outcome(&expected),
            "{context}\nreal: {:?}\nsimulated: {:?}",
            seen.map_err(|err| err.chain()),
            expected.map_err(|err| err.chain())
        );
        for target in DISKS {
            assert_eq!(real.content(target), simulated.content(target), "{target} after {context}");
        }
        let moments = moments(&simulated.book);
        assert_eq!(
            moments.keys().collect::<Vec<_>>(),
            self::moments(&real.book).keys().collect::<Vec<_>>()
        );
        for name in moments.keys() {
            for target in DISKS {
                assert_eq!(
                    real.content_of(name, target),
                    simulated.content_of(name, target),
                    "{name} {target} after {context}"
                );
            }
        }
        real.check_images();
        real.check_live();
    }
}

fn moments(book: &Mutex<Book>) -> BTreeMap<String, Option<String>> {
    let book = book.lock().unwrap();
    book.moments.iter().map(|def| (def.name.clone(), def.parent.clone())).collect()
}

#[test]
fn random_sequences_agree_with_the_simulation() {
    for program in ["/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-img", "/usr/bin/qemu-io"] {
        if !Path::new(program).exists() {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            eprintln!("SKIPPED: {program} is not installed");
            return;
        }
    }
    let sequences = std::env::var("REALITY_SEQUENCES").ok().and_then(|n| n.parse().ok());
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let any_sequence = prop::collection::vec(any_op(), 8..20);
    for _ in 0..sequences.unwrap_or(8) {
        play(&any_sequence.new_tree(&mut runner).unwrap().current());
    }
}

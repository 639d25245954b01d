//! Every act on real images and a real QEMU, without a guest: what is written is written through
//! the guest's own device by QEMU's `qemu-io` command.

mod memory;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::json;
use uuid::Uuid;
use virtsnap_engine::domain::*;
use virtsnap_engine::error::Condition;
use virtsnap_engine::facts::Format::{self, Qcow2};
use virtsnap_engine::plan::{Finish, Pivot, ResumeReason, Step};
use virtsnap_engine::ports::{EventSink, PivotError, Subject};
use virtsnap_xml::element::Element;

use crate::blocks::{job, nodes};
use crate::confine::Owner;
use crate::hypervisor::{Qemu, QemuConfig};
use crate::instance::Instance;
use virtsnap_block::testing::{base, holds, tool, write};

/// As found on the way, so that another version can be put in front of it.
fn emulator() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64"));
    found.into_iter().find(|file| file.exists())
}

#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl EventSink for Told {
    fn emit(&self, _: Uuid, _: &str, _: i32, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

struct Bed {
    dir: tempfile::TempDir,
    told: Arc<Told>,
    qemu: Qemu,
    uuid: Uuid,
}

impl Bed {
    /// None where the programs are missing: said loudly, and a failure in CI.
    fn new() -> Option<Self> {
        Self::with_user(None)
    }

    fn with_user(user: Option<Owner>) -> Option<Self> {
        tool()?;
        let Some(emulator) = emulator() else {
            assert!(std::env::var_os("CI").is_none(), "qemu-system-x86_64 is missing");
            eprintln!("SKIPPED: qemu-system-x86_64 is missing");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let told = Arc::new(Told::default());
        let sub = |name: &str| dir.path().join(name);
        let mut config = QemuConfig::new(sub("run"), sub("state"), sub("log"));
        config.user = user;
        config.emulator = emulator;
        config.qemu_img = "qemu-img".into();
        let qemu = Qemu::new(config, told.clone());
        Some(Self { dir, told, qemu, uuid: Uuid::new_v4() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn image(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        base(&path).await;
        path
    }

    /// Starts a domain with these disks, vda first, and leaves its vCPUs stopped.
    async fn start(&self, images: &[&Path]) -> Arc<Instance> {
        self.start_with(images, 16384).await
    }

    async fn start_with(&self, images: &[&Path], memory: u32) -> Arc<Instance> {
        let mut disks = String::new();
        for (n, image) in images.iter().enumerate() {
            let target = char::from(b'a' + n as u8);
            let image = image.to_str().unwrap().replace('&', "&amp;").replace('\'', "&apos;");
            disks.push_str(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                 <source file='{image}'/><target dev='vd{target}' bus='virtio'/>\
                 <alias name='virtio-disk{n}'/><address type='pci' domain='0x0000' bus='0x00' \
                 slot='0x0{}' function='0x0'/></disk>",
                n + 4
            ));
        }
        let uuid = self.uuid;
        let emulator = self.qemu.config().emulator.display();
        let definition = Element::parse(&format!(
            "<domain type='qemu'><name>t</name><uuid>{uuid}</uuid>\
             <memory unit='KiB'>{memory}</memory><currentMemory unit='KiB'>{memory}</currentMemory>\
             <vcpu>1</vcpu><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>\
             <features><acpi/></features><clock offset='utc'/>\
             <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>\
             <on_crash>destroy</on_crash><devices><emulator>{emulator}</emulator>{disks}\
             <controller type='usb' index='0' model='none'><alias name='usb'/></controller>\
             <controller type='pci' index='0' model='pci-root'><alias name='pci.0'/></controller>\
             <memballoon model='none'/></devices></domain>"
        ))
        .unwrap();
        let start = Start { paused: true, from: StartFrom::Boot };
        self.qemu.start_domain(definition, start).await.unwrap();
        self.told.0.lock().unwrap().clear();
        self.qemu.instance(self.uuid).unwrap()
    }

    async fn stop(&self) {
        self.finish(&Finish::Stop(ShutOffReason::Destroyed)).await;
    }

    async fn act(&self, step: &Step) {
        self.qemu.act_step(self.uuid, step).await.unwrap_or_else(|err| panic!("{}", err.chain()));
    }

    /// Every undo is done twice.
    async fn undo(&self, step: &Step) {
        for _ in 0..2 {
            self.qemu.undo_step(self.uuid, step).await.unwrap();
        }
    }

    /// Every finish is done twice.
    async fn finish(&self, finish: &Finish) {
        for _ in 0..2 {
            let done = self.qemu.finish_act(self.uuid, finish).await;
            done.unwrap_or_else(|err| panic!("{finish:?}: {}", err.chain()));
        }
    }

    async fn pivot(&self, pivot: &Pivot) -> Result<(), PivotError> {
        self.qemu.pivot_to(self.uuid, pivot).await
    }

    async fn pivoted(&self, pivot: &Pivot) -> bool {
        self.qemu.has_pivoted(self.uuid, pivot).await.unwrap()
    }

    /// The chain of vda by file names.
    fn chain(&self) -> Vec<String> {
        let chain = self.qemu.instance(self.uuid).unwrap().chain("vda").unwrap();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        chain.layers.iter().map(|layer| name(&layer.image)).collect()
    }

    /// An overlay on vda, from creation to being kept.
    async fn overlay(&self, name: &str) -> PathBuf {
        let instance = self.qemu.instance(self.uuid).unwrap();
        let backing = instance.chain("vda").unwrap().layers[0].image.clone();
        let overlay = self.at(name);
        for step in new_overlay("vda", &overlay, &backing) {
            self.act(&step).await;
        }
        let pivot = Pivot::SwitchToOverlays { disks: vec![("vda".to_owned(), overlay.clone())] };
        assert!(!self.pivoted(&pivot).await);
        self.pivot(&pivot).await.unwrap();
        assert!(self.pivoted(&pivot).await);
        self.finish(&Finish::KeepImage(overlay.clone())).await;
        overlay
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        let mut names: Vec<_> =
            files.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn check(&self, images: &[&PathBuf]) {
        for image in images {
            let check = self.qemu.image_tool().check(image, &Qcow2).await.unwrap();
            assert_eq!((check.corruptions, check.leaks), (0, 0), "{image:?}");
        }
    }

    fn block_jobs(&self) -> Vec<(BlockJobKind, BlockJobStatus)> {
        let told = std::mem::take(&mut *self.told.0.lock().unwrap());
        let jobs = told.into_iter().filter_map(|event| match event {
            Event::BlockJob { target, kind, status, .. } => {
                assert_eq!(target, "vda");
                Some((kind, status))
            }
            _ => None,
        });
        jobs.collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(instance) = self.qemu.instance(self.uuid) {
            instance.process.signal(rustix::process::Signal::KILL);
        }
    }
}

fn new_overlay(disk: &str, overlay: &Path, backing: &Path) -> [Step; 2] {
    let (overlay, backing) = (overlay.to_owned(), backing.to_owned());
    [
        Step::CreateOverlay {
            overlay: overlay.clone(),
            format: Qcow2,
            backing,
            backing_format: Qcow2,
            virtual_size: 4 << 20,
        },
        Step::AttachOverlay { disk: disk.to_owned(), overlay, format: Qcow2 },
    ]
}

/// Through the guest's device; whether a read found what it was to find.
async fn guest(instance: &Instance, disk: usize, command: &str) -> bool {
    let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
    let answer = instance.qmp.human(&format!("qemu-io -d {device} \"{command}\"")).await.unwrap();
    assert!(!answer.contains("rror") && !answer.contains("Usage"), "{command}: {answer}");
    !answer.contains("Pattern verification failed")
}

async fn our_nodes(instance: &Instance) -> usize {
    let nodes = nodes::all(&instance.qmp).await.unwrap();
    nodes.iter().filter(|node| node.node_name.starts_with("libvirt-")).count()
}

fn commit(top: &Path, base: &Path) -> Finish {
    Finish::Commit { disk: "vda".to_owned(), top: top.to_owned(), base: base.to_owned() }
}

fn stream(top: &Path, base: Option<&PathBuf>) -> Finish {
    Finish::Stream { disk: "vda".to_owned(), top: top.to_owned(), base: base.cloned() }
}

// -- overlays ------------------------------------------------------------------------------------

#[tokio::test]
async fn overlays_are_attached_undone_and_switched_to_together() {
    let Some(bed) = Bed::new() else { return };
    let (a, b) = (bed.image("a").await, bed.image("b").await);
    let instance = bed.start(&[&a, &b]).await;
    assert!(guest(&instance, 0, "write -P 1 0 64k").await);
    let (a1, b1) = (bed.at("a1"), bed.at("b1"));
    let steps = [new_overlay("vda", &a1, &a), new_overlay("vdb", &b1, &b)].concat();
    for step in steps.iter().rev() {
        bed.undo(step).await;
    }
    for step in &steps {
        bed.act(step).await;
    }
    assert_eq!(our_nodes(&instance).await, 8);
    for step in steps.iter().rev() {
        bed.undo(step).await;
    }
    assert_eq!(our_nodes(&instance).await, 4);
    assert_eq!(bed.names(), ["a", "b"]);

    for step in &steps {
        bed.act(step).await;
    }
    let pivot = Pivot::SwitchToOverlays {
        disks: vec![("vda".to_owned(), a1.clone()), ("vdb".to_owned(), b1.clone())],
    };
    assert!(!bed.pivoted(&pivot).await);
    bed.pivot(&pivot).await.unwrap();
    assert!(bed.pivoted(&pivot).await);
    assert_eq!(bed.chain(), ["a1", "a"]);
    // A switched overlay is nobody's to take away.
    bed.qemu.undo_step(bed.uuid, &steps[1]).await.unwrap();
    assert_eq!(our_nodes(&instance).await, 8);
    for overlay in [&a1, &b1] {
        bed.finish(&Finish::KeepImage(overlay.clone())).await;
    }
    assert!(guest(&instance, 0, "write -P 2 0 64k").await);
    bed.stop().await;
    assert!(holds(&a, 1, "0 64k") && holds(&a1, 2, "0 64k"));
    bed.check(&[&a, &a1, &b, &b1]).await;
    assert_eq!(bed.names(), ["a", "a1", "b", "b1"]);
}

#[tokio::test]
async fn a_refused_switch_changes_no_disk() {
    let Some(bed) = Bed::new() else { return };
    let (a, b) = (bed.image("a").await, bed.image("b").await);
    let instance = bed.start(&[&a, &b]).await;
    let a1 = bed.at("a1");
    let steps = new_overlay("vda", &a1, &a);
    for step in &steps {
        bed.act(step).await;
    }
    let disks = vec![("vda".to_owned(), a1.clone()), ("vdb".to_owned(), bed.at("absent"))];
    let pivot = Pivot::SwitchToOverlays { disks };
    assert!(matches!(bed.pivot(&pivot).await, Err(PivotError::Refused(_))));
    assert!(!bed.pivoted(&pivot).await);
    for step in steps.iter().rev() {
        bed.undo(step).await;
    }
    assert_eq!(bed.chain(), ["a"]);
    assert_eq!(our_nodes(&instance).await, 4);
    assert_eq!(bed.names(), ["a", "b"]);
}

#[tokio::test]
async fn after_qemus_end_a_written_overlay_tells_of_the_switch() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let a1 = bed.at("a1");
    for step in new_overlay("vda", &a1, &a) {
        bed.act(&step).await;
    }
    let pivot = Pivot::SwitchToOverlays { disks: vec![("vda".to_owned(), a1.clone())] };
    bed.pivot(&pivot).await.unwrap();
    assert!(guest(&instance, 0, "write -P 2 0 64k").await);
    assert!(guest(&instance, 0, "flush").await);
    bed.stop().await;
    assert!(bed.pivoted(&pivot).await);

    let a2 = bed.at("a2");
    bed.act(&new_overlay("vda", &a2, &a1)[0]).await;
    let pivot = Pivot::SwitchToOverlays { disks: vec![("vda".to_owned(), a2)] };
    assert!(!bed.pivoted(&pivot).await);
}

#[tokio::test]
async fn odd_names_reach_qemu_as_they_are() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a,=b c").await;
    let instance = bed.start(&[&a]).await;
    for name in ["n:x", "json:{}", "q\"'", "ünï-日本", "p%s\\t,,"] {
        let top = bed.overlay(name).await;
        assert!(guest(&instance, 0, "write -P 5 0 64k").await);
        bed.finish(&commit(&top, &a)).await;
        assert_eq!(bed.chain(), ["a,=b c"]);
        bed.finish(&Finish::RemoveImage(top)).await;
    }
    let mid = bed.overlay("m,:d").await;
    bed.overlay("top:").await;
    bed.finish(&commit(&mid, &a)).await;
    bed.finish(&Finish::RemoveImage(mid)).await;
    bed.stop().await;
    assert!(holds(&bed.at("top:"), 5, "0 64k"));
}

#[test]
fn what_the_daemon_did_not_live_to_note_is_found_out() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let ended = |runtime: tokio::runtime::Runtime| {
        runtime.shutdown_timeout(std::time::Duration::from_secs(10));
    };
    let Some(mut bed) = Bed::new() else { return };
    let (a1, a2) = (bed.at("a1"), bed.at("a2"));
    let pivot = Pivot::SwitchToOverlays { disks: vec![("vda".to_owned(), a1.clone())] };

    // It dies between QEMU's transaction and the note of it.
    let first = runtime();
    let a = first.block_on(async {
        let a = bed.image("a").await;
        let instance = bed.start(&[&a]).await;
        for step in new_overlay("vda", &a1, &a) {
            bed.act(&step).await;
        }
        let node = instance.chain("vda").unwrap().layers[0].format_node();
        let overlay = nodes::unused(&instance, &a1).await.unwrap()[0].format_node();
        let data = json!({ "node": node, "overlay": overlay });
        let actions = json!({ "actions": [{ "type": "blockdev-snapshot", "data": data }] });
        instance.qmp.execute("transaction", actions).await.unwrap();
        a
    });
    bed.qemu = Qemu::new(bed.qemu.config().clone(), bed.told.clone());
    ended(first);

    // Then with an overlay attached and a commit waiting for its end.
    let second = runtime();
    second.block_on(async {
        bed.qemu.reconnect_all().await.unwrap();
        assert_eq!(bed.chain(), ["a"]);
        assert!(bed.pivoted(&pivot).await);
        assert_eq!(bed.chain(), ["a1", "a"]);
        let instance = bed.qemu.instance(bed.uuid).unwrap();
        assert!(guest(&instance, 0, "write -P 4 0 64k").await);
        for step in new_overlay("vda", &a2, &a1) {
            bed.act(&step).await;
        }
        let layers = instance.chain("vda").unwrap().layers;
        let arguments = json!({
            "job-id": job::id("merge", "vda"), "device": layers[0].format_node(),
            "base-node": layers[1].format_node(), "auto-dismiss": false, "auto-finalize": false,
        });
        instance.qmp.execute("block-commit", arguments).await.unwrap();
    });
    bed.qemu = Qemu::new(bed.qemu.config().clone(), bed.told.clone());
    ended(second);

    let third = runtime();
    third.block_on(async {
        bed.qemu.reconnect_all().await.unwrap();
        let instance = bed.qemu.instance(bed.uuid).unwrap();
        bed.undo(&new_overlay("vda", &a2, &a1)[1]).await;
        bed.undo(&new_overlay("vda", &a2, &a1)[0]).await;
        bed.finish(&commit(&a1, &a)).await;
        assert_eq!(bed.chain(), ["a"]);
        assert_eq!(our_nodes(&instance).await, 2);
        bed.finish(&Finish::RemoveImage(a1)).await;
        bed.stop().await;
        assert!(holds(&a, 4, "0 64k"));
        assert_eq!(bed.names(), ["a"]);
    });
    ended(third);
}

// -- merging --------------------------------------------------------------------------------------

#[tokio::test]
async fn the_active_layer_is_committed_and_the_guest_goes_on_in_the_base() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    assert!(guest(&instance, 0, "write -P 1 0 128k").await);
    let top = bed.overlay("top").await;
    assert!(guest(&instance, 0, "write -P 2 64k 64k").await);
    bed.finish(&commit(&top, &a)).await;
    assert_eq!(bed.chain(), ["a"]);
    assert_eq!(our_nodes(&instance).await, 2);
    assert_eq!(
        bed.block_jobs(),
        [
            (BlockJobKind::ActiveCommit, BlockJobStatus::Ready),
            (BlockJobKind::ActiveCommit, BlockJobStatus::Completed)
        ]
    );
    assert!(guest(&instance, 0, "read -P 2 64k 64k").await);
    assert!(guest(&instance, 0, "write -P 3 64k 64k").await);
    bed.stop().await;
    // Once more after the end, as by a daemon that died before it could note the first time:
    // the top is old now and must not go down again.
    bed.finish(&commit(&top, &a)).await;
    assert!(holds(&a, 1, "0 64k") && holds(&a, 3, "64k 64k"));
    bed.finish(&Finish::RemoveImage(top)).await;
    bed.check(&[&a]).await;
    assert_eq!(bed.names(), ["a"]);
}

#[tokio::test]
async fn a_commit_is_adopted_wherever_a_crash_left_it() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let id = job::id("merge", "vda");
    for stage in ["ready", "pending", "concluded"] {
        let top = bed.overlay("top").await;
        assert!(guest(&instance, 0, "write -P 7 0 64k").await);
        let layers = instance.chain("vda").unwrap().layers;
        let arguments = json!({
            "job-id": id, "device": layers[0].format_node(), "top-node": layers[0].format_node(),
            "base-node": layers[1].format_node(), "auto-dismiss": false, "auto-finalize": false,
        });
        instance.qmp.execute("block-commit", arguments).await.unwrap();
        job::wait(&instance.qmp, &id, |job| job.status == "ready").await.unwrap();
        if stage != "ready" {
            job::complete(&instance.qmp, &id).await.unwrap();
            job::wait(&instance.qmp, &id, |job| job.status == "pending").await.unwrap();
        }
        if stage == "concluded" {
            job::finalize(&instance.qmp, &id).await.unwrap();
            job::wait(&instance.qmp, &id, job::Job::is_concluded).await.unwrap();
        }
        bed.finish(&commit(&top, &a)).await;
        assert_eq!(bed.chain(), ["a"], "{stage}");
        assert_eq!(our_nodes(&instance).await, 2, "{stage}");
        assert!(guest(&instance, 0, "read -P 7 0 64k").await);
        assert!(guest(&instance, 0, "write -P 0 0 64k").await);
        bed.finish(&Finish::RemoveImage(top)).await;
    }
}

#[tokio::test]
async fn a_mark_of_an_old_commit_is_gone_when_facts_are_asked() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let top = bed.overlay("top").await;
    assert!(guest(&instance, 0, "write -P 1 0 64k").await);
    bed.finish(&commit(&top, &a)).await;
    bed.stop().await;
    bed.qemu.domain_facts(&bed.subject(None, &[&top])).await.unwrap();
    write(&top, 2, "0 64k");
    bed.finish(&commit(&top, &a)).await;
    assert!(holds(&a, 2, "0 64k"));
}

#[tokio::test]
async fn a_middle_layer_is_committed_and_the_one_above_follows() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    assert!(guest(&instance, 0, "write -P 1 0 192k").await);
    let mid = bed.overlay("mid").await;
    assert!(guest(&instance, 0, "write -P 2 64k 128k").await);
    let high = bed.overlay("high").await;
    let top = bed.overlay("top").await;
    assert!(guest(&instance, 0, "write -P 3 128k 64k").await);
    bed.finish(&commit(&high, &a)).await;
    assert_eq!(bed.chain(), ["top", "a"]);
    assert_eq!(bed.block_jobs(), [(BlockJobKind::Commit, BlockJobStatus::Completed)]);
    assert_eq!(our_nodes(&instance).await, 4);
    bed.finish(&Finish::Repoint { image: top.clone(), backing: a.clone(), backing_format: Qcow2 })
        .await;
    for image in [high, mid] {
        bed.finish(&Finish::RemoveImage(image)).await;
    }
    bed.stop().await;
    let facts = bed.qemu.image_tool().info(&top, &Qcow2).await.unwrap();
    assert_eq!((facts.backing, facts.backing_format), (Some(a.clone()), Some(Qcow2)));
    assert!(holds(&top, 1, "0 64k") && holds(&top, 2, "64k 64k") && holds(&top, 3, "128k 64k"));
    assert!(holds(&a, 2, "64k 128k"));
    bed.check(&[&a, &top]).await;
}

#[tokio::test]
async fn a_raw_base_is_committed_to() {
    let Some(bed) = Bed::new() else { return };
    let (raw, top) = (bed.at("raw"), bed.at("top"));
    fs::write(&raw, vec![1; 4 << 20]).unwrap();
    bed.act(&Step::CreateOverlay {
        overlay: top.clone(),
        format: Qcow2,
        backing: raw.clone(),
        backing_format: Format::Raw,
        virtual_size: 4 << 20,
    })
    .await;
    bed.finish(&Finish::KeepImage(top.clone())).await;
    let instance = bed.start(&[&top]).await;
    let upper = bed.overlay("upper").await;
    assert!(guest(&instance, 0, "write -P 2 64k 64k").await);
    bed.finish(&commit(&top, &raw)).await;
    assert_eq!(bed.chain(), ["upper", "raw"]);
    bed.finish(&Finish::Repoint {
        image: upper.clone(),
        backing: raw.clone(),
        backing_format: Format::Raw,
    })
    .await;
    bed.finish(&commit(&upper, &raw)).await;
    bed.stop().await;
    let bytes = fs::read(&raw).unwrap();
    assert!(
        bytes[..65536].iter().all(|b| *b == 1) && bytes[65536..131_072].iter().all(|b| *b == 2)
    );
}

#[tokio::test]
async fn layers_are_streamed_up_to_a_base_and_to_the_ground() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    assert!(guest(&instance, 0, "write -P 1 0 192k").await);
    let mid = bed.overlay("mid").await;
    assert!(guest(&instance, 0, "write -P 2 64k 128k").await);
    let high = bed.overlay("high").await;
    bed.overlay("top").await;
    assert!(guest(&instance, 0, "write -P 3 128k 64k").await);
    // Into a backing layer, then into the active one.
    bed.finish(&stream(&high, Some(&a))).await;
    assert_eq!(bed.chain(), ["top", "high", "a"]);
    bed.finish(&Finish::RemoveImage(mid)).await;
    let top = bed.at("top");
    bed.finish(&stream(&top, None)).await;
    assert_eq!(bed.chain(), ["top"]);
    assert_eq!(our_nodes(&instance).await, 2);
    let pull = (BlockJobKind::Pull, BlockJobStatus::Completed);
    assert_eq!(bed.block_jobs(), [pull, pull]);
    bed.stop().await;
    bed.finish(&stream(&top, None)).await;
    for image in [a, high] {
        bed.finish(&Finish::RemoveImage(image)).await;
    }
    assert!(holds(&top, 1, "0 64k") && holds(&top, 2, "64k 64k") && holds(&top, 3, "128k 64k"));
    bed.check(&[&top]).await;
    assert_eq!(bed.names(), ["top"]);
}

#[tokio::test]
async fn a_branch_that_qemu_does_not_have_is_merged_beside_it() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    write(&a, 1, "0 64k");
    let instance = bed.start(&[&a]).await;
    bed.overlay("top").await;
    let (b1, b2, b3) = (bed.at("b1"), bed.at("b2"), bed.at("b3"));
    for (overlay, backing) in [(&b1, &a), (&b2, &b1), (&b3, &b2)] {
        bed.act(&new_overlay("vda", overlay, backing)[0]).await;
        bed.finish(&Finish::KeepImage(overlay.clone())).await;
    }
    write(&b1, 2, "64k 64k");
    write(&b2, 3, "128k 64k");
    bed.finish(&commit(&b2, &b1)).await;
    bed.finish(&Finish::Repoint { image: b3.clone(), backing: b1.clone(), backing_format: Qcow2 })
        .await;
    bed.finish(&Finish::RemoveImage(b2)).await;
    bed.finish(&stream(&b3, Some(&a))).await;
    bed.finish(&Finish::RemoveImage(b1)).await;
    assert!(guest(&instance, 0, "read -P 1 0 64k").await);
    bed.stop().await;
    assert!(holds(&b3, 1, "0 64k") && holds(&b3, 2, "64k 64k") && holds(&b3, 3, "128k 64k"));
    bed.check(&[&a, &b3]).await;
}

#[tokio::test]
async fn merges_work_for_an_ordinary_qemu_user_and_all_is_handed_back() {
    let nobody = Owner { uid: 65534, gid: 65534 };
    if Owner::ours().uid != 0 {
        eprintln!("SKIPPED: only root can run QEMU as another user");
        return;
    }
    let Some(bed) = Bed::with_user(Some(nobody)) else { return };
    fs::set_permissions(bed.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let a = bed.image("a").await;
    fs::set_permissions(&a, fs::Permissions::from_mode(0o600)).unwrap();
    bed.act(&Step::SnapshotImage { image: a.clone(), tag: "s".to_owned() }).await;
    let instance = bed.start(&[&a]).await;
    assert!(guest(&instance, 0, "write -P 1 0 64k").await);
    let mid = bed.overlay("mid").await;
    assert!(guest(&instance, 0, "write -P 2 64k 64k").await);
    let top = bed.overlay("top").await;
    assert_eq!(Owner::of(&top).unwrap(), nobody);
    assert!(guest(&instance, 0, "write -P 3 128k 64k").await);
    bed.finish(&Finish::DeleteSnapshot { image: a.clone(), tag: "s".to_owned() }).await;
    bed.finish(&commit(&mid, &a)).await;
    bed.finish(&Finish::RemoveImage(mid)).await;
    bed.finish(&stream(&top, None)).await;
    let last = bed.overlay("last").await;
    bed.finish(&commit(&last, &top)).await;
    bed.stop().await;
    assert!(holds(&top, 1, "0 64k") && holds(&top, 2, "64k 64k") && holds(&top, 3, "128k 64k"));
    for image in [&a, &top, &last] {
        assert_eq!(Owner::of(image).unwrap(), Owner::ours(), "{image:?}");
    }
}

// -- memory -------------------------------------------------------------------------------------

fn save(tag: &str, disks: &[&str]) -> Pivot {
    let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
    Pivot::SaveVmState { tag: tag.to_owned(), vmstate: VmStateIn::Disk("vda".to_owned()), disks }
}

fn load(tag: &str, disks: &[&str]) -> Pivot {
    let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
    Pivot::LoadVmState { tag: tag.to_owned(), vmstate: VmStateIn::Disk("vda".to_owned()), disks }
}

#[tokio::test]
async fn memory_and_disks_are_saved_and_loaded_by_any_tag() {
    let Some(bed) = Bed::new() else { return };
    let (a, b) = (bed.image("a").await, bed.image("b").await);
    let instance = bed.start(&[&a, &b]).await;
    for tag in ["s1", "a,b \"ü\" 日本", "1"] {
        assert!(guest(&instance, 0, "write -P 1 0 64k").await);
        assert!(guest(&instance, 1, "write -P 2 0 64k").await);
        let save = save(tag, &["vda", "vdb", "vda"]);
        assert!(!bed.pivoted(&save).await);
        bed.pivot(&save).await.unwrap();
        assert!(bed.pivoted(&save).await);
        assert!(matches!(bed.pivot(&save).await, Err(PivotError::Refused(_))));
        assert!(guest(&instance, 0, "write -P 8 0 64k").await);
        assert!(guest(&instance, 1, "write -P 9 0 64k").await);
        let load = load(tag, &["vda", "vdb"]);
        bed.pivot(&load).await.unwrap();
        assert!(bed.pivoted(&load).await);
        assert!(guest(&instance, 0, "read -P 1 0 64k").await);
        assert!(guest(&instance, 1, "read -P 2 0 64k").await);
    }
    let facts = bed.qemu.domain_facts(&bed.subject(None, &[])).await.unwrap();
    let snapshots = &facts.images[&a].snapshots;
    assert_eq!(snapshots.len(), 3);
    assert!(snapshots.iter().all(|snapshot| snapshot.vm_state_size > 0));
    assert!(facts.images[&b].snapshots.iter().all(|snapshot| snapshot.vm_state_size == 0));
    for image in [&a, &b] {
        bed.finish(&Finish::DeleteSnapshot { image: image.clone(), tag: "1".to_owned() }).await;
    }
    let facts = bed.qemu.domain_facts(&bed.subject(None, &[])).await.unwrap();
    assert_eq!(facts.images[&a].snapshots.len(), 2);
    bed.stop().await;
    bed.check(&[&a, &b]).await;
}

#[tokio::test]
async fn a_refused_load_leaves_the_guest_as_it_was() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    bed.finish(&Finish::Resume(ResumeReason::Unpaused)).await;
    assert!(matches!(instance.state(), State::Running(_)));
    assert!(matches!(bed.pivot(&load("s", &["vda"])).await, Err(PivotError::Refused(_))));
    bed.pivot(&save("s", &["vda"])).await.unwrap();
    assert!(matches!(instance.state(), State::Running(_)), "{:?}", instance.state());
    let err = bed.pivot(&load("s", &["vda"])).await;
    assert!(matches!(err, Err(PivotError::Refused(_))), "a running guest is not overwritten");
    bed.act(&Step::Pause).await;
    assert!(matches!(instance.state(), State::Paused(_)));
    assert!(matches!(bed.pivot(&load("t", &["vda"])).await, Err(PivotError::Refused(_))));
    assert!(!bed.pivoted(&load("t", &["vda"])).await);
    bed.undo(&Step::Pause).await;
    assert!(matches!(instance.state(), State::Running(_)));
    bed.act(&Step::Pause).await;
    bed.pivot(&load("s", &["vda"])).await.unwrap();
    assert!(matches!(instance.state(), State::Paused(_)));
    bed.finish(&Finish::Resume(ResumeReason::FromSnapshot)).await;
    assert_eq!(instance.state(), State::Running(RunningReason::FromSnapshot));
}

#[tokio::test]
async fn a_load_that_broke_the_guest_never_lets_it_run() {
    let Some(bed) = Bed::new() else { return };
    let (a, b) = (bed.image("a").await, bed.image("b").await);
    let instance = bed.start(&[&a, &b]).await;
    assert!(guest(&instance, 1, "write -P 1 0 64k").await);
    bed.pivot(&save("s", &["vda", "vdb"])).await.unwrap();
    assert!(guest(&instance, 1, "write -P 2 0 64k").await);
    bed.stop().await;
    bed.qemu.domain_facts(&bed.subject(None, &[])).await.unwrap();
    let load = load("s", &["vda", "vdb"]);
    assert!(!bed.pivoted(&load).await, "nothing was begun");
    // QEMU notices the other size of memory only after the disks have gone back.
    bed.start_with(&[&a, &b], 32768).await;
    assert!(matches!(bed.pivot(&load).await, Err(PivotError::InDoubt(_))));
    assert!(bed.qemu.instance(bed.uuid).is_none());
    write(&b, 3, "0 64k");
    assert!(bed.pivoted(&load).await);
    assert!(holds(&b, 1, "0 64k"));
    bed.finish(&Finish::Resume(ResumeReason::FromSnapshot)).await;
    assert!(bed.pivoted(&load).await, "until the operation is over");
    bed.qemu.domain_facts(&bed.subject(None, &[])).await.unwrap();
    assert!(!bed.pivoted(&load).await);
}

#[tokio::test]
async fn a_save_that_qemu_did_not_survive_leaves_no_half() {
    let Some(bed) = Bed::new() else { return };
    let (a, b) = (bed.image("a").await, bed.image("b").await);
    bed.start(&[&a, &b]).await;
    let save = save("s", &["vda", "vdb"]);
    bed.pivot(&save).await.unwrap();
    bed.stop().await;
    // As if QEMU had died after the first of two disks.
    let note = bed.at("state").join(format!("{}.vmstate", bed.uuid));
    fs::write(&note, json!({ "tag": "s", "images": [a, b] }).to_string()).unwrap();
    assert!(bed.pivoted(&save).await);
    let tool = bed.qemu.image_tool();
    tool.delete_snapshot(&b, &Qcow2, "s").await.unwrap();
    fs::write(&note, json!({ "tag": "s", "images": [a, b] }).to_string()).unwrap();
    assert!(!bed.pivoted(&save).await);
    assert_eq!(tool.tagged(&a, &Qcow2, "s").await.unwrap(), None);
}

// -- single images ---------------------------------------------------------------------------------

#[tokio::test]
async fn a_snapshot_in_a_backing_layer_is_deleted_under_a_running_domain() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    write(&a, 1, "0 64k");
    bed.act(&Step::SnapshotImage { image: a.clone(), tag: "old".to_owned() }).await;
    bed.act(&Step::SnapshotImage { image: a.clone(), tag: "stays".to_owned() }).await;
    write(&a, 2, "0 64k");
    let instance = bed.start(&[&a]).await;
    bed.overlay("top").await;
    assert!(guest(&instance, 0, "write -P 3 64k 64k").await);
    bed.finish(&Finish::DeleteSnapshot { image: a.clone(), tag: "old".to_owned() }).await;
    let read_only = instance.qmp.execute("query-named-block-nodes", json!({ "flat": true })).await;
    let node = instance.chain("vda").unwrap().layers[1].format_node();
    let nodes = read_only.unwrap();
    let node = nodes.as_array().unwrap().iter().find(|n| n["node-name"] == node.as_str());
    assert_eq!(node.unwrap()["ro"], true);
    bed.stop().await;
    let facts = bed.qemu.image_tool().info(&a, &Qcow2).await.unwrap();
    assert_eq!(facts.snapshots.iter().map(|s| s.tag.as_str()).collect::<Vec<_>>(), ["stays"]);
    assert!(holds(&bed.at("top"), 2, "0 64k") && holds(&bed.at("top"), 3, "64k 64k"));
    bed.check(&[&a, &bed.at("top")]).await;
}

#[tokio::test]
async fn a_tag_that_was_there_before_survives_the_undo() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let step = Step::SnapshotImage { image: a.clone(), tag: "s".to_owned() };
    bed.undo(&step).await;
    bed.act(&step).await;
    assert!(bed.qemu.act_step(bed.uuid, &step).await.is_err());
    bed.qemu.undo_step(bed.uuid, &step).await.unwrap();
    let tool = bed.qemu.image_tool();
    assert!(tool.tagged(&a, &Qcow2, "s").await.unwrap().is_some());
    bed.undo(&step).await;
    assert!(tool.tagged(&a, &Qcow2, "s").await.unwrap().is_none());
    assert_eq!(bed.names(), ["a"]);
    let long = Step::SnapshotImage { image: a, tag: "x".repeat(256) };
    assert!(bed.qemu.act_step(bed.uuid, &long).await.is_err());
}

#[tokio::test]
async fn images_in_use_are_not_reverted_copied_or_snapshotted() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    bed.act(&Step::SnapshotImage { image: a.clone(), tag: "s".to_owned() }).await;
    bed.start(&[&a]).await;
    let refused = |outcome: virtsnap_engine::error::Result<()>| {
        assert_eq!(outcome.unwrap_err().condition, Condition::OperationInvalid);
    };
    let tag = || "s".to_owned();
    let apply = Finish::ApplySnapshot { image: a.clone(), tag: tag() };
    refused(bed.qemu.finish_act(bed.uuid, &apply).await);
    let copy = Step::CopyImage { from: a.clone(), to: bed.at("c") };
    refused(bed.qemu.act_step(bed.uuid, &copy).await);
    let snapshot = Step::SnapshotImage { image: a.clone(), tag: "t".to_owned() };
    refused(bed.qemu.act_step(bed.uuid, &snapshot).await);
    bed.stop().await;
    write(&a, 4, "0 64k");
    bed.finish(&apply).await;
    assert!(holds(&a, 0, "0 64k"));
    bed.act(&copy).await;
    bed.undo(&copy).await;
    assert_eq!(bed.names(), ["a"]);
}

// -- facts ------------------------------------------------------------------------------------------

impl Bed {
    fn subject(&self, config: Option<Element>, images: &[&PathBuf]) -> Subject {
        Subject {
            uuid: self.uuid,
            name: "t".to_owned(),
            config,
            images: images.iter().map(|path| ((*path).clone(), Format::Qcow2)).collect(),
            memory_files: Default::default(),
            owned: Default::default(),
            others: Default::default(),
        }
    }
}

#[tokio::test]
async fn facts_are_the_same_running_and_shut_off() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    bed.act(&Step::SnapshotImage { image: a.clone(), tag: "s".to_owned() }).await;
    let instance = bed.start(&[&a]).await;
    let top = bed.overlay("top").await;
    let side = bed.at("side");
    bed.act(&new_overlay("vda", &side, &a)[0]).await;
    bed.finish(&Finish::KeepImage(side.clone())).await;
    assert!(guest(&instance, 0, "write -P 1 0 64k").await);
    let live = bed.qemu.domain_facts(&bed.subject(None, &[&side])).await.unwrap();
    assert!(live.state.is_active() && live.live.is_some());
    assert_eq!(live.images[&top].backing, Some(a.clone()));
    assert!(live.images[&top].actual_size > live.images[&side].actual_size);
    assert_eq!(live.foreign_readers, Default::default());
    let alone = bed.qemu.domain_facts(&bed.subject(None, &[])).await.unwrap();
    assert_eq!(alone.foreign_readers.keys().collect::<Vec<_>>(), [&a]);

    let mut config = instance.live();
    bed.stop().await;
    virtsnap_xml::domain::set_image(&mut config, "vda", "file", top.to_str().unwrap(), "qcow2");
    let off = bed.qemu.domain_facts(&bed.subject(Some(config), &[&side])).await.unwrap();
    assert!(!off.state.is_active());
    let bare = |facts: &virtsnap_engine::facts::DomainFacts| {
        let mut images = facts.images.clone();
        images.values_mut().for_each(|image| image.actual_size = 0);
        images
    };
    assert_eq!(bare(&live), bare(&off));
    assert_eq!(off.disks[0].image(), Some(&top));
}

//! Tests of a domain's life on a real QEMU: TCG, little memory, no guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use uuid::Uuid;
use virtsnap_engine::domain::*;
use virtsnap_engine::error::Condition;
use virtsnap_engine::inspect::{Inspect, Platform};
use virtsnap_engine::ports::{EventSink, Hypervisor};
use virtsnap_xml::element::Element;

use crate::confine::Owner;
use crate::hypervisor::{Qemu, QemuConfig};
use crate::process::Process;

const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

macro_rules! skip_without_qemu {
    () => {
        if !Path::new(EMULATOR).exists() {
            assert!(std::env::var_os("CI").is_none(), "{EMULATOR} is not installed");
            eprintln!("SKIPPED: {EMULATOR} is not installed");
            return;
        }
    };
}

#[derive(Default)]
struct Told(Mutex<Vec<(i32, Event)>>);

impl EventSink for Told {
    fn emit(&self, _: Uuid, _: &str, id: i32, event: Event) {
        self.0.lock().unwrap().push((id, event));
    }
}

impl Told {
    fn take(&self) -> Vec<(i32, Event)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn events(&self) -> Vec<Event> {
        self.take().into_iter().map(|(_, event)| event).collect()
    }
}

/// A place of its own for one test, and what it starts there is killed at the end.
struct Bed {
    dir: tempfile::TempDir,
    told: Arc<Told>,
    uuid: Uuid,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, told: Arc::default(), uuid: Uuid::new_v4() }
    }

    fn config(&self) -> QemuConfig {
        let sub = |name: &str| self.dir.path().join(name);
        QemuConfig::new(sub("run"), sub("state"), sub("log"))
    }

    fn qemu(&self) -> Qemu {
        Qemu::new(self.config(), self.told.clone())
    }

    fn image(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg("16M")
            .status()
            .unwrap();
        assert!(made.success());
        path
    }

    fn domain(&self, image: &Path, more: &str) -> Element {
        let (uuid, image) = (self.uuid, image.display());
        let text = format!(
            "<domain type='qemu'><name>t</name><uuid>{uuid}</uuid>\
             <memory unit='KiB'>16384</memory><currentMemory unit='KiB'>16384</currentMemory>\
             <vcpu>1</vcpu><os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>\
             <features><acpi/></features><clock offset='utc'/>\
             <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>\
             <on_crash>destroy</on_crash><devices><emulator>{EMULATOR}</emulator>\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='{image}'/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>\
             <address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='0x0'/></disk>\
             <controller type='usb' index='0' model='none'><alias name='usb'/></controller>\
             <controller type='pci' index='0' model='pci-root'><alias name='pci.0'/></controller>\
             <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/>\
             </target><alias name='serial0'/></serial>\
             <console type='pty'><target type='serial' port='0'/><alias name='serial0'/></console>\
             {more}\
             <memballoon model='none'/></devices></domain>"
        );
        Element::parse(&text).unwrap()
    }

    fn pid(&self, qemu: &Qemu) -> i32 {
        qemu.instance(self.uuid).unwrap().process.pid()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run").join(self.uuid.to_string())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let Ok(text) = std::fs::read_to_string(self.run_dir().join("status.json")) else { return };
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        if let Some(pid) = status["process"]["pid"].as_i64() {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn boot() -> Start {
    Start { paused: false, from: StartFrom::Boot }
}

fn paused() -> Start {
    Start { paused: true, from: StartFrom::Boot }
}

#[tokio::test]
async fn a_domain_starts_pauses_resumes_and_is_destroyed() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    let active = qemu.start_domain(bed.domain(&bed.image("a"), ""), boot()).await.unwrap();
    assert_eq!(active.id, 1);
    assert_eq!(active.state, State::Running(RunningReason::Booted));
    assert_eq!(
        bed.told.take(),
        [(1, Event::Resumed(Resumed::Unpaused)), (1, Event::Started(Started::Booted))]
    );
    let console = active.live.at(&["devices", "console"]).unwrap();
    assert!(console.attr("tty").unwrap().starts_with("/dev/pts/"), "{console}");
    let disk = active.live.at(&["devices", "disk"]).unwrap();
    assert!(disk.to_string().contains("index='1'"), "{disk}");

    qemu.suspend_domain(bed.uuid).await.unwrap();
    let instance = qemu.instance(bed.uuid).unwrap();
    assert_eq!(instance.state(), State::Paused(PausedReason::User));
    qemu.resume_domain(bed.uuid).await.unwrap();
    assert_eq!(instance.state(), State::Running(RunningReason::Unpaused));
    assert_eq!(
        bed.told.events(),
        [Event::Suspended(Suspended::Paused), Event::Resumed(Resumed::Unpaused)]
    );

    let (pid, started) = (instance.process.pid(), instance.process.started());
    qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    assert_eq!(
        bed.told.take(),
        [(1, Event::Shutdown(ShutdownBy::Host)), (-1, Event::Stopped(ShutOffReason::Destroyed))]
    );
    assert!(qemu.instance(bed.uuid).is_none());
    assert!(Process::find(pid, started).is_none());
    assert!(!bed.run_dir().exists());
    let again = qemu.start_domain(bed.domain(&bed.image("b"), ""), paused()).await.unwrap();
    assert_eq!((again.id, again.state), (2, State::Paused(PausedReason::User)));
    assert_eq!(
        bed.told.events(),
        [Event::Started(Started::Booted), Event::Suspended(Suspended::Paused)]
    );
    qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
}

#[tokio::test]
async fn a_killed_qemu_is_a_crashed_domain() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    qemu.start_domain(bed.domain(&bed.image("a"), ""), boot()).await.unwrap();
    let instance = qemu.instance(bed.uuid).unwrap();
    bed.told.take();
    instance.process.signal(rustix::process::Signal::KILL);
    tokio::time::timeout(Duration::from_secs(30), instance.wait_ended()).await.unwrap();
    assert_eq!(bed.told.take(), [(-1, Event::Stopped(ShutOffReason::Crashed))]);
    assert!(!bed.run_dir().exists());
}

#[tokio::test]
async fn a_failed_start_leaves_nothing_and_says_why() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    let image = bed.image("a");
    let mut domain = bed.domain(&image, "");
    domain.set_attr("xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0");
    domain.push(
        Element::new("qemu:commandline")
            .with_child(Element::new("qemu:arg").with_attr("value", "-no-such-option")),
    );
    let err = qemu.start_domain(domain, boot()).await.unwrap_err();
    assert!(err.message.contains("no-such-option"), "{}", err.message);
    assert!(qemu.instance(bed.uuid).is_none());
    assert!(!bed.run_dir().exists());
    assert_eq!(bed.told.take(), []);
    let missing = bed.dir.path().join("missing");
    let err = qemu.start_domain(bed.domain(&missing, ""), boot()).await.unwrap_err();
    assert!(err.chain().contains("missing"), "{}", err.chain());
    assert!(!bed.run_dir().exists());
    qemu.start_domain(bed.domain(&image, ""), paused()).await.unwrap();
    let err = qemu.start_domain(bed.domain(&image, ""), boot()).await.unwrap_err();
    assert!(err.message.contains("already active"), "{}", err.message);
    qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
}

#[test]
fn a_guest_outlives_the_daemon_and_is_found_again() {
    skip_without_qemu!();
    let bed = Bed::new();
    let image = bed.image("a");
    let first = Runtime::new().unwrap();
    let pid = first.block_on(async {
        let qemu = bed.qemu();
        qemu.start_domain(bed.domain(&image, ""), boot()).await.unwrap();
        qemu.suspend_domain(bed.uuid).await.unwrap();
        bed.pid(&qemu)
    });
    first.shutdown_timeout(Duration::from_secs(10));
    bed.told.take();

    let second = Runtime::new().unwrap();
    let before = second.block_on(async {
        let qemu = bed.qemu();
        let found = qemu.reconnect_all().await.unwrap();
        let [active] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((active.id, active.name.as_str()), (1, "t"));
        assert_eq!(active.state, State::Paused(PausedReason::User));
        assert_eq!(bed.pid(&qemu), pid);
        let instance = qemu.instance(bed.uuid).unwrap();
        assert_eq!(instance.chain("vda").unwrap().layers[0].image, image);
        qemu.resume_domain(bed.uuid).await.unwrap();
        assert_eq!(bed.told.events(), [Event::Resumed(Resumed::Unpaused)]);
        active.clone()
    });
    second.shutdown_timeout(Duration::from_secs(10));

    let third = Runtime::new().unwrap();
    third.block_on(async {
        let qemu = bed.qemu();
        let found = qemu.reconnect_all().await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].live, before.live);
        qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
        assert!(!bed.run_dir().exists());
    });
}

#[test]
fn a_guest_that_ended_meanwhile_is_reported() {
    skip_without_qemu!();
    let bed = Bed::new();
    let image = bed.image("a");
    let first = Runtime::new().unwrap();
    let process = first.block_on(async {
        let qemu = bed.qemu();
        qemu.start_domain(bed.domain(&image, ""), boot()).await.unwrap();
        bed.pid(&qemu)
    });
    first.shutdown_timeout(Duration::from_secs(10));
    bed.told.take();
    let second = Runtime::new().unwrap();
    second.block_on(async {
        let process = Process::open(process).unwrap();
        process.signal(rustix::process::Signal::KILL);
        process.gone().await;
        // Not reaped: the pid is still there, and must not be taken for the guest.
        let qemu = bed.qemu();
        assert_eq!(qemu.reconnect_all().await.unwrap(), []);
        assert_eq!(bed.told.take(), [(-1, Event::Stopped(ShutOffReason::Daemon))]);
        assert!(!bed.run_dir().exists());
        process.reap();
    });
}

#[test]
fn a_start_that_was_broken_off_leaves_nothing() {
    skip_without_qemu!();
    let bed = Bed::new();
    let image = bed.image("a");
    let first = Runtime::new().unwrap();
    let (pid, started) = first.block_on(async {
        let qemu = bed.qemu();
        qemu.start_domain(bed.domain(&image, ""), paused()).await.unwrap();
        let instance = qemu.instance(bed.uuid).unwrap();
        // As the status file is from the moment QEMU is there to that when its vCPUs may run.
        instance.lock().state = State::Paused(PausedReason::StartingUp);
        instance.save().unwrap();
        (instance.process.pid(), instance.process.started())
    });
    first.shutdown_timeout(Duration::from_secs(10));
    bed.told.take();
    let second = Runtime::new().unwrap();
    second.block_on(async {
        let qemu = bed.qemu();
        assert_eq!(qemu.reconnect_all().await.unwrap(), []);
        assert_eq!(bed.told.take(), [], "nobody was told that it had started");
        assert!(Process::find(pid, started).is_none());
        assert!(!bed.run_dir().exists());
        qemu.start_domain(bed.domain(&image, ""), paused()).await.unwrap();
        qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    });
}

#[test]
fn a_guest_that_cannot_be_taken_up_is_not_started_a_second_time() {
    skip_without_qemu!();
    let bed = Bed::new();
    let image = bed.image("a");
    let first = Runtime::new().unwrap();
    first.block_on(async {
        bed.qemu().start_domain(bed.domain(&image, ""), boot()).await.unwrap();
    });
    first.shutdown_timeout(Duration::from_secs(10));
    let status = bed.run_dir().join("status.json");
    let good = std::fs::read_to_string(&status).unwrap();
    let second = Runtime::new().unwrap();
    for bad in [good.replace("\"version\":1", "\"version\":2"), good.replace("<domain", "<<")] {
        std::fs::write(&status, &bad).unwrap();
        second.block_on(async {
            let qemu = bed.qemu();
            let found = qemu.reconnect_all().await.unwrap();
            assert_eq!(found.iter().map(|one| one.state).collect::<Vec<_>>(), [State::Unknown]);
            let err = qemu.start_domain(bed.domain(&image, ""), boot()).await.unwrap_err();
            assert_eq!(err.condition, Condition::OperationInvalid, "{}", err.message);
            assert_eq!(std::fs::read_to_string(&status).unwrap(), bad);
        });
    }
    std::fs::write(&status, &good).unwrap();
    second.block_on(async {
        let qemu = bed.qemu();
        assert_eq!(qemu.reconnect_all().await.unwrap().len(), 1);
        qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    });
}

/// What a client would write, with most of what a desktop guest has. Its display is a socket:
/// tests that run at once would look for the same port.
fn desktop(bed: &Bed, image: &Path) -> Element {
    let (uuid, image) = (bed.uuid, image.display());
    let text = format!(
        "<domain type='qemu'><name>desktop</name><uuid>{uuid}</uuid><memory>65536</memory>\
         <vcpu>2</vcpu><os><type machine='q35'>hvm</type></os><features><acpi/></features>\
         <devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='{image}'/>\
         <target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>\
         <interface type='user'><model type='virtio'/></interface>\
         <serial type='pty'/><channel type='unix'>\
         <target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <graphics type='vnc'><listen type='socket'/></graphics><video><model type='vga'/></video>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
         <memballoon model='virtio'/></devices></domain>"
    );
    Element::parse(&text).unwrap()
}

#[tokio::test]
async fn a_desktop_guest_is_inspected() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    let definition = qemu.complete(desktop(&bed, &bed.image("a"))).unwrap();
    let active = qemu.start(definition, boot()).await.unwrap();
    let stats = qemu.disk_stats(bed.uuid).await.unwrap();
    assert_eq!(stats.iter().map(|s| s.target.as_str()).collect::<Vec<_>>(), ["vda", "sda"]);
    let size = qemu.image_size(&active.live, "vda").await.unwrap();
    assert_eq!(size.virtual_size, 16 << 20);
    assert_eq!(qemu.balloon(bed.uuid).await.unwrap(), Some(65536));
    qemu.set_balloon(bed.uuid, 32768).await.unwrap();
    assert_eq!(qemu.cpu_times(bed.uuid).unwrap().vcpus.len(), 2);
    assert!(qemu.resident_memory(bed.uuid).unwrap() > 0);
    qemu.send_keys(bed.uuid, &[29, 56, 111], 50).await.unwrap();
    qemu.inject_nmi(bed.uuid).await.unwrap();
    let shot = qemu.screenshot(bed.uuid, 0).await.unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(shot.image), &mut bytes).unwrap();
    assert_eq!((shot.mime, bytes.get(1..4)), ("image/png", Some(&b"PNG"[..])));
    let display = qemu.open_graphics(bed.uuid, 0).await.unwrap();
    let mut greeting = [0; 4];
    let mut display = std::os::unix::net::UnixStream::from(display);
    display.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::io::Read::read_exact(&mut display, &mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB ");
    qemu.memory_stats(bed.uuid).await.unwrap();
    qemu.resize_disk(bed.uuid, "vda", 32 << 20).await.unwrap();
    assert_eq!(qemu.image_size(&active.live, "vda").await.unwrap().virtual_size, 32 << 20);
    change_media(&bed, &qemu).await;
    let err = qemu.agent_command(bed.uuid, "{\"execute\":\"guest-ping\"}", None).await.unwrap_err();
    assert_eq!(err.condition, Condition::AgentUnresponsive);
    let answer =
        qemu.monitor_command(bed.uuid, "{\"execute\":\"query-name\"}", false).await.unwrap();
    assert_eq!(answer, "{\"return\":{\"name\":\"desktop\"}}".to_owned());
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
}

async fn change_media(bed: &Bed, qemu: &Qemu) {
    let instance = qemu.instance(bed.uuid).unwrap();
    let drive = |source: &str| {
        let text = format!(
            "<disk type='file' device='cdrom'><driver name='qemu' type='qcow2'/>{source}\
             <target dev='sda' bus='sata'/><readonly/></disk>"
        );
        Element::parse(&text).unwrap()
    };
    for name in ["cd1", "cd2"] {
        let image = bed.image(name);
        let source = format!("<source file='{}'/>", image.display());
        qemu.change_medium(bed.uuid, &drive(&source), false).await.unwrap();
        assert_eq!(instance.chain("sda").unwrap().layers[0].image, image);
        assert!(instance.live().to_string().contains(&format!("{}' index=", image.display())));
    }
    let missing = drive("<source file='/nowhere/at/all'/>");
    qemu.change_medium(bed.uuid, &missing, false).await.unwrap_err();
    assert!(instance.chain("sda").is_some());
    qemu.change_medium(bed.uuid, &drive(""), false).await.unwrap();
    assert!(instance.chain("sda").is_none());
    let nodes = instance.qmp.execute("query-named-block-nodes", serde_json::json!({"flat": true}));
    let nodes = nodes.await.unwrap().to_string();
    assert!(!nodes.contains("cd1") && !nodes.contains("cd2"), "{nodes}");
}

#[tokio::test]
async fn memory_comes_back_from_a_snapshot_in_a_new_process() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    let definition = bed.domain(&bed.image("a"), "");
    qemu.start(definition.clone(), boot()).await.unwrap();
    let disks = vec!["vda".to_owned()];
    let save = virtsnap_engine::plan::Pivot::SaveVmState {
        tag: "s".to_owned(),
        vmstate: VmStateIn::Disk("vda".to_owned()),
        disks: disks.clone(),
    };
    qemu.pivot(bed.uuid, &save).await.unwrap();
    qemu.destroy(bed.uuid, ShutOffReason::FromSnapshot).await.unwrap();
    bed.told.take();
    let from = |tag: &str| StartFrom::VmState {
        tag: tag.to_owned(),
        vmstate: VmStateIn::Disk("vda".to_owned()),
        disks: disks.clone(),
    };
    let start = Start { paused: false, from: from("s") };
    let active = qemu.start(definition.clone(), start).await.unwrap();
    assert_eq!(active.state, State::Running(RunningReason::FromSnapshot));
    assert_eq!(
        bed.told.events(),
        [Event::Started(Started::FromSnapshot), Event::Resumed(Resumed::FromSnapshot)]
    );
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    bed.told.take();
    let start = Start { paused: true, from: from("s") };
    let active = qemu.start(definition.clone(), start).await.unwrap();
    assert_eq!(active.state, State::Paused(PausedReason::FromSnapshot));
    assert_eq!(
        bed.told.events(),
        [Event::Started(Started::FromSnapshot), Event::Suspended(Suspended::FromSnapshot)]
    );
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    bed.told.take();
    let start = Start { paused: false, from: from("absent") };
    let err = qemu.start(definition, start).await.unwrap_err();
    assert!(err.message.contains("absent"), "{}", err.message);
    assert_eq!(bed.told.take(), []);
    assert!(!bed.run_dir().exists());
}

#[tokio::test]
async fn an_image_is_lent_to_qemus_user_and_handed_back() {
    skip_without_qemu!();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start QEMU as somebody else");
        return;
    }
    let bed = Bed::new();
    // QEMU's user has to reach the image and its run directory.
    for dir in [bed.dir.path().to_owned(), bed.dir.path().join("run")] {
        std::fs::create_dir_all(&dir).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir, mode).unwrap();
    }
    let nobody = Owner { uid: 65534, gid: 65534 };
    let config = QemuConfig { user: Some(nobody), ..bed.config() };
    let qemu = Qemu::new(config, bed.told.clone());
    let image = bed.image("a");
    let before = Owner::of(&image).unwrap();
    qemu.start(bed.domain(&image, ""), boot()).await.unwrap();
    assert_eq!(Owner::of(&image).unwrap(), nobody);
    let pid = bed.pid(&qemu);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    assert_eq!(Owner::of(&image).unwrap(), before);
}

/// All that a modern guest has, with a base image that is root's and that others may not write.
#[tokio::test]
async fn an_ordinary_user_of_qemus_gets_all_that_a_guest_needs() {
    skip_without_qemu!();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start QEMU as somebody else");
        return;
    }
    for program in ["/usr/bin/swtpm", "/usr/share/OVMF/OVMF_CODE_4M.fd"] {
        if !Path::new(program).exists() {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            eprintln!("SKIPPED: {program} is not installed");
            return;
        }
    }
    let bed = Bed::new();
    for name in ["", "run", "state"] {
        let dir = bed.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir, mode).unwrap();
    }
    let user = Owner { uid: 64_991, gid: 64_991 };
    let config = QemuConfig { user: Some(user), ..bed.config() };
    let qemu = Qemu::new(config, bed.told.clone());
    let (secret, base, top) = (bed.image("secret"), bed.image("base"), bed.dir.path().join("top"));
    for (image, mode) in [(&secret, 0o400), (&base, 0o444)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(image, mode).unwrap();
    }
    for (image, below) in [(&base, &secret), (&top, &base)] {
        let mut tool = Command::new("qemu-img");
        match image.exists() {
            true => tool.args(["rebase", "-u", "-F", "qcow2", "-b"]).arg(below).arg(image),
            false => tool
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
                .arg(below)
                .arg(image),
        };
        assert!(tool.status().unwrap().success());
    }
    let ours = Owner::of(&top).unwrap();
    let mut domain = desktop(&bed, &top);
    domain.child_mut("os").unwrap().set_attr("firmware", "efi");
    domain.child_mut("devices").unwrap().push(
        Element::parse("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")
            .unwrap(),
    );
    let definition = qemu.complete(domain).unwrap();
    for _ in 0..2 {
        qemu.start(definition.clone(), boot()).await.unwrap();
        assert_eq!(Owner::of(&top).unwrap(), user);
        assert_eq!(Owner::of(&base).unwrap(), ours, "it can read this one as it is");
        assert_eq!(Owner::of(&secret).unwrap(), user);
        let instance = qemu.instance(bed.uuid).unwrap();
        let tpm = instance.helpers[0].pid();
        for pid in [bed.pid(&qemu), tpm] {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains("Uid:\t64991\t64991\t64991\t64991"), "{status}");
            assert!(status.contains("Groups:\t64991 \n"), "{status}");
        }
        qemu.screenshot(bed.uuid, 0).await.unwrap();
        qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
        for image in [&top, &base, &secret] {
            assert_eq!(Owner::of(image).unwrap(), ours);
        }
    }
}

/// The one that ended does not take the base from the one that runs.
#[test]
fn a_base_stays_lent_to_the_guest_that_is_found_again() {
    skip_without_qemu!();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start QEMU as somebody else");
        return;
    }
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    let mut bed = Bed::new();
    for name in ["", "run"] {
        let dir = bed.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(dir, mode(0o711)).unwrap();
    }
    let user = Owner { uid: 64_991, gid: 64_991 };
    let config = QemuConfig { user: Some(user), ..bed.config() };
    let base = bed.image("base");
    std::fs::set_permissions(&base, mode(0o400)).unwrap();
    let ours = Owner::of(&base).unwrap();
    let overlay = |name: &str| {
        let path = bed.dir.path().join(name);
        let mut tool = Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&base).arg(&path);
        assert!(tool.status().unwrap().success());
        path
    };
    let images = [overlay("a"), overlay("b")];
    let first = Runtime::new().unwrap();
    first.block_on(async {
        let qemu = Qemu::new(config.clone(), bed.told.clone());
        for (nth, image) in (1..).zip(&images) {
            bed.uuid = Uuid::from_u128(nth);
            qemu.start_domain(bed.domain(image, ""), paused()).await.unwrap();
        }
    });
    first.shutdown_timeout(Duration::from_secs(10));
    let second = Runtime::new().unwrap();
    second.block_on(async {
        let ended = bed.dir.path().join("run").join(Uuid::from_u128(1).to_string());
        let status = crate::status::Status::read(&ended).unwrap().unwrap();
        let process = status.process.unwrap().find().unwrap();
        process.signal(rustix::process::Signal::KILL);
        process.gone().await;
        let qemu = Qemu::new(config.clone(), bed.told.clone());
        assert_eq!(qemu.reconnect_all().await.unwrap().len(), 1);
        assert_eq!(Owner::of(&images[0]).unwrap(), ours);
        assert_eq!(Owner::of(&base).unwrap(), user, "the other guest reads it");
        qemu.destroy_domain(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
        assert_eq!(Owner::of(&base).unwrap(), ours);
        process.reap();
    });
}

/// What a QEMU that has been taken over puts in its directory is not read for it.
#[tokio::test]
async fn a_screenshot_is_no_way_to_other_files() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    let definition = qemu.complete(desktop(&bed, &bed.image("a"))).unwrap();
    qemu.start(definition, paused()).await.unwrap();
    let instance = qemu.instance(bed.uuid).unwrap();
    let (secret, link) = (bed.dir.path().join("secret"), instance.qemu_dir().join("screenshot"));
    std::fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    assert!(crate::inspect::take(&link).is_err());
    assert!(!link.exists() && secret.exists());
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
}

/// A disk that turns the machine off as soon as the firmware boots it: `out 0x604, 0x2000` is
/// ACPI's S5 on an i440fx.
fn image_that_shuts_down(bed: &Bed) -> PathBuf {
    let mut sector = vec![0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let (raw, image) = (bed.dir.path().join("raw"), bed.dir.path().join("off"));
    std::fs::write(&raw, sector).unwrap();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&image);
    assert!(convert.status().unwrap().success());
    image
}

#[tokio::test]
async fn a_guest_that_turns_itself_off_is_shut_off() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    qemu.start(bed.domain(&image_that_shuts_down(&bed), ""), paused()).await.unwrap();
    let instance = qemu.instance(bed.uuid).unwrap();
    bed.told.take();
    qemu.resume(bed.uuid).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), instance.wait_ended()).await.unwrap();
    assert_eq!(
        bed.told.take(),
        [
            (1, Event::Resumed(Resumed::Unpaused)),
            (1, Event::Shutdown(ShutdownBy::Guest)),
            (-1, Event::Stopped(ShutOffReason::Shutdown)),
        ]
    );
}

#[tokio::test]
async fn a_reboot_is_a_shutdown_that_starts_again() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    qemu.start(bed.domain(&image_that_shuts_down(&bed), ""), paused()).await.unwrap();
    let instance = qemu.instance(bed.uuid).unwrap();
    bed.told.take();
    // No guest listens to the power button here: this one turns itself off anyway.
    instance.lock().rebooting = true;
    instance.qmp.execute("cont", serde_json::Value::Null).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), instance.wait_ended()).await.unwrap();
    let mut told = bed.told.events();
    // The firmware itself resets once more when it finds that it ran before.
    told.dedup();
    assert_eq!(
        told,
        [
            Event::Resumed(Resumed::Unpaused),
            Event::Reboot,
            Event::Shutdown(ShutdownBy::Guest),
            Event::Stopped(ShutOffReason::Shutdown),
        ]
    );
}

#[tokio::test]
async fn capabilities_name_what_clients_look_for() {
    skip_without_qemu!();
    let bed = Bed::new();
    let qemu = bed.qemu();
    let host = qemu.capabilities().await.unwrap();
    let arch = host.at(&["guest", "arch"]).unwrap();
    assert_eq!(arch.child_text("emulator").as_deref(), Some(EMULATOR));
    assert!(arch.children("machine").any(|machine| machine.text() == "q35"));
    assert!(host.at(&["guest", "features", "externalSnapshot"]).is_some());
    let platform = Platform {
        machine: Some("q35".to_owned()),
        virt_type: Some("qemu".to_owned()),
        ..Platform::default()
    };
    let domain = qemu.domain_capabilities(&platform).await.unwrap();
    assert!(domain.child_text("machine").unwrap().starts_with("pc-q35-"));
    assert!(domain.to_string().contains("<value>virtio</value>"));
    let platform = Platform { virt_type: Some("xen".to_owned()), ..Platform::default() };
    assert!(qemu.domain_capabilities(&platform).await.is_err());
}

#[tokio::test]
async fn a_guest_with_uefi_and_a_tpm_starts_and_leaves_only_its_state() {
    skip_without_qemu!();
    for program in ["/usr/bin/swtpm", "/usr/share/OVMF/OVMF_CODE_4M.fd"] {
        if !Path::new(program).exists() {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            eprintln!("SKIPPED: {program} is not installed");
            return;
        }
    }
    let bed = Bed::new();
    let qemu = bed.qemu();
    let mut domain = desktop(&bed, &bed.image("a"));
    domain.child_mut("os").unwrap().set_attr("firmware", "efi");
    domain.child_mut("devices").unwrap().push(
        Element::parse("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")
            .unwrap(),
    );
    let definition = qemu.complete(domain).unwrap();
    let nvram = PathBuf::from(definition.at(&["os", "nvram"]).unwrap().text());
    let active = qemu.start(definition.clone(), paused()).await.unwrap();
    assert!(nvram.exists(), "{}", active.live);
    let instance = qemu.instance(bed.uuid).unwrap();
    let tpm = Process::find(instance.helpers[0].pid(), instance.helpers[0].started()).unwrap();
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    assert!(tpm.is_gone());
    assert!(nvram.exists());
    assert!(bed.dir.path().join("state/tpm").join(bed.uuid.to_string()).exists());
    // The second start finds both again.
    qemu.start(definition, paused()).await.unwrap();
    qemu.destroy(bed.uuid, ShutOffReason::Destroyed).await.unwrap();
    assert!(!bed.run_dir().exists());
}

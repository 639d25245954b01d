//! Tests of a domain's life on a real QEMU: TCG, little memory, no guest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use uuid::Uuid;
use virtsnap_engine::domain::*;
use virtsnap_engine::ports::EventSink;
use virtsnap_xml::element::Element;

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

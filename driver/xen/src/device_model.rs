//! The program that libxl starts as a guest's device model: what it can, and its end.
//!
//! libxl has its path compiled in and tells nobody. So it is looked for where distributions have it;
//! where there are two, it is not known which one is meant. What it can is what its `-help` lists.
//!
//! libxl tells it to end (SIGHUP) and takes the domain away without waiting for it. It may have much to
//! write into its images then, and has no lock on those of a guest's Xen disks (`locking` is off in
//! QEMU's `xen-block`): whoever took the domain's end for its own would write into them at the same time.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;
use virtsnap_block::child::confine_tool;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::guest::Guest;

/// Debian's, and that of a Xen which brings its own.
const PLACES: [&str; 6] = [
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/lib/xen-4.17/bin/qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
    "/usr/libexec/xen/bin/qemu-system-i386",
    "/usr/local/lib/xen/bin/qemu-system-i386",
    "/usr/local/libexec/xen/bin/qemu-system-i386",
];

/// What it takes to say what it can.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceModel {
    pub(crate) path: PathBuf,
    help: String,
}

/// That of this host, asked once for as long as it is the same file.
#[derive(Debug, Default)]
pub(crate) struct OfHost(Mutex<Option<(SystemTime, DeviceModel)>>);

impl OfHost {
    /// None: nobody knows which it is, or it does not tell.
    pub(crate) async fn get(&self) -> Option<DeviceModel> {
        let mut found = PLACES.map(PathBuf::from).into_iter().filter(|path| path.is_file());
        let (Some(path), None) = (found.next(), found.next()) else { return None };
        let made = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
        let mut known = self.0.lock().await;
        match known.as_ref() {
            Some((then, model)) if *then == made && model.path == path => {}
            _ => *known = Some((made, DeviceModel::ask(path).await?)),
        }
        known.as_ref().map(|(_, model)| model.clone())
    }
}

impl DeviceModel {
    async fn ask(path: PathBuf) -> Option<Self> {
        let mut run = Command::new(&path);
        run.arg("-help").env("LC_ALL", "C").current_dir("/");
        run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        confine_tool(run.as_std_mut());
        let told = timeout(PATIENCE, run.output()).await.ok()?.ok()?;
        let help = String::from_utf8_lossy(&told.stdout).into_owned();
        let model = Self { path, help };
        // Something else, or a form that we do not know.
        model.has("name").then_some(model)
    }

    #[cfg(test)]
    pub(crate) fn told(path: PathBuf, help: &str) -> Self {
        Self { path, help: help.to_owned() }
    }

    /// It has an option of that name.
    pub(crate) fn has(&self, option: &str) -> bool {
        let mut options = self.help.lines().filter_map(|line| line.strip_prefix('-'));
        options.any(|line| line.split([' ', '[', '=']).next() == Some(option))
    }

    /// libxl starts that of a guest without ACPI with an option that QEMU 9 has no more.
    pub(crate) fn can_do_without_acpi(&self) -> bool {
        self.has("no-acpi")
    }
}

/// Refuses a guest whose device model would end before it begins.
pub(crate) async fn check(live: &Element, name: &str, of_host: &OfHost) -> Result<()> {
    let has_acpi = live.at(&["features", "acpi"]).is_some();
    if has_acpi || Guest::of(live) != Some(Guest::Hvm) {
        return Ok(());
    }
    let model = match domain::emulator(live) {
        Some(path) => DeviceModel::ask(path.into()).await,
        None => of_host.get().await,
    };
    match model {
        Some(model) if !model.can_do_without_acpi() => Err(without_acpi(&model.path, name)),
        _ => Ok(()),
    }
}

fn without_acpi(model: &Path, name: &str) -> Error {
    let model = model.display();
    Error::new(
        Condition::ConfigUnsupported,
        format!(
            "domain '{name}' has no ACPI, and the device model '{model}' cannot do without: it knows \
             no -no-acpi, which libxl gives it then; add <acpi/> to the domain's <features>"
        ),
    )
}

/// How long one may write to its images when it was told to end; and what it takes to be killed.
const ENDING: Duration = Duration::from_secs(60);
const DYING: Duration = Duration::from_secs(30);

/// Blocks until nobody serves the disks of the domain of that number, which has ended.
pub(crate) fn wait_for_end(id: u32) -> Result<()> {
    for (pid, process) in of_domain(id) {
        if has_ended(&process, ENDING) {
            continue;
        }
        tracing::warn!(id, pid, "the device model does not end, and is killed");
        let _ = pidfd_send_signal(&process, Signal::KILL);
        if !has_ended(&process, DYING) {
            let what = format!(
                "the device model of domain {id} (process {pid}) cannot be killed: its images must \
                 not be touched before it is gone; try again then"
            );
            return Err(Error::new(Condition::OperationFailed, what));
        }
    }
    Ok(())
}

/// By what libxl starts them with.
fn of_domain(id: u32) -> Vec<(i32, OwnedFd)> {
    let serves = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        arguments.windows(2).any(|pair| *pair == [b"-xen-domid", id.to_string().as_bytes()])
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.filter(|pid| serves(*pid)).filter_map(|pid| {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // It may have been another's by then.
        serves(pid).then_some((pid, process))
    });
    found.collect()
}

fn has_ended(process: &OwnedFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let patience = Timespec::try_from(patience).ok();
    matches!(retry_on_intr(|| poll(&mut fds, patience.as_ref())), Ok(n) if n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "-name string1[,process=string2]\n                set it\n\
                       -no-acpi        disable ACPI\n-spice [port=port]\n-vnc <display> use it\n";

    fn program(directory: &Path, help: &str) -> PathBuf {
        let path = directory.join("model");
        // Written by another process: what one of ours has open for writing while another thread
        // starts a program cannot be run ("Text file busy").
        let script = format!("#!/bin/sh\ncat <<'END'\n{help}END\n");
        let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let mut shell = std::process::Command::new("/bin/sh");
        let written = shell.arg("-c").arg(write).arg(&path).arg(script).status().unwrap();
        assert!(written.success());
        path
    }

    fn hvm(features: &str, emulator: &Path) -> Element {
        let emulator = emulator.display();
        let text = format!(
            "<domain><os><type>hvm</type></os><features>{features}</features>\
             <devices><emulator>{emulator}</emulator></devices></domain>"
        );
        Element::parse(&text).unwrap()
    }

    #[test]
    fn the_end_of_a_device_model_is_waited_for() {
        let id = 1_000_000 + std::process::id();
        wait_for_end(id).unwrap();
        let mut model = std::process::Command::new("/bin/sh")
            .args(["-c", "read line; exit", "-xen-domid", &id.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // Its arguments are there a moment after it is.
        let (pid, process) =
            std::iter::repeat_with(|| of_domain(id).pop()).flatten().next().unwrap();
        assert_eq!(pid.cast_unsigned(), model.id());
        assert!(of_domain(id + 1).is_empty());
        assert!(!has_ended(&process, Duration::ZERO));
        let waiting = std::thread::spawn(move || wait_for_end(id));
        drop(model.stdin.take());
        waiting.join().unwrap().unwrap();
        // Dead, and not reaped.
        assert!(has_ended(&process, Duration::ZERO));
        model.wait().unwrap();
    }

    #[tokio::test]
    async fn a_guest_without_acpi_needs_a_device_model_that_can() {
        let home = tempfile::tempdir().unwrap();
        let model = program(home.path(), OLD);
        check(&hvm("", &model), "vm", &OfHost::default()).await.unwrap();
        let told = DeviceModel::ask(model).await.unwrap();
        assert!(told.has("spice") && told.has("vnc") && !told.has("sdl"));
        let model = program(home.path(), &OLD.replace("-no-acpi  ", "-no-hpet  "));
        check(&hvm("<acpi/>", &model), "vm", &OfHost::default()).await.unwrap();
        let refused = check(&hvm("<pae/>", &model), "vm", &OfHost::default()).await.unwrap_err();
        assert!(refused.message.contains("<acpi/>"), "{}", refused.message);
        // What does not tell is not judged.
        for what in [program(home.path(), "usage: model\n"), home.path().join("none")] {
            check(&hvm("", &what), "vm", &OfHost::default()).await.unwrap();
        }
    }
}

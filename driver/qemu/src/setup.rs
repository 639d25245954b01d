//! What stands around QEMU's command line: the files it needs beforehand, and what is said through
//! the monitor before the vCPUs run.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use virtsnap_engine::domain::{State, VmStateIn};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_xml::domain;
use virtsnap_xml::element::{Element, Node};

use crate::argv::{CommandLine, Password};
use crate::blocks::job;
use crate::confine::{Use, failed};
use crate::events::alias_of;
use crate::hypervisor::Qemu;
use crate::image::QemuImg;
use crate::instance::{Inner, Instance};
use crate::steps::{attach_vm_state_image, detach_vm_state};

const LOAD: &str = "virtsnap-load";

/// Classes of devices with a character device behind them.
const CHARACTER: &[&str] =
    &["serial", "parallel", "console", "channel", "smartcard", "redirdev", "rng", "tpm"];

/// Before the vCPUs run: what the command line cannot say, and what only QEMU knows.
pub(crate) async fn through_monitor(instance: &Instance, command: &CommandLine) -> Result<()> {
    set_actions(instance).await?;
    for password in &command.passwords {
        set_password(instance, password).await?;
    }
    balloon(instance).await?;
    set_links(instance).await?;
    learn_vcpus(instance).await?;
    let chardevs = instance.qmp.execute("query-chardev", Value::Null).await?;
    instance.update(|live, _| write_terminals(live, &chardevs))
}

/// A panic stops the guest, and so does a reboot where the definition makes it an end: what
/// follows is decided when the event comes.
async fn set_actions(instance: &Instance) -> Result<()> {
    let live = instance.live();
    let mut actions = json!({ "panic": "pause" });
    if live.child_text("on_reboot").as_deref() == Some("destroy") {
        actions["reboot"] = json!("shutdown");
    }
    instance.qmp.execute("set-action", actions).await?;
    Ok(())
}

async fn set_password(instance: &Instance, password: &Password) -> Result<()> {
    let mut arguments = json!({ "protocol": password.protocol, "password": password.secret });
    if let Some(connected) = &password.connected {
        arguments["connected"] = json!(connected);
    }
    instance.qmp.execute("set_password", arguments).await?;
    let time = match &password.valid_to {
        None => return Ok(()),
        Some(text) => chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S")
            .map_err(|err| {
                let message = format!("passwdValidTo '{text}' is no time");
                Error::new(Condition::XmlError, message).caused_by(err)
            })?
            .and_utc()
            .timestamp(),
    };
    let arguments = json!({ "protocol": password.protocol, "time": time.to_string() });
    instance.qmp.execute("expire_password", arguments).await?;
    Ok(())
}

/// The guest may have less memory than it can have; the statistics' period is QOM's to know.
async fn balloon(instance: &Instance) -> Result<()> {
    let live = instance.live();
    let Some(device) = live.at(&["devices", "memballoon"]) else { return Ok(()) };
    if device.attr("model") == Some("none") {
        return Ok(());
    }
    if let (Some(whole), Some(current)) =
        (domain::memory_kib(&live), domain::current_memory_kib(&live))
        && current < whole
    {
        let value = current.saturating_mul(1024);
        instance.qmp.execute("balloon", json!({ "value": value })).await?;
    }
    let period = device.child("stats").and_then(|stats| stats.attr("period")?.parse::<u64>().ok());
    if let (Some(period), Some(alias)) = (period, alias_of(device)) {
        let arguments = json!({
            "path": format!("/machine/peripheral/{alias}"),
            "property": "guest-stats-polling-interval",
            "value": period,
        });
        instance.qmp.execute("qom-set", arguments).await?;
    }
    Ok(())
}

/// `[{"cpu-index": 0, "thread-id": 4711, …}, …]`
pub(crate) async fn learn_vcpus(instance: &Instance) -> Result<()> {
    let answer = instance.qmp.execute("query-cpus-fast", Value::Null).await?;
    let number = |cpu: &Value, key: &str| cpu.get(key).and_then(Value::as_i64);
    let vcpus = answer.as_array().into_iter().flatten().filter_map(|cpu| {
        let index = u32::try_from(number(cpu, "cpu-index")?).ok()?;
        Some((index, i32::try_from(number(cpu, "thread-id")?).ok()?))
    });
    instance.lock().vcpus = vcpus.collect();
    Ok(())
}

async fn set_links(instance: &Instance) -> Result<()> {
    let live = instance.live();
    for interface in devices(&live, "interface") {
        let is_down = interface.child("link").and_then(|link| link.attr("state")) == Some("down");
        if let (true, Some(alias)) = (is_down, alias_of(interface)) {
            instance.qmp.execute("set_link", json!({ "name": alias, "up": false })).await?;
        }
    }
    Ok(())
}

/// The terminals that QEMU opened: `{"label": "charserial0", "filename": "pty:/dev/pts/3"}`.
fn write_terminals(live: &mut Element, chardevs: &Value) {
    let paths: BTreeMap<&str, &str> = chardevs
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|chardev| {
            let label = chardev.get("label")?.as_str()?.strip_prefix("char")?;
            Some((label, chardev.get("filename")?.as_str()?.strip_prefix("pty:")?))
        })
        .collect();
    let Some(devices) = live.child_mut("devices") else { return };
    for device in devices.elements_mut() {
        if !CHARACTER.contains(&device.name()) || device.attr("type") != Some("pty") {
            continue;
        }
        let Some(path) = alias_of(device).and_then(|alias| paths.get(alias)) else { continue };
        if device.name() == "console" {
            device.set_attr("tty", *path);
        }
        match device.child_mut("source") {
            Some(source) => source.set_attr("path", *path),
            None => {
                let source = Element::new("source").with_attr("path", *path);
                device.nodes_mut().insert(0, Node::Element(source));
            }
        }
    }
    mirror_console(devices);
}

/// The first console is often the first serial port under another name.
fn mirror_console(devices: &mut Element) {
    let Some((alias, path)) = devices.child("serial").and_then(|serial| {
        let path = serial.child("source")?.attr("path")?;
        (serial.attr("type") == Some("pty")).then_some(())?;
        Some((alias_of(serial)?.to_owned(), path.to_owned()))
    }) else {
        return;
    };
    let is_mirror = |console: &Element| {
        console.attr("type") == Some("pty")
            && console.child("target").and_then(|target| target.attr("type")) == Some("serial")
    };
    if let Some(console) = devices.children_mut("console").find(|console| is_mirror(console)) {
        console.set_attr("tty", path.clone());
        console.child_or_insert("source").set_attr("path", path);
        console.child_or_insert("alias").set_attr("name", alias);
    }
}

/// A definition's clock counts from here; QEMU tells the distance.
pub(crate) fn clock_base(live: &Element) -> i64 {
    let clock = live.child("clock").filter(|clock| clock.attr("offset") == Some("variable"));
    clock.and_then(|clock| clock.attr("adjustment")?.parse().ok()).unwrap_or(0)
}

/// Target, image and format of a disk that has an image on this host.
pub(crate) fn disk_image(disk: &Element) -> Option<(Target, PathBuf, String)> {
    let view = domain::DiskView { element: disk };
    let target = disk.child("target")?.attr("dev")?;
    let path = view.image().filter(|_| view.source_type() != "dir")?;
    let format = disk.child("driver").and_then(|driver| driver.attr("type")).unwrap_or("raw");
    Some((target.to_owned(), PathBuf::from(path), format.to_owned()))
}

/// All that QEMU opens: layers of disks, variable stores, kernels and firmware.
pub(crate) fn images_in_use(inner: &Inner, files: &[PathBuf]) -> Vec<(PathBuf, Use)> {
    let mut found = Vec::new();
    for disk in devices(&inner.live, "disk") {
        let Some((target, _, _)) = disk_image(disk) else { continue };
        let Some(chain) = inner.chains.get(&target) else { continue };
        let is_shared = disk.child("readonly").is_some() || disk.child("shareable").is_some();
        for (depth, layer) in chain.layers.iter().enumerate() {
            let how = if depth == 0 && !is_shared { Use::Own } else { Use::Share };
            if !crate::image::is_network(&layer.image) {
                found.push((layer.image.clone(), how));
            }
        }
    }
    let nvram = nvram_path(&inner.live);
    for file in files {
        let how = if Some(file) == nvram.as_ref() { Use::Own } else { Use::Share };
        if file.exists() {
            found.push((file.clone(), how));
        }
    }
    if let Some(nvram) = nvram.filter(|nvram| nvram.exists() && !files.contains(nvram)) {
        found.push((nvram, Use::Own));
    }
    found
}

/// The file of the variable store.
pub(crate) fn nvram_path(definition: &Element) -> Option<PathBuf> {
    domain::nvram(definition).map(|(path, _)| PathBuf::from(path))
}

/// A variable store that is not there yet is made from its template, whatever the format of either.
pub(crate) async fn make_nvram(live: &Element, tool: &QemuImg) -> Result<()> {
    let Some((path, format)) = domain::nvram(live) else { return Ok(()) };
    let path = PathBuf::from(path);
    if path.exists() {
        return Ok(());
    }
    let nvram = live.at(&["os", "nvram"]);
    let Some(template) = nvram.and_then(|nvram| nvram.attr("template")).map(PathBuf::from) else {
        let message = format!("'{}' does not exist and has no template", path.display());
        return Err(Error::new(Condition::OperationFailed, message));
    };
    let template_format = nvram.and_then(|nvram| nvram.attr("templateFormat")).unwrap_or(format);
    let cannot = |err| failed("make the variable store", &path, err);
    let aside = path.with_extension("new");
    let begin = || -> io::Result<fs::File> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(&aside)
    };
    let mut file = begin().map_err(cannot)?;
    if template_format == format {
        let mut copy = || -> io::Result<()> {
            io::copy(&mut fs::File::open(&template)?, &mut file)?;
            file.sync_all()
        };
        copy().map_err(cannot)?;
    } else {
        let from = (template.as_path(), &Format::from(template_format));
        tool.convert(from, (&aside, &Format::from(format))).await?;
    }
    fs::rename(&aside, &path).map_err(cannot)
}

/// Where swtpm will listen, by the TPM's alias.
pub(crate) fn tpm_sockets(live: &Element, dir: &Path) -> BTreeMap<String, PathBuf> {
    let mut sockets = BTreeMap::new();
    for tpm in devices(live, "tpm") {
        let kind = tpm.child("backend").and_then(|backend| backend.attr("type"));
        if let (Some("emulator"), Some(alias)) = (kind, alias_of(tpm)) {
            let socket = dir.join("qemu").join(format!("{alias}-swtpm.sock"));
            sockets.insert(alias.to_owned(), socket);
        }
    }
    sockets
}

/// Mounts of hugetlbfs with their page sizes in KiB, the default size first.
pub(crate) fn hugepages() -> Vec<(u64, PathBuf)> {
    let default = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut found: Vec<(u64, PathBuf)> = mounts
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, path, "hugetlbfs", options, ..] = fields.as_slice() else { return None };
            let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
            let size = match size {
                Some(size) => page_size(size)?,
                None => default?,
            };
            Some((size, PathBuf::from(path)))
        })
        .collect();
    found.sort_by_key(|(size, _)| (Some(*size) != default, *size));
    found
}

fn page_size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let scale = match unit {
        "K" => 1,
        "M" => 1 << 10,
        "G" => 1 << 20,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// The tap's name on the host, in the live definition.
pub(crate) fn name_interface(live: &mut Element, alias: &str, name: &str) {
    let Some(devices) = live.child_mut("devices") else { return };
    let mut interfaces = devices.children_mut("interface");
    let Some(interface) = interfaces.find(|interface| alias_of(interface) == Some(alias)) else {
        return;
    };
    if let Some(target) = interface.child_mut("target") {
        return target.set_attr("dev", name);
    }
    // Where libvirt prints it: after the source.
    let is_source = |node: &Node| matches!(node, Node::Element(child) if child.name() == "source");
    let at = interface.nodes().iter().position(is_source).map_or(0, |at| at + 1);
    let target = Element::new("target").with_attr("dev", name);
    interface.nodes_mut().insert(at, Node::Element(target));
}

pub(crate) fn devices<'a>(
    live: &'a Element,
    class: &'a str,
) -> impl Iterator<Item = &'a Element> + 'a {
    live.child("devices").into_iter().flat_map(move |devices| devices.children(class))
}

/// Memory and devices' state from internal snapshots, into a QEMU that has not run yet.
pub(crate) async fn load_vm_state(
    qemu: &Qemu,
    instance: &Arc<Instance>,
    tag: &str,
    vmstate: &VmStateIn,
    disks: &[Target],
) -> Result<()> {
    let node = |target: &str| {
        instance
            .chain(target)
            .and_then(|chain| Some(chain.layers.first()?.format_node()))
            .ok_or_else(|| {
                let message = format!("disk '{target}' has no image to load the snapshot from");
                Error::new(Condition::OperationFailed, message)
            })
    };
    let mut nodes = disks.iter().map(|disk| node(disk)).collect::<Result<Vec<_>>>()?;
    let memory = match vmstate {
        VmStateIn::Disk(target) => node(target)?,
        VmStateIn::Image(image) => {
            qemu.lend(instance, image, Use::Own)?;
            attach_vm_state_image(instance, image).await?.format_node()
        }
    };
    if !nodes.contains(&memory) {
        nodes.push(memory.clone());
    }
    let arguments = json!({ "job-id": LOAD, "tag": tag, "vmstate": memory, "devices": nodes });
    let qmp = &instance.qmp;
    qmp.execute("snapshot-load", arguments).await?;
    let Some(done) = job::wait(qmp, LOAD, job::Job::is_concluded).await? else {
        return Err(Error::new(Condition::Internal, "QEMU forgot that it loads a snapshot"));
    };
    job::dismiss(qmp, LOAD).await?;
    job::outcome(&done, &format!("loading the memory of snapshot '{tag}'"))?;
    detach_vm_state(instance, vmstate).await
}

/// The state of a QEMU that was left alone, by `query-status`.
pub(crate) fn is_running(status: &Value) -> bool {
    status.get("running").and_then(Value::as_bool) == Some(true)
}

/// What the status file said, corrected by what QEMU says now.
pub(crate) fn reconcile(recorded: State, status: &Value) -> State {
    use virtsnap_engine::domain::{PausedReason, RunningReason};
    let word = status.get("status").and_then(Value::as_str).unwrap_or_default();
    match (is_running(status), word, recorded) {
        (true, _, State::Running(reason)) => State::Running(reason),
        (true, _, _) => State::Running(RunningReason::Unknown),
        (false, "shutdown", _) => State::Shutdown,
        (false, "guest-panicked", _) => State::Crashed,
        (false, "suspended", _) => State::PmSuspended,
        (false, _, State::Paused(reason)) => State::Paused(reason),
        (false, "io-error", _) => State::Paused(PausedReason::IoError),
        (false, "watchdog", _) => State::Paused(PausedReason::Watchdog),
        (false, _, _) => State::Paused(PausedReason::Unknown),
    }
}

/// Whether the guest has the agent's port open: `frontend-open` of its chardev.
pub(crate) fn agent_is_open(live: &mut Element, chardevs: &Value) -> bool {
    let is_open = |alias: &str| {
        chardevs.as_array().into_iter().flatten().any(|chardev| {
            chardev
                .get("label")
                .and_then(Value::as_str)
                .and_then(|label| label.strip_prefix("char"))
                == Some(alias)
                && chardev.get("frontend-open").and_then(Value::as_bool) == Some(true)
        })
    };
    let Some(devices) = live.child_mut("devices") else { return false };
    let mut agent = false;
    for channel in devices.children_mut("channel") {
        let Some(open) = alias_of(channel).map(is_open) else { continue };
        let Some(target) = channel.child_mut("target") else { continue };
        if target.attr("type") == Some("virtio") {
            target.set_attr("state", if open { "connected" } else { "disconnected" });
            agent |= open && target.attr("name") == Some(crate::events::AGENT_PORT);
        }
    }
    agent
}

/// The live form of a definition for this start.
pub(crate) fn live_form(
    shared: &crate::hypervisor::Shared,
    definition: &Element,
    id: i32,
    dir: &Path,
) -> Result<Element> {
    let runtime = crate::complete::Runtime {
        channel_dir: dir.join("qemu").join("channel"),
        socket_dir: dir.join("qemu"),
        vnc_listen: "127.0.0.1".to_owned(),
        spice_listen: "127.0.0.1".to_owned(),
        ports: &shared.ports,
    };
    crate::complete::live(definition, id, &runtime)
}

/// Chains into the live definition.
pub(crate) fn write_chains(inner: &mut Inner) {
    crate::backing::write_all(&mut inner.live, &inner.chains);
}

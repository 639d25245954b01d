//! The recorded and the completed definitions on a real QEMU: it takes every argument, and its monitor answers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use virtsnap_xml::element::Element;

use super::guests::emulated_guests;
use super::tests::{chains, context, fixtures, names};
use super::{LaunchContext, command_line};

const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn qemu_takes_every_guest() {
    if !Path::new(EMULATOR).exists() {
        assert!(std::env::var_os("CI").is_none(), "{EMULATOR} is not installed");
        eprintln!("SKIPPED: {EMULATOR} is not installed");
        return;
    }
    let mut wrong = Vec::new();
    for name in names() {
        let path = fixtures().join(format!("{name}.xml"));
        let live = std::fs::read_to_string(path).unwrap();
        if let Err(why) = launch(&name, &live) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    for (name, live) in emulated_guests() {
        if let Err(why) = launch(&name, &live) {
            wrong.push(format!("{name} from its definition: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn launch(name: &str, live: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let text = live
        .replace("/var/lib/libvirt/images", dir.path().to_str().unwrap())
        .replace("/var/lib/libvirt/qemu/nvram", dir.path().to_str().unwrap())
        .replace("/run/virtsnap", dir.path().to_str().unwrap())
        .replace("/run/libvirt/qemu/channel", dir.path().to_str().unwrap());
    let mut live = Element::parse(&text).unwrap();
    if let Some(missing) = private(&mut live, dir.path()) {
        eprintln!("SKIPPED: {name}: {missing} is not installed");
        assert!(std::env::var_os("CI").is_none(), "{missing} is not installed");
        return Ok(());
    }
    make_images(&live);
    let context = LaunchContext {
        monitor: dir.path().join("monitor.sock"),
        memory_dir: dir.path().to_owned(),
        tpm_sockets: BTreeMap::from([("tpm0".to_owned(), dir.path().join("swtpm.sock"))]),
        ..context()
    };
    let command = command_line(&live, &chains(&live), &context).map_err(|err| err.chain())?;
    let tpm = (!command.swtpm.is_empty()).then(|| swtpm(dir.path()));
    for path in &command.creates {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let child = Command::new(EMULATOR)
        .args(&command.args)
        .envs(command.env)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut qemu = Process(child);
    let said = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    let status = ask(&mut qemu, &context.monitor).map_err(|err| format!("{err}: {}", said()))?;
    drop(tpm);
    if status == "prelaunch" { Ok(()) } else { Err(format!("status {status}")) }
}

/// Takes what other guests on the host could also want: ports, peers.
fn private(live: &mut Element, dir: &Path) -> Option<&'static str> {
    let devices = live.child_mut("devices").unwrap();
    for (at, graphics) in devices.children_mut("graphics").enumerate() {
        graphics.remove_children("listen");
        let socket = dir.join(format!("graphics{at}.sock"));
        graphics.push(
            Element::new("listen")
                .with_attr("type", "socket")
                .with_attr("socket", socket.to_str().unwrap()),
        );
        for attribute in ["port", "websocket", "listen", "socket"] {
            graphics.remove_attr(attribute);
        }
    }
    let network = ["tcp", "udp"];
    let kinds = ["serial", "channel", "redirdev", "console"];
    for device in devices.elements_mut().filter(|device| kinds.contains(&device.name())) {
        if device.attr("type").is_some_and(|kind| network.contains(&kind)) {
            device.set_attr("type", "null");
            device.remove_children("source");
            device.remove_children("protocol");
        }
    }
    for interface in devices.children_mut("interface") {
        interface.set_attr("type", "user");
        interface.remove_children("source");
    }
    let tpm = devices.child("tpm").is_some();
    let firmware = live.at(&["os", "loader"]).map(|loader| loader.text());
    match (tpm, firmware) {
        (true, _) if !Path::new("/usr/bin/swtpm").exists() => Some("swtpm"),
        (_, Some(path)) if !Path::new(&path).exists() => Some("the firmware (ovmf)"),
        _ => None,
    }
}

fn make_images(live: &Element) {
    for chain in chains(live).values() {
        for layer in &chain.layers {
            if layer.format == "raw" {
                std::fs::File::create(&layer.image).unwrap().set_len(64 << 20).unwrap();
            } else {
                let mut tool = Command::new("qemu-img");
                tool.args(["create", "-q", "-f", &layer.format]).arg(&layer.image).arg("64M");
                assert!(tool.status().unwrap().success());
            }
        }
    }
    let Some(os) = live.child("os") else { return };
    if let Some(kernel) = os.child_text("kernel") {
        std::fs::write(kernel, boot_protocol_header()).unwrap();
    }
    if let Some(initrd) = os.child_text("initrd") {
        std::fs::write(initrd, [0; 512]).unwrap();
    }
    if let Some(nvram) = os.child("nvram") {
        let source = nvram.child("source").and_then(|source| source.attr("file"));
        let path = source.map_or_else(|| nvram.text(), str::to_owned);
        let loader = os.child_text("loader").unwrap();
        let template = nvram.attr("template").map(PathBuf::from);
        let template = template.unwrap_or_else(|| loader.replace("CODE", "VARS").into());
        std::fs::copy(template, path).unwrap();
    }
}

/// What QEMU looks at in a Linux kernel before the guest runs.
fn boot_protocol_header() -> Vec<u8> {
    let mut image = vec![0_u8; 16384];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020c_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
    image
}

fn swtpm(dir: &Path) -> Process {
    let socket = dir.join("swtpm.sock");
    let child = Command::new("/usr/bin/swtpm")
        .args(["socket", "--tpm2", "--ctrl"])
        .arg(format!("type=unixio,path={}", socket.display()))
        .arg("--tpmstate")
        .arg(format!("dir={}", dir.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    let started = Instant::now();
    while !socket.exists() {
        assert!(started.elapsed() < DEADLINE, "swtpm made no socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

fn ask(qemu: &mut Process, monitor: &Path) -> Result<String, String> {
    let started = Instant::now();
    let stream = loop {
        if let Ok(stream) = UnixStream::connect(monitor) {
            break stream;
        }
        if let Some(status) = qemu.0.try_wait().unwrap() {
            return Err(format!("QEMU ended: {status}"));
        }
        if started.elapsed() > DEADLINE {
            return Err("no monitor".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut greeting = String::new();
    reader.read_line(&mut greeting).map_err(|err| err.to_string())?;
    let mut call = |command: &str| -> Result<Value, String> {
        // In one write: QEMU acts on the closing brace, and may be gone before a line's end.
        let line = format!("{}\n", json!({"execute": command}));
        (&stream).write_all(line.as_bytes()).map_err(|err| err.to_string())?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).map_err(|err| err.to_string())? == 0 {
                return Err("the monitor was closed".to_owned());
            }
            let answer: Value = serde_json::from_str(&line).map_err(|err| err.to_string())?;
            if let Some(error) = answer.get("error") {
                return Err(error.to_string());
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    };
    call("qmp_capabilities")?;
    let status = call("query-status")?["status"].as_str().unwrap_or("").to_owned();
    call("quit")?;
    Ok(status)
}

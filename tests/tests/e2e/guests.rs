//! Guests as virt-install, virt-manager, Nova, vdsm and others write them: each is defined and
//! started (paused: what they would boot is not here), and stopped again.
//!
//! Changed is only what this machine cannot be asked for: KVM and host bridges.

use std::path::Path;

use regex::{Captures, Regex};
use virtsnap_tests::{World, host, images, programs};

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

/// The definition with our directory in it, for QEMU's own emulation and user networking.
fn adapted(text: &str, world: &World, name: &str) -> String {
    let user_network = |found: &Captures| {
        let address = pattern(r"(?s)<(mac|model|address|alias|boot|rom|acpi)\b[^>]*/>");
        let kept: String = address.find_iter(&found[0]).map(|part| part.as_str()).collect();
        format!("<interface type='user'>{kept}</interface>")
    };
    let interface =
        pattern(r#"(?s)<interface type=["'](?:bridge|network|ethernet)["'].*?</interface>"#);
    let text = interface.replace_all(text, user_network);
    let type_kvm = pattern(r#"<domain type=["']kvm["']"#);
    let text = type_kvm.replace(&text, "<domain type='qemu'");
    let host_cpu = pattern(r#"mode=["']host-passthrough["']( migratable=["']\w+["'])?"#);
    let text = host_cpu.replace(&text, "mode='maximum'");
    let named = pattern(r"<name>[^<]*</name>");
    let text = named.replace(&text, format!("<name>{name}</name>"));
    let emulator = pattern(r"\s*<emulator>@EMULATOR@</emulator>");
    let text = emulator.replace(&text, "");
    text.replace("@DIR@", world.dir().to_str().expect("UTF-8"))
}

/// Makes every file that a definition names in our directory.
fn provide(text: &str, world: &World) {
    let file = pattern(r#"@DIR@/([\w.-]+)"#);
    for name in file.captures_iter(text).map(|found| found[1].to_owned()) {
        let path = world.path(&name);
        match path.extension().and_then(|extension| extension.to_str()) {
            _ if path.exists() => {}
            Some("qcow2") => images::create(&path, "qcow2", "16M"),
            Some("raw" | "iso") => images::create(&path, "raw", "16M"),
            Some("img") => images::create(&path, "raw", "1440K"),
            _ => {}
        }
    }
    let (kernel, initrd) = host::guest_kernel().expect("make guest builds the test guest");
    let _ = std::fs::copy(kernel, world.path("vmlinuz"));
    let _ = std::fs::copy(initrd, world.path("initrd"));
}

/// Defined, started, shown, stopped, forgotten.
fn lives(world: &World, file: &Path, name: &str) -> Result<(), String> {
    let steps = [
        format!("define {}", file.display()),
        format!("start {name} --paused"),
        format!("dumpxml {name}"),
        format!("destroy {name}"),
        format!("undefine {name} --nvram --tpm"),
    ];
    for line in steps {
        let outcome = world.virsh.run(&line);
        if !outcome.success {
            world.virsh.run(&format!("destroy {name}"));
            world.virsh.run(&format!("undefine {name} --nvram"));
            return Err(format!("{line}: {}", outcome.stderr.trim()));
        }
    }
    Ok(())
}

#[test]
fn guests_of_many_tools_define_and_start() {
    let world = World::new();
    let dir = host::root().join("fixtures/domain/guests");
    let mut files: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 40, "only {} guests", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        if text.contains("<tpm") && !programs::exists("swtpm") {
            wrong.push(format!("{name}: swtpm is not installed"));
            continue;
        }
        provide(&text, &world);
        let adapted_file = world.path(&format!("{name}.xml"));
        std::fs::write(&adapted_file, adapted(&text, &world, name)).unwrap();
        if let Err(why) = lives(&world, &adapted_file, name) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

#[test]
fn what_is_not_understood_is_refused_by_its_name() {
    let world = World::new();
    let file = world.path("strange.xml");
    let xml = virtsnap_tests::GuestSpec::idle("strange").xml(&world);
    std::fs::write(&file, xml.replace("<memballoon", "<flux-capacitor/><memballoon")).unwrap();
    let complaint = world.virsh.fails(&format!("define {}", file.display()));
    assert!(complaint.contains("unsupported configuration"), "{complaint}");
    assert!(complaint.contains("flux-capacitor"), "{complaint}");
    assert!(world.virsh.lines("list --all --name").is_empty());
}

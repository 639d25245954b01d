//! What is moved and what is not; the whole way, with libvirt's own daemon at the other end, is in
//! the end-to-end tests.

use std::fs;
use std::path::Path;

use super::*;

const DOMAIN: &str = "<domain type='qemu'><name>vm</name>\
    <uuid>5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11</uuid></domain>";

/// Where virtsnap keeps its files, and libvirt's, in one directory.
fn host() -> (tempfile::TempDir, Config, Exchange) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("virtsnapd.toml");
    let root = dir.path().display();
    let text = format!("state_dir = '{root}/ours'\nrun_dir = '{root}/run'\n");
    fs::write(&file, text).unwrap();
    let config = Config::load(Mode::System, Some(&file), None).unwrap();
    let exchange = Exchange {
        domains: Vec::new(),
        replace: false,
        libvirt_config: Some(dir.path().join("etc")),
        libvirt_state: Some(dir.path().join("lib")),
        libvirt_run: Some(dir.path().join("libvirt-run")),
    };
    fs::create_dir_all(dir.path().join("lib/snapshot/vm")).unwrap();
    fs::create_dir_all(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/vm.xml"), DOMAIN).unwrap();
    (dir, config, exchange)
}

fn snapshot(name: &str, overlay: &Path) -> String {
    format!(
        "<domainsnapshot><name>{name}</name><state>disk-snapshot</state>\
         <creationTime>7</creationTime><memory snapshot='no'/><disks>\
         <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>\
         <source file='{}'/></disk></disks>{DOMAIN}<active>1</active></domainsnapshot>",
        overlay.display()
    )
}

fn owned(config: &Config) -> Vec<PathBuf> {
    let store = virtsnap_store::Store::open(&config.state_dir).unwrap();
    let loaded = store.load().unwrap();
    loaded.domains.iter().flat_map(|domain| domain.book.owned.clone()).collect()
}

#[test]
fn only_overlays_that_nobody_else_uses_become_ours() {
    let (dir, config, exchange) = host();
    let file = |name: &str| dir.path().join(name);
    let with_backing = [&b"QFI\xfb\0\0\0\x03"[..], &[0, 0, 0, 0, 0, 0, 2, 0]].concat();
    let without = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 8]].concat();
    for name in ["overlay", "used", "target"] {
        fs::write(file(name), &with_backing).unwrap();
    }
    fs::write(file("base"), without).unwrap();
    std::os::unix::fs::symlink(file("target"), file("link")).unwrap();
    for name in ["overlay", "used", "link", "base", "missing"] {
        let path = file("lib/snapshot/vm").join(format!("{name}.xml"));
        fs::write(path, snapshot(name, &file(name))).unwrap();
    }
    let other = format!(
        "<domain type='qemu'><name>other</name><uuid>{}</uuid><devices><disk type='file'>\
         <source file='{}'/><target dev='vda'/></disk></devices></domain>",
        Uuid::from_u128(7),
        file("used").display()
    );
    fs::write(file("etc/other.xml"), other).unwrap();
    assert!(import(&config, &exchange, Ok).unwrap());
    assert_eq!(owned(&config), [file("overlay")]);
}

#[test]
fn there_and_back_is_the_same_and_nothing_is_overwritten_unasked() {
    let (dir, config, exchange) = host();
    let text = snapshot("s", Path::new("/images/s"));
    fs::write(dir.path().join("lib/snapshot/vm/s.xml"), &text).unwrap();
    assert!(import(&config, &exchange, Ok).unwrap());
    assert!(!import(&config, &exchange, Ok).unwrap(), "virtsnap has it already");
    assert!(!export(&config, &exchange).unwrap(), "libvirt has it already");
    let fresh = Exchange {
        libvirt_config: Some(dir.path().join("etc2")),
        libvirt_state: Some(dir.path().join("lib2")),
        ..exchange
    };
    assert!(export(&config, &fresh).unwrap());
    let back = read(&dir.path().join("lib2/snapshot/vm/s.xml")).unwrap();
    assert_eq!(back.child_text("active").as_deref(), Some("1"));
    assert_eq!(back.child_text("name").as_deref(), Some("s"));
    let definition = read(&dir.path().join("etc2/vm.xml")).unwrap();
    assert_eq!(definition.to_string(), Element::parse(DOMAIN).unwrap().to_string());
}

#[test]
fn what_is_not_at_rest_stays_where_it_is() {
    let (dir, config, exchange) = host();
    fs::create_dir_all(dir.path().join("libvirt-run")).unwrap();
    fs::write(dir.path().join("libvirt-run/vm.xml"), "").unwrap();
    assert!(!import(&config, &exchange, Ok).unwrap());
    fs::remove_file(dir.path().join("libvirt-run/vm.xml")).unwrap();
    fs::create_dir_all(dir.path().join("lib/save")).unwrap();
    fs::write(dir.path().join("lib/save/vm.save"), "").unwrap();
    assert!(!import(&config, &exchange, Ok).unwrap());
    fs::remove_file(dir.path().join("lib/save/vm.save")).unwrap();
    let running = dir.path().join("run/qemu/5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11");
    fs::create_dir_all(&running).unwrap();
    fs::write(running.join("status.json"), "").unwrap();
    assert!(!import(&config, &exchange, Ok).unwrap());
    assert_eq!(owned(&config), Vec::<PathBuf>::new());
    fs::remove_dir_all(running).unwrap();
    assert!(import(&config, &exchange, Ok).unwrap());
}

#[test]
fn an_unreadable_snapshot_comes_along_and_is_known_to_be_there() {
    let (dir, config, exchange) = host();
    fs::write(dir.path().join("lib/snapshot/vm/bad.xml"), "<domainsnap").unwrap();
    assert!(import(&config, &exchange, Ok).unwrap());
    let store = virtsnap_store::Store::open(&config.state_dir).unwrap();
    let loaded = store.load().unwrap();
    assert!(loaded.domains[0].book.has_unreadable_moments);
    assert!(loaded.bad[0].path.ends_with("bad.xml"), "{:?}", loaded.bad);
}

/// libvirt's Xen driver knows no snapshots.
#[test]
fn on_xen_definitions_are_moved_and_snapshots_stay() {
    let (dir, config, exchange) = host();
    let config = Config { hypervisor: Hypervisor::Xen, ..config };
    fs::write(dir.path().join("etc/vm.xml"), DOMAIN.replace("qemu", "xen")).unwrap();
    let memory = dir.path().join("memory");
    let text = snapshot("s", &memory);
    fs::write(dir.path().join("lib/snapshot/vm/s.xml"), &text).unwrap();
    assert!(import(&config, &exchange, Ok).unwrap());
    let fresh = Exchange {
        libvirt_config: Some(dir.path().join("etc2")),
        libvirt_state: Some(dir.path().join("lib2")),
        ..exchange
    };
    assert!(export(&config, &fresh).unwrap());
    assert!(dir.path().join("etc2/vm.xml").exists());
    assert!(!dir.path().join("lib2").exists());

    // The way back: for what has a definition here it must be said, snapshots stay in any case.
    assert!(!import(&config, &fresh, Ok).unwrap());
    let stored = |name: &str| {
        let mut domains = config.open_store().unwrap().load().unwrap().domains;
        let book = domains.pop().unwrap().book;
        assert_eq!((domains.len(), book.name.as_str(), book.moments.len()), (0, name, 1));
        assert!(book.config.is_some());
        let of_then = book.moments.get("s").unwrap().domain.clone().unwrap();
        assert_eq!(of_then.child_text("name").unwrap(), name);
        book.uuid
    };
    assert!(import(&config, &Exchange { replace: true, ..fresh.clone() }, Ok).unwrap());
    let uuid = stored("vm");
    config.open_store().unwrap().remove_config(uuid).unwrap();
    let exported = dir.path().join("etc2/vm.xml");
    let definition = fs::read_to_string(&exported).unwrap();
    fs::remove_file(&exported).unwrap();
    let definition = definition.replace("<name>vm<", "<name>other<");
    fs::write(dir.path().join("etc2/other.xml"), definition).unwrap();
    assert!(import(&config, &fresh, Ok).unwrap(), "only its snapshots were here");
    stored("other");
}

#[test]
fn a_domain_that_runs_on_xen_is_known_by_libxls_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let uuid = Uuid::parse_str("5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11").unwrap();
    check_not_on_xen(uuid, &dir.path().join("none")).unwrap();
    let put = |name: &str| fs::write(dir.path().join(name), "{}").unwrap();
    put("userdata-d.3.00000000-0000-0000-0000-000000000001.libxl-json");
    put(&format!("userdata-d.4.{uuid}.libvirt-xml"));
    check_not_on_xen(uuid, dir.path()).unwrap();
    put(&format!("userdata-d.4.{uuid}.libxl-json"));
    let message = check_not_on_xen(uuid, dir.path()).unwrap_err().message;
    assert!(message.contains("userdata-d.4."), "{message}");
}

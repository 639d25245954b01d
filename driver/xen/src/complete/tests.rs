//! What is filled in is golden, see `crate::golden`; here is what is refused and generated.

use proptest::prelude::*;
use virtsnap_engine::error::Condition;
use virtsnap_xml::element::Element;

use crate::golden::{self, complete};

fn domain(os: &str, rest: &str, devices: &str) -> Element {
    let text = format!(
        "<domain type='xen'><name>a</name><memory>131072</memory><os>{os}</os>{rest}\
         <devices>{devices}</devices></domain>"
    );
    Element::parse(&text).unwrap()
}

fn pv(devices: &str) -> Element {
    domain("<type>linux</type>", "", devices)
}

fn hvm(devices: &str) -> Element {
    domain("<type>hvm</type>", "", devices)
}

#[test]
fn what_cannot_start_is_refused_with_its_reason() {
    let disk = |name: &str, target: &str| {
        pv(&format!(
            "<disk type='file'><driver {name}/><source file='/a'/><target {target}/></disk>"
        ))
    };
    let cases = [
        (domain("<type>exe</type>", "", ""), "no OS type 'exe'"),
        (domain("<type machine='xenfv'>linux</type>", "", ""), "goes with the machine 'xenpv'"),
        (domain("<type>xenpvh</type>", "", ""), "needs a <kernel> or a <bootloader>"),
        (domain("<type>linux</type><loader>/l</loader>", "", ""), "has firmware"),
        (
            domain("<type>hvm</type>", "<bootloader>pygrub</bootloader>", ""),
            "boots by its firmware",
        ),
        (domain("<type>hvm</type><cmdline>quiet</cmdline>", "", ""), "without a <kernel>"),
        (disk("name='file' type='qcow2'", "dev='xvda'"), "raw images only"),
        (disk("name='phy' type='qcow2'", "dev='xvda'"), "raw images only"),
        (disk("type='qcow2'", "dev='xvda'"), "needs <driver name='qemu'"),
        (disk("name='qemu'", "dev='vda'"), "not a disk of a Xen guest"),
        (disk("name='qemu'", "dev='xvda' bus='ide'"), "of the bus xen"),
        (pv("<serial type='pty'/>"), "has a <console>"),
        (pv("<console type='file'><source path='/a'/></console>"), "Xen's own"),
        (pv("<graphics type='spice'/>"), "no spice display"),
        (pv("<input type='tablet'/>"), "no tablet on the bus xen"),
        (pv("<sound model='ac97'/>"), "sound card"),
        (
            pv("<interface type='bridge'><source bridge='b'/><model type='e1000'/></interface>"),
            "'e1000' is emulated",
        ),
        (
            hvm("<interface type='network'><source network='n'/><script path='/s'/></interface>"),
            "no <script>",
        ),
        (hvm("<input type='keyboard' bus='usb'/>"), "no keyboard on the bus usb"),
        (hvm("<graphics type='vnc' port='80'/>"), "displays from 5900"),
        (hvm("<video><model type='vga' vram='8192'/></video>"), "16384 KiB at least"),
        (pv("<hostdev mode='subsystem' type='pci'/>"), "devices/hostdev"),
        (pv("<disk><auth username='a'/></disk>"), "devices/disk/auth"),
        (pv("<disk><backenddomain name='d'/></disk>"), "devices/disk/backenddomain"),
    ];
    for (domain, reason) in cases {
        let err = complete(domain.clone()).expect_err(reason);
        assert_eq!(err.condition, Condition::ConfigUnsupported, "{}", err.message);
        assert!(err.message.contains(reason), "{}", err.message);
    }
}

#[test]
fn nonsense_is_an_error_in_the_xml() {
    let cases = [
        (Element::parse("<domain type='xen'><name>a</name></domain>").unwrap(), "<memory>"),
        (domain("", "", ""), "no <type>"),
        (domain("<type>hvm</type>", "<vcpu>0</vcpu>", ""), "is zero"),
        (domain("<type>hvm</type>", "<vcpu current='3'>2</vcpu>", ""), "3 of 2"),
        (domain("<type>hvm</type>", "<cputune><shares>0</shares></cputune>", ""), "weight"),
        (pv("<disk><target dev='xvda'/></disk>"), "no source file"),
        (pv("<interface type='bridge'/>"), "needs a source bridge"),
        (pv("<channel type='pty'><target type='xen'/></channel>"), "target name"),
        (hvm("<serial type='tcp'/>"), "source service"),
    ];
    for (domain, reason) in cases {
        let err = complete(domain).expect_err(reason);
        assert_eq!(err.condition, Condition::XmlError, "{}", err.message);
        assert!(err.message.contains(reason), "{}", err.message);
    }
}

#[test]
fn cards_get_addresses_of_xens_range() {
    let done = complete(pv("<interface type='ethernet'/>")).unwrap();
    let mac = done.at(&["devices", "interface", "mac"]).unwrap().attr("address").unwrap();
    assert!(mac.starts_with("00:16:3e:"), "{mac}");
    assert!(virtsnap_xml::domain::uuid(&done).is_some());
}

#[test]
fn what_one_run_added_is_not_kept() {
    let config =
        complete(hvm("<interface type='ethernet'/><serial type='pty'/><graphics type='vnc'/>\
         <channel type='unix'><target type='xen' name='org.example.agent'/></channel>"))
        .unwrap();
    let mut live = golden::live(&config);
    super::with_id(&mut live, 7);
    let interface = live.at(&["devices", "interface", "target"]).unwrap();
    assert_eq!(interface.attr("dev"), Some("vif7.0-emu"));
    assert_eq!(live.attr("id"), Some("7"));
    let socket = live.at(&["devices", "channel", "source"]).unwrap();
    assert_eq!(socket.attr("path"), Some("/run/virtsnap/channel/org.example.agent"));
    let mut again = complete(live).unwrap();
    // The port is what the user would have to take back.
    let graphics = again.child_mut("devices").unwrap().child_mut("graphics").unwrap();
    for attribute in ["listen", "port"] {
        graphics.remove_attr(attribute);
    }
    graphics.child_mut("listen").unwrap().remove_attr("address");
    let again = complete(again).unwrap();
    assert_eq!(again.to_string(), config.to_string());
}

proptest! {
    #[test]
    fn no_definition_ends_in_a_panic(domain in golden::mutated()) {
        if let Ok(done) = complete(domain) {
            let again = complete(done.clone()).unwrap();
            prop_assert_eq!(again.to_string(), done.to_string());
        }
    }
}

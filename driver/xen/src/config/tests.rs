//! Both ways, by golden pairs, and in circles: what libxl keeps survives.

use proptest::prelude::*;
use serde_json::{Value, json};
use virtsnap_xml::element::Element;

use super::{from_libxl, learn_backends, to_libxl};
use crate::golden::{self, complete};

fn configuration(definition: &Element) -> Value {
    to_libxl(&golden::live(definition), &golden::host()).unwrap()
}

#[test]
fn definitions_become_configurations() {
    let mut wrong = Vec::new();
    for name in golden::names("defined", ".xml") {
        let definition = complete(golden::defined(&name)).unwrap();
        let mut text = serde_json::to_string_pretty(&configuration(&definition)).unwrap();
        text.push('\n');
        wrong.extend(golden::is_expected("defined", &format!("{name}.json"), &text).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_libxl_keeps_survives() {
    for name in golden::names("defined", ".xml") {
        let first = configuration(&complete(golden::defined(&name)).unwrap());
        let found = from_libxl(&first, &golden::host()).unwrap();
        assert!(found.untold.is_empty(), "{name}: {:?}", found.untold);
        assert_eq!(configuration(&found.domain), first, "{name}");
    }
}

#[test]
fn domains_that_others_started_are_read() {
    let mut wrong = Vec::new();
    for name in golden::names("started", ".json") {
        let config: Value =
            serde_json::from_str(&golden::read("started", &format!("{name}.json"))).unwrap();
        let found = from_libxl(&config, &golden::host()).unwrap();
        let mut text = format!("{}", found.domain);
        for part in &found.untold {
            text.push_str(&format!("<!-- untold: {part} -->\n"));
        }
        wrong.extend(golden::is_expected("started", &format!("{name}.xml"), &text).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_has_no_element_is_told() {
    let config = json!({
        "c_info": { "type": "pv", "name": "a", "uuid": "7f6c3b1e-0f53-4c0d-9b8e-6b0c3d2f8a01" },
        "b_info": { "max_memkb": 1024, "max_vcpus": 1, "irqs": [4], "device_model_stubdomain": "True" },
        "pcidevs": [{ "bus": 1 }],
        "disks": [{
            "vdev": "xvda", "pdev_path": "/a", "backend": "qdisk", "script": "block-iscsi",
        }],
    });
    let found = from_libxl(&config, &golden::host()).unwrap();
    let told = found.untold.join("; ");
    for part in [
        "pcidevs",
        "irqs",
        "device_model_stubdomain",
        "script of the disk xvda",
        "the format of the disk xvda",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert!(from_libxl(&json!({}), &golden::host()).is_err());
}

#[test]
fn a_driver_that_libxl_chose_is_learnt() {
    let text = "<domain type='xen'><devices><disk><driver type='raw'/><target dev='xvda'/></disk>\
                <disk><driver name='tap'/><target dev='xvdb'/></disk></devices></domain>";
    let mut live = Element::parse(text).unwrap();
    let disks = json!({ "disks": [
        { "vdev": "xvda", "backend": "qdisk" }, { "vdev": "xvdb", "backend": "phy" },
    ] });
    learn_backends(&mut live, &disks);
    let names: Vec<_> = live
        .child("devices")
        .unwrap()
        .children("disk")
        .map(|disk| disk.child("driver").unwrap().to_string())
        .collect();
    assert!(names[0].contains("name='qemu' type='raw'"), "{}", names[0]);
    assert!(names[1].contains("name='tap'"), "{}", names[1]);
}

#[test]
fn options_to_qemu_cannot_be_smuggled_into_a_serial_port() {
    let serial = Element::parse("<serial type='file'><source path='/log,chardev=other'/></serial>");
    let err = super::chardev::print(&serial.unwrap()).unwrap_err();
    assert!(err.message.contains("comma"), "{}", err.message);
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        Just(Value::from("True")),
        Just(Value::from("unix:,server,nowait")),
        "[a-zé:/]{0,5}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{ "vdev": "hda" }, null, 3, "pty"])),
    ];
    leaf.boxed()
}

/// A real configuration with some members written over.
fn broken() -> impl Strategy<Value = Value> {
    let names = golden::names("defined", ".xml");
    let changes = prop::collection::vec((any::<prop::sample::Index>(), anything()), 1..4);
    (prop::sample::select(names), changes).prop_map(|(name, changes)| {
        let mut config = configuration(&complete(golden::defined(&name)).unwrap());
        for (at, value) in changes {
            let mut paths = Vec::new();
            collect(&config, String::new(), &mut paths);
            let path = &paths[at.index(paths.len())];
            *config.pointer_mut(path).unwrap() = value;
        }
        config
    })
}

fn collect(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                collect(member, format!("{path}/{name}"), paths);
            }
        }
        Value::Array(list) => {
            for (nth, member) in list.iter().enumerate() {
                collect(member, format!("{path}/{nth}"), paths);
            }
        }
        _ => {}
    }
    paths.push(path);
}

proptest! {
    #[test]
    fn no_definition_panics_on_the_way_to_libxl(domain in golden::mutated()) {
        if let Ok(done) = complete(domain.clone()) {
            let _ = to_libxl(&golden::live(&done), &golden::host());
        }
        // Nor does one that nobody completed.
        let _ = to_libxl(&domain, &golden::host());
    }

    #[test]
    fn no_configuration_panics(config in broken()) {
        if let Ok(found) = from_libxl(&config, &golden::host()) {
            let _ = to_libxl(&golden::live(&found.domain), &golden::host());
        }
    }
}

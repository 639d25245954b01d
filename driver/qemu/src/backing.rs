//! A disk's chain in the live definition: `index=` of the source, and `<backingStore>` nested to
//! the bottom, an empty one saying that there is nothing below.

use std::collections::BTreeMap;

use virtsnap_engine::facts::Target;
use virtsnap_xml::element::{Element, Node};

use crate::blocks::{Chain, Layer};

/// Writes every chain into its disk. Disks without one are left as they are.
pub(crate) fn write_all(live: &mut Element, chains: &BTreeMap<Target, Chain>) {
    let Some(devices) = live.child_mut("devices") else { return };
    for disk in devices.children_mut("disk") {
        let target = disk.child("target").and_then(|target| target.attr("dev"));
        if let Some(chain) = target.and_then(|target| chains.get(target)) {
            write(disk, chain);
        }
    }
}

/// The disk's source becomes the chain's active layer, with all that is under it.
pub fn write(disk: &mut Element, chain: &Chain) {
    let Some((top, below)) = chain.layers.split_first() else { return };
    disk.set_attr("type", kind(top));
    if let Some(driver) = disk.child_mut("driver") {
        driver.set_attr("type", top.format.clone());
    }
    let source = disk.child_or_insert("source");
    for said_by_the_layer in ["file", "dev", "protocol", "name"] {
        source.remove_attr(said_by_the_layer);
    }
    source.remove_children("host");
    let mut fresh = source_of(top);
    for (key, value) in source.attributes() {
        fresh.set_attr(key, value);
    }
    fresh.set_attr("index", top.number.to_string());
    fresh.nodes_mut().append(source.nodes_mut());
    *source = fresh;
    disk.remove_children("backingStore");
    let is_source = |node: &Node| matches!(node, Node::Element(child) if child.name() == "source");
    let at = disk.nodes().iter().position(is_source).map_or(0, |at| at + 1);
    disk.nodes_mut().insert(at, Node::Element(backing_store(below)));
}

fn kind(layer: &Layer) -> &'static str {
    match layer.is_block_device {
        _ if crate::image::is_network(&layer.image) => "network",
        true => "block",
        false => "file",
    }
}

pub(crate) fn source_of(layer: &Layer) -> Element {
    if let Some(nbd) = crate::image::network(&layer.image) {
        return nbd.to_source();
    }
    let key = if layer.is_block_device { "dev" } else { "file" };
    Element::new("source").with_attr(key, layer.image.to_string_lossy())
}

fn backing_store(layers: &[Layer]) -> Element {
    layers.iter().rev().fold(Element::new("backingStore"), |below, layer| {
        Element::new("backingStore")
            .with_attr("type", kind(layer))
            .with_attr("index", layer.number.to_string())
            .with_child(Element::new("format").with_attr("type", layer.format.clone()))
            .with_child(source_of(layer))
            .with_child(below)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_printed_as_libvirt_prints_it() {
        let mut disk = Element::parse(
            "<disk type='block' device='disk'><driver name='qemu' type='raw'/>\
             <source dev='/dev/x' startupPolicy='optional'><seclabel model='dac'/></source>\
             <target dev='vda'/></disk>",
        )
        .unwrap();
        let layer = |image: &str, format: &str, number, is_block_device| Layer {
            image: image.into(),
            format: format.to_owned(),
            is_block_device,
            number,
        };
        let layers = vec![
            layer("/i/top", "qcow2", 3, false),
            layer("/i/mid", "qcow2", 2, false),
            layer("/dev/x", "raw", 1, true),
        ];
        write(&mut disk, &Chain { target: "vda".to_owned(), layers });
        let expected = "\
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/>
  <source file='/i/top' startupPolicy='optional' index='3'>
    <seclabel model='dac'/>
  </source>
  <backingStore type='file' index='2'>
    <format type='qcow2'/>
    <source file='/i/mid'/>
    <backingStore type='block' index='1'>
      <format type='raw'/>
      <source dev='/dev/x'/>
      <backingStore/>
    </backingStore>
  </backingStore>
  <target dev='vda'/>
</disk>
";
        assert_eq!(disk.to_string(), expected);
    }
}

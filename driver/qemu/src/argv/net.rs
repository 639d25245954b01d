//! Network interfaces: `-netdev` and the card.
//!
//! QEMU's sandbox lets it start no helper, and it has no right to make a tap device: the runtime
//! opens what a [`TapRequest`] says and passes it.

use virtsnap_engine::error::Result;

use super::props::Props;
use super::read::View;
use super::{Build, TapRequest, lacks, refuse};

const HOST_OFFLOADS: [(&str, &str); 7] = [
    ("csum", "csum"),
    ("gso", "gso"),
    ("tso4", "host_tso4"),
    ("tso6", "host_tso6"),
    ("ecn", "host_ecn"),
    ("ufo", "host_ufo"),
    ("mrg_rxbuf", "mrg_rxbuf"),
];

const GUEST_OFFLOADS: [(&str, &str); 5] = [
    ("csum", "guest_csum"),
    ("tso4", "guest_tso4"),
    ("tso6", "guest_tso6"),
    ("ecn", "guest_ecn"),
    ("ufo", "guest_ufo"),
];

/// More queues than this no virtio-net card has.
const MOST_QUEUES: u64 = 256;

impl Build<'_> {
    pub(super) fn interfaces(&mut self) -> Result<()> {
        for interface in self.devices.children("interface") {
            let alias = interface.alias()?;
            let model = interface.child("model").and_then(|model| model.attr("type"));
            let model = model.unwrap_or("rtl8139");
            let is_virtio = model.starts_with("virtio");
            let queues = self.queues(interface)?;
            let netdev = self.host_side(interface, alias, is_virtio, queues)?;
            self.json("-netdev", netdev.with("id", format!("host{alias}")));
            let props = match is_virtio {
                true => self.virtio_net(interface, queues)?,
                false => Props::device(model),
            };
            let mac = interface.child("mac").ok_or_else(|| lacks("the <mac> of an interface"))?;
            mac.attr("type");
            mac.attr("check");
            let props = props
                .with("netdev", format!("host{alias}"))
                .with("id", alias)
                .with("mac", mac.need("address")?)
                .positive("bootindex", self.boot_index(interface)?);
            self.device(self.place(interface, props)?);
        }
        Ok(())
    }

    fn queues(&self, interface: View<'_>) -> Result<u64> {
        let driver = interface.child("driver");
        let queues = driver.map(|driver| driver.number("queues")).transpose()?.flatten();
        let queues = queues.unwrap_or(1).max(1);
        if queues > MOST_QUEUES {
            return refuse(format!(
                "an interface with {queues} queues: {MOST_QUEUES} is the limit"
            ));
        }
        Ok(queues)
    }

    fn host_side(
        &mut self,
        interface: View<'_>,
        alias: &str,
        is_virtio: bool,
        queues: u64,
    ) -> Result<Props> {
        let source = interface.child("source");
        let source_attr = |name: &str| source.and_then(|source| source.attr(name));
        if let Some(backend) = interface.child("backend")
            && backend.attr("type").is_some_and(|kind| kind != "default")
        {
            return refuse(format!("interface {alias}: this <backend> is not supported"));
        }
        let bridge = match interface.need("type")? {
            "user" => return user(interface),
            "internal" => return Ok(Props::new().with("type", "user")),
            kind @ ("client" | "server" | "mcast" | "udp") => return socket(interface, kind),
            "ethernet" => None,
            "bridge" => Some(source_attr("bridge").ok_or_else(|| lacks("a bridge"))?.to_owned()),
            "network" => {
                let network = source_attr("network").ok_or_else(|| lacks("a network"))?;
                source_attr("portid");
                source_attr("portgroup");
                let known = self.context.network_bridges.get(network).cloned();
                let bridge = source_attr("bridge").map(str::to_owned).or(known);
                if bridge.is_none() {
                    return refuse(format!(
                        "interface {alias}: the bridge of network '{network}' is not known"
                    ));
                }
                bridge
            }
            other => return refuse(format!("interfaces of type '{other}' are not supported")),
        };
        if interface.child("virtualport").is_some() {
            return refuse(format!("interface {alias}: <virtualport> is not supported"));
        }
        self.tap(interface, alias, bridge, is_virtio, queues)
    }

    fn tap(
        &mut self,
        interface: View<'_>,
        alias: &str,
        bridge: Option<String>,
        is_virtio: bool,
        queues: u64,
    ) -> Result<Props> {
        let target = interface.child("target");
        let mac = interface.child("mac").and_then(|mac| mac.attr("address")).unwrap_or("");
        let mtu = interface.child("mtu").map(|mtu| mtu.number("size")).transpose()?.flatten();
        let driver = interface.child("driver").and_then(|driver| driver.attr("name"));
        let vhost = is_virtio && driver == Some("vhost");
        let fds = (0..queues).map(|_| self.pass_fd()).collect::<Vec<_>>();
        let vhost_fds = if vhost { (0..queues).map(|_| self.pass_fd()).collect() } else { vec![] };
        let list = |fds: &[i32]| fds.iter().map(i32::to_string).collect::<Vec<_>>().join(":");
        let plural = |name: &str| if queues > 1 { format!("{name}s") } else { name.to_owned() };
        let mut props = Props::new().with("type", "tap").with(&plural("fd"), list(&fds));
        if vhost {
            props = props.with("vhost", true).with(&plural("vhostfd"), list(&vhost_fds));
        }
        if let Some(tune) = interface.at(&["tune", "sndbuf"]) {
            props = props.with("sndbuf", super::read::number("sndbuf", &tune.text())?);
        }
        self.out.taps.push(TapRequest {
            alias: alias.to_owned(),
            bridge,
            mac: mac.to_owned(),
            target: target.and_then(|target| target.attr("dev")).map(str::to_owned),
            managed: target.map(|t| t.switch("managed")).transpose()?.flatten() != Some(false),
            mtu,
            vnet_header: is_virtio,
            fds,
            vhost_fds,
        });
        Ok(props)
    }

    fn virtio_net(&self, interface: View<'_>, queues: u64) -> Result<Props> {
        let mut props = self.virtio(interface, "virtio-net")?;
        let mtu = interface.child("mtu").map(|mtu| mtu.number("size")).transpose()?.flatten();
        props = props.positive("host_mtu", mtu);
        if let Some(teaming) = interface.child("teaming") {
            match teaming.attr("type") {
                Some("persistent") => props = props.with("failover", true),
                _ => return refuse("<teaming> of a virtio interface must be persistent"),
            }
        }
        if queues > 1 {
            props = props.with("mq", true).with("vectors", 2 * queues + 2);
        }
        let Some(driver) = interface.child("driver") else {
            return Ok(props);
        };
        let tx = match driver.attr("txmode") {
            None => None,
            Some("iothread") => Some("bh"),
            Some("timer") => Some("timer"),
            Some(other) => return refuse(format!("txmode='{other}' is not known")),
        };
        props = props
            .some("tx", tx)
            .some("ioeventfd", driver.switch("ioeventfd")?)
            .some("event_idx", driver.switch("event_idx")?)
            .positive("rx_queue_size", driver.number("rx_queue_size")?)
            .positive("tx_queue_size", driver.number("tx_queue_size")?)
            .some("rss", driver.switch("rss")?)
            .some("hash", driver.switch("rss_hash_report")?);
        for (side, offloads) in [("host", &HOST_OFFLOADS[..]), ("guest", &GUEST_OFFLOADS[..])] {
            let Some(said) = driver.child(side) else {
                continue;
            };
            for (name, property) in offloads {
                props = props.some(property, said.switch(name)?);
            }
        }
        Ok(props)
    }
}

fn user(interface: View<'_>) -> Result<Props> {
    let mut props = Props::new().with("type", "user");
    if let Some(source) = interface.child("source") {
        source.attr("dev");
    }
    if let Some(target) = interface.child("target") {
        target.attr("dev");
    }
    for ip in interface.children("ip") {
        let address = ip.need("address")?;
        let prefix = ip.number("prefix")?;
        props = match ip.attr("family") {
            Some("ipv6") => props.with("ipv6-prefix", address).positive("ipv6-prefixlen", prefix),
            _ => {
                let prefix = prefix.filter(|prefix| *prefix > 0);
                let suffix = prefix.map(|prefix| format!("/{prefix}")).unwrap_or_default();
                props.with("net", format!("{address}{suffix}"))
            }
        };
    }
    Ok(props)
}

fn socket(interface: View<'_>, kind: &str) -> Result<Props> {
    let source = interface.child("source").ok_or_else(|| lacks("the <source> of an interface"))?;
    let address = source.attr("address").unwrap_or("");
    let peer = format!("{address}:{}", source.need("port")?);
    let key = match kind {
        "client" => "connect",
        "server" => "listen",
        other => other,
    };
    let mut props = Props::new().with("type", "socket").with(key, peer);
    if kind == "udp" {
        let local = source.child("local").ok_or_else(|| lacks("<local> of a udp interface"))?;
        let address = local.attr("address").unwrap_or("");
        props = props.with("localaddr", format!("{address}:{}", local.need("port")?));
    }
    Ok(props)
}

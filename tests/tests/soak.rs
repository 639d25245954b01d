//! Clients by the thousand, of every kind: what they leave behind is nothing. And clients that are
//! slow, silent or never read: others do not notice.
//!
//! `make soak` makes many; otherwise few enough for every run of the tests. Flat means: after the
//! warm-up as many descriptors as before it, no thread, no child and no more than [`GROWTH`]
//! of memory more.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtsnap_tests::wire::{self, Args, Client};
use virtsnap_tests::{Daemon, GuestSpec, World, host};

const CONNECTIONS: usize = 300;
const GROWTH: usize = 8 << 20;
const WORKERS: usize = 4;

/// What a process takes of the host.
#[derive(Debug, Clone, Copy)]
struct Taken {
    resident: usize,
    threads: usize,
    descriptors: usize,
    children: usize,
}

impl Taken {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let children = tasks.map(|task| {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            list.split_whitespace().count()
        });
        Self {
            resident: field("VmRSS:") << 10,
            threads: field("Threads:"),
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            children: children.sum(),
        }
    }
}

struct Soak {
    world: World,
    pid: u32,
    calls: AtomicUsize,
}

impl Soak {
    fn new() -> Self {
        let world = World::with(Daemon::Virtsnapd);
        let pid = world.processes("virtsnapd")[0];
        Self { world, pid, calls: AtomicUsize::new(0) }
    }

    /// Connections number `from` to `to`, several at once.
    fn run(&self, from: usize, to: usize) {
        let next = AtomicUsize::new(from);
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= to {
                            break;
                        }
                        self.one(worker, number);
                    }
                });
            }
        });
    }

    fn ask(&self, client: &mut Client, procedure: u32, args: &Args) -> Vec<u8> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        client.ask(procedure, args).unwrap_or_else(|err| panic!("procedure {procedure}: {err}"))
    }

    /// One connection of the kind that comes next.
    fn one(&self, worker: usize, number: usize) {
        let socket = self.world.socket();
        let all = Args::default().number(1).number(0);
        match number % 8 {
            // Says nothing.
            0 => drop(Client::connect(&socket).unwrap()),
            // Ends within a message that promises more.
            1 => {
                let mut client = Client::open(&socket).unwrap();
                let message = wire::call(wire::CONNECT_LIST_ALL_DOMAINS, 9, &all);
                client.socket().write_all(&[&[1, 0, 0, 0], &message[4..]].concat()).unwrap();
            }
            // Looks, and says goodbye.
            2 => {
                let mut client = Client::open(&socket).unwrap();
                self.ask(&mut client, wire::CONNECT_LIST_ALL_DOMAINS, &all);
                self.ask(&mut client, wire::CONNECT_GET_CAPABILITIES, &Args::default());
                client.close().unwrap();
            }
            // Registers for events, and is gone.
            3 => {
                let mut client = Client::open(&socket).unwrap();
                for event in 0..20 {
                    let args = Args::default().number(event).number(0);
                    let procedure = wire::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY;
                    self.ask(&mut client, procedure, &args);
                }
            }
            // Never reads, and is gone.
            4 => {
                let mut client = Client::open(&socket).unwrap();
                for serial in 0..20 {
                    let procedure = wire::CONNECT_GET_CAPABILITIES;
                    let message = wire::call(procedure, serial, &Args::default());
                    client.socket().write_all(&message).unwrap();
                }
            }
            // Only looks, and is refused what is more.
            5 => {
                let path = self.world.read_only_socket();
                let mut client = Client::open(Path::new(&path)).unwrap();
                self.ask(&mut client, wire::CONNECT_LIST_ALL_DOMAINS, &all);
                let args = Args::default().text("<domain/>").number(0);
                client.ask(wire::DOMAIN_DEFINE_XML_FLAGS, &args).unwrap_err();
            }
            _ => self.a_domain(worker, number % 32 == 6),
        }
    }

    /// A domain from its definition to its end, with a snapshot on a real image where asked for.
    fn a_domain(&self, worker: usize, with_snapshot: bool) {
        let mut client = Client::open(&self.world.socket()).unwrap();
        let spec = GuestSpec::idle(&format!("soak{worker}"));
        let args = Args::default().text(&spec.xml(&self.world)).number(0);
        let domain = self.ask(&mut client, wire::DOMAIN_DEFINE_XML_FLAGS, &args);
        let domain = || Args::default().raw(&domain);
        self.ask(&mut client, wire::DOMAIN_GET_XML_DESC, &domain().number(1));
        if with_snapshot {
            let args = domain().text("<domainsnapshot><name>one</name></domainsnapshot>");
            let args = args.number(0);
            let snapshot = self.ask(&mut client, wire::DOMAIN_SNAPSHOT_CREATE_XML, &args);
            let listing = domain().number(1).number(0);
            self.ask(&mut client, wire::DOMAIN_LIST_ALL_SNAPSHOTS, &listing);
            let args = Args::default().raw(&snapshot).number(0);
            self.ask(&mut client, wire::DOMAIN_SNAPSHOT_DELETE, &args);
        }
        self.ask(&mut client, wire::DOMAIN_UNDEFINE_FLAGS, &domain().number(0));
    }

    /// What the daemon takes when the last client's connection is gone. It ends threads for files
    /// some seconds after they were needed: `most` waits for that, too.
    fn settled(&self, most: Option<Taken>) -> Taken {
        host::wait("connections to be forgotten", 60, || {
            let before = Taken::of(self.pid);
            std::thread::sleep(std::time::Duration::from_millis(300));
            let now = Taken::of(self.pid);
            let is_quiet = before.descriptors == now.descriptors && now.children == 0;
            let is_flat =
                |most: Taken| now.descriptors <= most.descriptors && now.threads <= most.threads;
            (is_quiet && most.is_none_or(is_flat)).then_some(now)
        })
    }
}

#[test]
fn clients_by_the_thousand_leave_nothing_behind() {
    let asked = std::env::var("VIRTSNAP_SOAK").ok().map(|text| text.parse().unwrap());
    let connections: usize = asked.unwrap_or(CONNECTIONS);
    let soak = Soak::new();
    for worker in 0..WORKERS {
        let image = soak.world.path(&format!("soak{worker}-vda.qcow2"));
        virtsnap_tests::images::create(&image, "qcow2", "1M");
    }
    let warm = (connections / 4).max(150);
    soak.run(0, warm);
    let before = soak.settled(None);
    soak.run(warm, warm + connections);
    let after = soak.settled(Some(before));
    let mib = |bytes: usize| (bytes >> 10) as f64 / 1024.0;
    println!(
        "soak: {connections} connections, {} calls: memory {:.1} to {:.1} MiB, descriptors {} to \
         {}, threads {} to {}",
        soak.calls.load(Ordering::Relaxed),
        mib(before.resident),
        mib(after.resident),
        before.descriptors,
        after.descriptors,
        before.threads,
        after.threads,
    );
    assert!(after.resident <= before.resident + GROWTH, "{before:?} {after:?}");
    assert!(soak.world.virsh.lines("list --all --name").is_empty(), "all were undefined");
}

#[test]
fn slow_and_silent_clients_cost_others_nothing() {
    let soak = Soak::new();
    let world = &soak.world;
    let vm = world.define(GuestSpec::idle("vm"));
    let before = Taken::of(soak.pid);
    let socket = world.socket();
    let mut held = Vec::new();
    for number in 0..120_u32 {
        let mut client = match number % 4 {
            0 => Client::connect(&socket).unwrap(),
            _ => Client::open(&socket).unwrap(),
        };
        match number % 4 {
            // The half of a message that says it has 16 MiB.
            1 => client.socket().write_all(&[1, 0, 0, 0, 0x20, 0, 0x80, 0x86, 0, 0]).unwrap(),
            // Asks and does not read, as long as the daemon listens.
            2 => {
                client.socket().set_nonblocking(true).unwrap();
                for serial in 0..2000 {
                    let procedure = wire::CONNECT_GET_CAPABILITIES;
                    let message = wire::call(procedure, serial, &Args::default());
                    if client.socket().write_all(&message).is_err() {
                        break;
                    }
                }
            }
            _ => {}
        }
        held.push(client);
    }
    // One that writes a byte at a time, and others are served between any two.
    let mut slow = Client::open(&socket).unwrap();
    let message = wire::call(wire::CONNECT_GET_CAPABILITIES, 7, &Args::default());
    for byte in &message {
        slow.socket().write_all(&[*byte]).unwrap();
        let mut other = Client::open(&socket).unwrap();
        let all = Args::default().number(1).number(0);
        soak.ask(&mut other, wire::CONNECT_LIST_ALL_DOMAINS, &all);
    }
    vm.virsh("snapshot-create-as {} one");
    vm.virsh("snapshot-revert {} one");
    vm.virsh("snapshot-delete {} one");
    let during = Taken::of(soak.pid);
    // 30 that do not read may hold 4 MiB of answers each, and no more.
    let most = before.resident + 30 * (6 << 20);
    assert!(during.resident <= most, "{before:?} {during:?}");
    drop(held);
    drop(slow);
    soak.settled(Some(before));
}

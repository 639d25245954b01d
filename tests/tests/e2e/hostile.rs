//! What no client of libvirt's sends: broken lengths, cut messages, promises that are not kept, and
//! the two inputs that libvirtd 11.3 does not survive. Each costs at most the connection it came
//! on; a neighbour, who was there before, and a newcomer are served as ever.

use std::path::{Path, PathBuf};
use std::time::Duration;

use virtsnap_tests::raw::{
    CALL_WITH_FDS, CONTINUE, ERROR, Message, OK, RawClient, STREAM, STREAM_HOLE, open_arguments,
    text,
};
use virtsnap_tests::{Daemon, Guest, GuestSpec, World, host, oracle, skip};

const CONNECT_OPEN: u32 = 1;
const CONNECT_GET_CAPABILITIES: u32 = 7;
const DOMAIN_LOOKUP_BY_NAME: u32 = 23;
const CONNECT_GET_LIB_VERSION: u32 = 157;
const DOMAIN_SNAPSHOT_CREATE_XML: u32 = 185;
const DOMAIN_SNAPSHOT_LIST_NAMES: u32 = 188;
const DOMAIN_OPEN_CONSOLE: u32 = 201;
const CONNECT_LIST_ALL_DOMAINS: u32 = 273;
const CONNECT_GET_ALL_DOMAIN_STATS: u32 = 344;

const ERR_RPC: u32 = 39;
const FROM_RPC: u32 = 7;

/// Somebody else on the same daemon.
struct Others {
    socket: PathBuf,
    neighbour: RawClient,
}

impl Others {
    fn of(world: &World) -> Self {
        let socket = world.socket();
        Self { neighbour: RawClient::open(&socket), socket }
    }

    #[track_caller]
    fn are_served(&mut self) {
        let asked = Message::call(CONNECT_GET_LIB_VERSION, &[]);
        assert_eq!(self.neighbour.ask(&asked).status, OK, "who was here before");
        assert_eq!(RawClient::open(&self.socket).ask(&asked).status, OK, "who comes now");
    }
}

fn dom(client: &mut RawClient, name: &str) -> Vec<u8> {
    let found = client.call(DOMAIN_LOOKUP_BY_NAME, &text(name));
    assert_eq!(found.status, OK);
    found.payload
}

#[test]
fn a_broken_length_ends_its_connection_and_no_other() {
    let world = World::new();
    let mut others = Others::of(&world);
    for length in [0, 3, 4, 20, 27, 4 + 33_554_432 + 1, 0x7fff_ffff, u32::MAX] {
        for opened in [true, false] {
            let mut client = match opened {
                true => RawClient::open(&world.socket()),
                false => RawClient::connect(&world.socket()),
            };
            let mut bytes = Message::call(CONNECT_GET_LIB_VERSION, &[]).bytes();
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            client.send(&bytes);
            client.is_closed();
            others.are_served();
        }
    }
    world.virsh.ok("list --all");
}

/// The longest message there may be is promised a thousand times, and never comes.
#[test]
fn a_promise_takes_no_memory() {
    let world = World::new();
    let mut others = Others::of(&world);
    let before = memory(&world);
    let mut clients: Vec<RawClient> = (0..100).map(|_| RawClient::open(&world.socket())).collect();
    for client in &mut clients {
        let mut bytes = Message::call(CONNECT_LIST_ALL_DOMAINS, &[]).bytes();
        bytes[..4].copy_from_slice(&33_554_432_u32.to_be_bytes());
        client.send(&bytes);
    }
    others.are_served();
    let more = memory(&world).saturating_sub(before);
    assert!(more < 64 << 20, "{} MiB for what has not come", more >> 20);
    drop(clients);
    others.are_served();
}

#[test]
fn a_message_may_be_cut_at_every_byte() {
    let world = World::new();
    let mut others = Others::of(&world);
    let call = Message::call(CONNECT_OPEN, &open_arguments()).bytes();
    for end in 0..call.len() {
        let mut client = RawClient::connect(&world.socket());
        client.send(&call[..end]);
    }
    others.are_served();
    // Byte by byte it arrives all the same.
    let mut client = RawClient::connect(&world.socket());
    let call = Message::call(CONNECT_OPEN, &open_arguments()).bytes();
    call.chunks(1).for_each(|byte| client.send(byte));
    assert_eq!(client.receive().expect("an answer").status, OK);
    others.are_served();
}

/// What a call is refused with, and that the connection goes on after it.
#[test]
fn odd_calls_are_refused_as_libvirtd_does() {
    let world = World::new();
    let mut others = Others::of(&world);
    let plain = Message::call(CONNECT_GET_LIB_VERSION, &[]);
    let with = |change: fn(&mut Message)| {
        let mut message = plain.clone();
        change(&mut message);
        message
    };
    let longer = u32::MAX.to_be_bytes();
    let cases = [
        (with(|m| m.program = 7), ERR_RPC, "Cannot find program 7 version 1"),
        (with(|m| m.version = 2), ERR_RPC, "version 2"),
        (with(|m| m.procedure = 0), ERR_RPC, "unknown procedure: 0"),
        (with(|m| m.procedure = 9999), ERR_RPC, "unknown procedure: 9999"),
        (with(|m| m.procedure = u32::MAX), ERR_RPC, "unknown procedure: -1"),
        // The number of an event.
        (with(|m| m.procedure = 318), ERR_RPC, "unknown procedure: 318"),
        (with(|m| m.status = 1), ERR_RPC, "Unexpected message status 1"),
        (with(|m| m.status = 99), ERR_RPC, "Unexpected message status 99"),
        (Message::call(DOMAIN_LOOKUP_BY_NAME, &[]), ERR_RPC, "Unable to decode"),
        // A string of 4 GiB, and arrays of so many elements.
        (Message::call(DOMAIN_LOOKUP_BY_NAME, &longer), ERR_RPC, "Unable to decode"),
        (Message::call(CONNECT_GET_ALL_DOMAIN_STATS, &longer), ERR_RPC, "Unable to decode"),
        (Message::call(CONNECT_OPEN, &open_arguments()), 1, "connection already open"),
    ];
    let mut client = RawClient::open(&world.socket());
    for (message, code, words) in cases {
        let answer = client.ask(&message);
        let (found, domain, said) = answer.refusal();
        assert_eq!((found, domain), (code, FROM_RPC), "{message:?}: {said}");
        assert!(said.contains(words), "{message:?}: {said}");
        let echoed = (answer.program, answer.version, answer.procedure);
        assert_eq!(echoed, (message.program, message.version, message.procedure));
        if words != "connection already open" {
            assert_eq!(client.ask(&plain).status, OK, "after {message:?}");
        }
        others.are_served();
    }
    let mut early = RawClient::connect(&world.socket());
    let (code, domain, said) = early.ask(&plain).refusal();
    assert_eq!((code, domain), (1, FROM_RPC), "{said}");
    assert!(said.contains("connection not open"), "{said}");
    others.are_served();
}

/// Replies, events and kinds that nobody knows are not for a daemon: they are left without a word.
#[test]
fn what_is_no_call_is_left_without_an_answer() {
    let world = World::new();
    let mut others = Others::of(&world);
    let mut client = RawClient::open(&world.socket());
    for kind in [1, 2, 5, 7, 9, u32::MAX] {
        // The count of descriptors, where there is one.
        let message = Message { kind, ..Message::call(CONNECT_GET_LIB_VERSION, &[0; 4]) };
        client.post(&message);
        let serial = client.post(&Message::call(CONNECT_GET_LIB_VERSION, &[]));
        let answer = client.receive().expect("the connection is open");
        assert_eq!((answer.serial, answer.status), (serial, OK), "after a message of kind {kind}");
        others.are_served();
    }
    // Data, holes and ends of streams that nobody opened.
    for (kind, status) in
        [(STREAM, CONTINUE), (STREAM, OK), (STREAM, ERROR), (STREAM_HOLE, CONTINUE)]
    {
        let stray = Message { kind, status, ..Message::call(DOMAIN_OPEN_CONSOLE, &[0; 12]) };
        client.post(&stray);
        assert_eq!(client.call(CONNECT_GET_LIB_VERSION, &[]).status, OK);
        others.are_served();
    }
}

#[test]
fn descriptors_that_are_announced_have_to_come() {
    let world = World::new();
    let mut others = Others::of(&world);
    let announce = |count: u32| {
        let call = Message::call(CONNECT_GET_LIB_VERSION, &count.to_be_bytes());
        Message { kind: CALL_WITH_FDS, ..call }
    };
    // Waited for: the daemon has nothing to say yet, and serves the others.
    let mut waiting = RawClient::open(&world.socket());
    waiting.post(&announce(32));
    others.are_served();
    // Other messages stand where they should be.
    for _ in 0..2 {
        waiting.post(&Message::call(CONNECT_GET_LIB_VERSION, &[]));
    }
    waiting.is_closed();
    for count in [33, 0x7fff_ffff, u32::MAX] {
        let mut client = RawClient::open(&world.socket());
        client.post(&announce(count));
        client.is_closed();
        others.are_served();
    }
    // No count at all.
    let mut client = RawClient::open(&world.socket());
    client.post(&Message { kind: CALL_WITH_FDS, ..Message::call(CONNECT_GET_LIB_VERSION, &[]) });
    client.is_closed();
    others.are_served();
}

fn names(domain: &[u8], most: i32) -> Vec<u8> {
    [domain, &most.to_be_bytes(), &[0; 4]].concat()
}

/// The first of the two: libvirtd's process is gone (`maxnames` 0 while a snapshot exists).
#[test]
fn no_room_for_names_is_no_crash() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("snapshot-create-as {} one");
    let mut others = Others::of(&world);
    let mut client = RawClient::open(&world.socket());
    let domain = dom(&mut client, "vm");
    let none = client.call(DOMAIN_SNAPSHOT_LIST_NAMES, &names(&domain, 0));
    assert_eq!((none.status, none.payload.as_slice()), (OK, &[0; 4][..]), "an empty list");
    others.are_served();
    for (most, words) in [(-1, "non-negative"), (i32::MIN, "non-negative"), (20_000, "maxnames > ")]
    {
        let refused = client.call(DOMAIN_SNAPSHOT_LIST_NAMES, &names(&domain, most));
        let (code, _, said) = refused.refusal();
        assert_eq!(code, ERR_RPC, "{said}");
        assert!(said.contains(words), "{most}: {said}");
        others.are_served();
    }
    let all = client.call(DOMAIN_SNAPSHOT_LIST_NAMES, &names(&domain, 16_384));
    assert!(all.status == OK && all.payload.ends_with(&text("one")));
}

/// A console of a guest that has not run yet.
fn console(world: &World) -> (Guest<'_>, RawClient, u32) {
    let vm = match world.virsh.run("domstate vm").success {
        true => world.guest(GuestSpec::idle("vm")),
        false => world.define(GuestSpec::idle("vm")),
    };
    vm.virsh("start {} --paused");
    let mut client = RawClient::open(&world.socket());
    let domain = dom(&mut client, "vm");
    let call = Message::call(DOMAIN_OPEN_CONSOLE, &[domain.as_slice(), &[0; 8]].concat());
    let serial = client.post(&call);
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.serial, answer.status), (serial, OK));
    (vm, client, serial)
}

fn packet(client: &mut RawClient, serial: u32, kind: u32, status: u32, payload: &[u8]) {
    let message = Message { kind, status, serial, ..Message::call(DOMAIN_OPEN_CONSOLE, payload) };
    client.send(&message.bytes());
}

/// A hole of 64 KiB.
fn hole(client: &mut RawClient, serial: u32) {
    let length = [65_536_i64.to_be_bytes().as_slice(), &[0; 4]].concat();
    packet(client, serial, STREAM_HOLE, CONTINUE, &length);
}

/// The second: a hole on a console, which knows of none. libvirtd serves nobody any more.
#[test]
fn a_hole_on_a_console_ends_that_stream_alone() {
    let world = World::with(Daemon::Virtsnapd);
    let (vm, mut client, serial) = console(&world);
    let mut others = Others::of(&world);
    hole(&mut client, serial);
    let end = client.receive().expect("the connection is open");
    assert_eq!((end.kind, end.serial, end.status), (STREAM, serial, ERROR), "{end:?}");
    others.are_served();
    // What comes after the end is not for anybody.
    hole(&mut client, serial);
    packet(&mut client, serial, STREAM, CONTINUE, b"late");
    packet(&mut client, serial, STREAM, OK, &[]);
    packet(&mut client, serial, STREAM, ERROR, &[]);
    assert_eq!(client.call(CONNECT_GET_LIB_VERSION, &[]).status, OK);
    others.are_served();
    assert_eq!(vm.state(), "paused");
}

#[test]
fn a_stream_ends_once() {
    let world = World::new();
    for (how, after) in [(OK, OK), (OK, CONTINUE), (ERROR, CONTINUE), (ERROR, OK), (ERROR, ERROR)] {
        let (vm, mut client, serial) = console(&world);
        let mut others = Others::of(&world);
        packet(&mut client, serial, STREAM, how, &[]);
        let end = loop {
            let message = client.receive().expect("the connection is open");
            if message.status != CONTINUE {
                break message;
            }
        };
        assert_eq!((end.kind, end.serial, end.status), (STREAM, serial, OK), "{end:?}");
        let late: &[u8] = if after == CONTINUE { b"late" } else { b"" };
        packet(&mut client, serial, STREAM, after, late);
        let asked = client.post(&Message::call(CONNECT_GET_LIB_VERSION, &[]));
        let answer = client.receive().expect("the connection is open");
        assert_eq!(answer.serial, asked, "nothing was said to the second end: {answer:?}");
        others.are_served();
        vm.virsh("destroy {}");
    }
}

/// Resident memory of the daemon, in bytes.
fn memory(world: &World) -> usize {
    let daemon = *world.processes("virtsnapd").first().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has some");
    let kib: usize = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib << 10
}

/// Who asks and does not read is not read from any more, and gets nothing built up for it.
#[test]
fn a_client_that_does_not_read_costs_little() {
    let world = World::with(Daemon::Virtsnapd);
    let mut others = Others::of(&world);
    let size = RawClient::open(&world.socket()).call(CONNECT_GET_CAPABILITIES, &[]).payload.len();
    assert!(size > 1000, "an answer worth asking for");
    let before = memory(&world);
    let socket = world.socket();
    let silent: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || never_reads(&socket))
        })
        .collect();
    for _ in 0..50 {
        others.are_served();
    }
    let more = memory(&world).saturating_sub(before);
    assert!(more < 256 << 20, "{} MiB for four clients", more >> 20);
    world.virsh.ok("list --all");
    drop(world);
    silent.into_iter().for_each(|thread| thread.join().expect("it ends with the daemon"));
}

/// Asks until nobody takes any more of it.
fn never_reads(socket: &Path) {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let mut socket = UnixStream::connect(socket).expect("the daemon listens");
    socket.set_write_timeout(Some(Duration::from_secs(10))).expect("a socket");
    let open = Message::call(CONNECT_OPEN, &open_arguments()).bytes();
    socket.write_all(&open).expect("it is short");
    let ask = Message::call(CONNECT_GET_CAPABILITIES, &[]).bytes().repeat(100);
    for _ in 0..2000 {
        if socket.write_all(&ask).is_err() {
            return;
        }
    }
}

/// A boot sector that writes to the serial port for ever.
fn babbler() -> [u8; 512] {
    let mut sector = [0; 512];
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the out
    sector[..8].copy_from_slice(&[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Whoever opens a console and does not read it holds up neither the daemon nor the guest.
#[test]
fn a_console_that_floods_and_is_not_read_costs_little() {
    let world = World::with(Daemon::Virtsnapd);
    let vm = world.define(GuestSpec::idle("vm").disks(&["raw"]));
    let disk = std::fs::OpenOptions::new().write(true).open(vm.disk("vda")).expect("the disk");
    std::os::unix::fs::FileExt::write_all_at(&disk, &babbler(), 0).expect("the disk");
    vm.virsh("start {}");
    let mut others = Others::of(&world);
    let mut slow = RawClient::open(&world.socket());
    let domain = dom(&mut slow, "vm");
    let open = Message::call(DOMAIN_OPEN_CONSOLE, &[domain.as_slice(), &[0; 8]].concat());
    assert_eq!(slow.ask(&open).status, OK);
    let flood = |client: &mut RawClient| {
        let mut heard = 0;
        while heard < 256 << 10 {
            let packet = client.receive().expect("the connection is open");
            assert_eq!((packet.kind, packet.status), (STREAM, CONTINUE));
            heard += packet.payload.iter().filter(|&&byte| byte == b'x').count();
        }
    };
    flood(&mut slow);
    // From here on it reads no more.
    let before = memory(&world);
    for _ in 0..50 {
        others.are_served();
    }
    assert_eq!(vm.state(), "running");
    let more = memory(&world).saturating_sub(before);
    assert!(more < 16 << 20, "{} MiB for one console", more >> 20);
    // Its place is free when it has gone, and what was not read for it is lost.
    drop(slow);
    let mut next = RawClient::open(&world.socket());
    host::wait("the console", 60, || (next.ask(&open).status == OK).then_some(()));
    flood(&mut next);
    vm.virsh("destroy {}");
    others.are_served();
}

/// A client that goes away in the middle of a snapshot cancels nothing.
#[test]
fn a_snapshot_outlives_who_asked_for_it() {
    let world = World::new();
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("start {}");
    let mut client = RawClient::open(&world.socket());
    let domain = dom(&mut client, "vm");
    let xml = text("<domainsnapshot><name>one</name></domainsnapshot>");
    let call =
        Message::call(DOMAIN_SNAPSHOT_CREATE_XML, &[domain.as_slice(), &xml, &[0; 4]].concat());
    client.post(&call);
    drop(client);
    host::wait("the snapshot", 60, || (vm.snapshots() == ["one"]).then_some(()));
    vm.virsh("snapshot-revert {} one");
    Others::of(&world).are_served();
}

/// That the two inputs are what they are said to be: libvirtd 11.3 does not survive them.
#[test]
fn libvirtd_dies_of_one_and_hangs_of_the_other() {
    if let Some(why) = oracle::unavailable() {
        skip!("{why}");
    }
    let world = World::with(Daemon::Libvirtd);
    let vm = world.define(GuestSpec::idle("vm"));
    vm.virsh("snapshot-create-as {} one");
    let mut client = RawClient::open(&world.socket());
    let domain = dom(&mut client, "vm");
    client.post(&Message::call(DOMAIN_SNAPSHOT_LIST_NAMES, &names(&domain, 0)));
    assert_eq!(client.receive(), None, "it says no more");
    assert!(!world.virsh.run("version").success, "nor to anybody else");
    drop(world);

    let world = World::with(Daemon::Libvirtd);
    let (_, mut client, serial) = console(&world);
    let mut neighbour = RawClient::open(&world.socket());
    hole(&mut client, serial);
    client.post(&Message::call(CONNECT_GET_LIB_VERSION, &[]));
    neighbour.patience(Duration::from_secs(5));
    neighbour.post(&Message::call(CONNECT_GET_LIB_VERSION, &[]));
    let answer = neighbour.try_receive();
    assert!(answer.is_err(), "the neighbour has an answer: {answer:?}");
}

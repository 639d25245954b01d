//! Seeds: what the other fixtures have recorded, in the form that each target takes.

mod sessions;

use std::fs;
use std::path::Path;

use virtsnap_qemu::fuzzing::compress;

use crate::files;

type Seeds = Vec<Vec<u8>>;

/// Writes `fixtures/fuzz/TARGET/seed-N` anew.
pub(crate) fn write(fixtures: &Path) {
    let snapshots = snapshots(fixtures);
    let corpora: [(&str, Seeds); 18] = [
        ("frames", frames(fixtures)),
        ("session", sessions::all(fixtures)),
        ("xdr", payloads(fixtures)),
        ("xml", trees(fixtures)),
        ("snapshot", snapshots.clone()),
        ("schema", snapshots),
        ("domain", domains(fixtures)),
        ("xen_domain", of_xen(fixtures, &["defined"], ".xml")),
        ("planner", scripts(fixtures)),
        ("journal", journals(fixtures)),
        ("image_header", image_headers()),
        ("save_image", save_images()),
        ("xl_files", xl_files(fixtures)),
        ("memory_stream", streams()),
        ("status", statuses(fixtures)),
        ("monitor", texts(MONITOR)),
        ("configuration", of_xen(fixtures, &["started", "defined"], ".json")),
        ("image_tool", texts(IMAGE_TOOL)),
    ];
    for (target, seeds) in corpora {
        let directory = fixtures.join("fuzz").join(target);
        fs::create_dir_all(&directory).expect("a directory for the seeds");
        for (name, _) in files(&directory).iter().filter(|(name, _)| name.starts_with("seed-")) {
            fs::remove_file(directory.join(name)).expect("an old seed");
        }
        for (n, seed) in seeds.iter().enumerate() {
            fs::write(directory.join(format!("seed-{n:02}")), seed).expect("a new seed");
        }
    }
}

/// `kind`, and the bytes of a frame, of everything that clients and libvirtd were heard to say.
fn recorded(fixtures: &Path) -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    for (_, text) in files(&fixtures.join("rpc")) {
        let text = String::from_utf8(text).expect("hexadecimal");
        for line in text.lines() {
            let (kind, hex) = line.split_once(' ').expect("kind and bytes");
            let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
            let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).expect("digits"));
            frames.push((kind.to_owned(), bytes.collect()));
        }
    }
    frames
}

/// Several messages one after the other, to be cut in different ways; and one with descriptors.
fn frames(fixtures: &Path) -> Seeds {
    let short: Vec<Vec<u8>> = recorded(fixtures)
        .into_iter()
        .map(|(_, frame)| frame)
        .filter(|frame| frame.len() <= 256)
        .collect();
    let mut seeds: Seeds = short
        .chunks(12)
        .zip([0, 1, 3, 27, 40, 255].into_iter().cycle())
        .map(|(frames, piece)| [&[piece], frames.concat().as_slice()].concat())
        .take(24)
        .collect();
    let mut counted = seeds[0].clone();
    let at = counted.len();
    let longer = u32::try_from(short[0].len() + 4).expect("short");
    counted.extend(longer.to_be_bytes());
    counted.extend(&short[0][4..16]);
    counted.extend(4_u32.to_be_bytes());
    counted.extend(&short[0][20..28]);
    counted.extend(0_u32.to_be_bytes());
    counted.extend(&short[0][28..]);
    assert!(counted.len() > at);
    seeds.push(counted);
    seeds
}

fn payloads(fixtures: &Path) -> Seeds {
    let seed = |(kind, frame): (String, Vec<u8>)| {
        let part = match kind.as_str() {
            "call" => 0,
            "reply" => 1,
            "event" => 2,
            _ => 3,
        };
        let is_qemu = u8::from(frame[7] == 0x87);
        [&[part, is_qemu], &frame[14..16], &frame[28..]].concat()
    };
    let all = recorded(fixtures).into_iter().filter(|(_, frame)| frame.len() <= 1024).map(seed);
    all.step_by(6).take(60).collect()
}

fn trees(fixtures: &Path) -> Seeds {
    let mut seeds = texts(&[
        "<?xml version='1.0' encoding='UTF-8'?>\n<!-- c -->\n<a b='&lt;&#x41;&quot;\t'>x &amp; \
         <![CDATA[<y>]]>&#98;<?p i?><!-- in --></a>\n<!-- after -->",
        "<a xmlns='u' xmlns:p='v' p:b='c'><p:d xmlns:p='w'/>text<e/>more\r\n</a>",
        "<a><b><c><d><e><f/></e></d></c></b></a>",
    ]);
    let files = files(&fixtures.join("xml")).into_iter().map(|(_, text)| text);
    seeds.extend(files.filter(|text| text.len() <= 8192));
    seeds
}

/// Requests of the planner's scripts, records of the store, and what clients have shown us.
fn snapshots(fixtures: &Path) -> Seeds {
    let mut seeds = Seeds::new();
    for (name, text) in files(&fixtures.join("plans")) {
        if name.ends_with(".script") {
            let text = String::from_utf8(text).expect("a script");
            let requests =
                text.lines().filter_map(|line| line.find("<domainsnapshot").map(|at| &line[at..]));
            seeds.extend(requests.map(|request| request.as_bytes().to_vec()));
        }
    }
    seeds.sort();
    seeds.dedup();
    seeds = seeds.into_iter().step_by(2).take(30).collect();
    let stored = fixtures.join("store/v1/domains/5f2b1c1e-0a5c-4d8e-9a57-3c1b7a0d4e11/moments");
    for directory in [stored, fixtures.join("xml")] {
        let records = files(&directory).into_iter().map(|(_, text)| text);
        seeds.extend(records.filter(|text| {
            let is_snapshot = String::from_utf8_lossy(text).contains("<domainsnapshot");
            is_snapshot && text.len() <= 12_000
        }));
    }
    seeds
}

/// What the plans of `fixtures/plans` are made from, a few acts at a time.
fn scripts(fixtures: &Path) -> Seeds {
    let mut seeds = Seeds::new();
    for (name, text) in files(&fixtures.join("plans")) {
        let Some(name) = name.strip_suffix(".script") else { continue };
        let text = String::from_utf8(text).expect("a script");
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let first = if name.starts_with("firmware") { name } else { "start" };
        for acts in lines.chunks(20).take(5) {
            seeds.push([&[first], acts].concat().join("\n").into_bytes());
        }
    }
    let more = [
        "start\nfull a\ndisks b\nagain a current\nwrite vda\nfull c\nrevert a\ndelete b all",
        "disks a\ndisks b\nagain b\ndelete a metadata\nrevert b\ndelete b consolidated",
        "start\nhalted a\nrevert a running\ndisks b unrecorded\ndisks c aside\npause\nfull d live",
    ];
    seeds.extend(more.map(|script| script.as_bytes().to_vec()));
    seeds
}

fn domains(fixtures: &Path) -> Seeds {
    let inputs = files(&fixtures.join("domain/complete")).into_iter();
    let inputs = inputs.filter(|(name, text)| {
        name.ends_with(".xml") && !name.ends_with(".expected.xml") && text.len() <= 6000
    });
    inputs.map(|(_, text)| text).step_by(2).take(40).collect()
}

/// Without the checksums, which the target adds, and after the place at which it is cut.
fn journals(fixtures: &Path) -> Seeds {
    let mut seeds = Seeds::new();
    for (_, shelf) in shelves(fixtures) {
        let text = String::from_utf8(shelf).expect("JSON");
        let lines: Vec<&str> = text.lines().filter_map(|line| line.get(17..)).collect();
        for (count, place) in [(1, 0), (2, 300), (3, 700), (lines.len(), 999), (lines.len(), 2000)]
        {
            let lines = lines[..count.min(lines.len())].join("\n");
            seeds.push([&u16::to_be_bytes(place), lines.as_bytes()].concat());
        }
    }
    let head = seeds[0].clone();
    let entries: [&[u8]; 3] = [
        b"\n{\"acting\":0}\n\"pivoting\"\n\"pivoted\"\n{\"finished\":0}\n{\"finished\":1}",
        b"\n{\"acting\":0}\n{\"acting\":1}\n\"pivoting\"\n{\"undone\":1}\n{\"undone\":0}",
        b"\n{\"acting\":18446744073709551615}",
    ];
    seeds.extend(entries.map(|entries| [head.as_slice(), entries].concat()));
    seeds
}

fn shelves(fixtures: &Path) -> Vec<(String, Vec<u8>)> {
    let domains = fixtures.join("store/v1/domains");
    let mut found = Vec::new();
    for entry in fs::read_dir(&domains).expect("recorded domains") {
        let directory = entry.expect("a readable directory").path();
        found.extend(files(&directory).into_iter().filter(|(name, _)| name == "journal.jsonl"));
    }
    found
}

/// Offset and bytes of a field.
type Field<'a> = (usize, &'a [u8]);

fn image(length: usize, fields: &[Field<'_>]) -> Vec<u8> {
    let mut image = vec![0; length];
    for (at, bytes) in fields {
        image[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

fn image_headers() -> Seeds {
    let common: [Field<'_>; 4] = [
        (0, b"QFI\xfb\0\0\0\x03"),
        (20, &[0, 0, 0, 16]),
        (24, &[0, 0, 0, 0, 0x40, 0, 0, 0]),
        (100, &[0, 0, 0, 112]),
    ];
    let backing: [Field<'_>; 3] = [
        (8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 14]),
        (112, b"\xe2\x79\x2a\xca\0\0\0\x05qcow2"),
        (256, b"/images/base.q"),
    ];
    let with = |fields: &[Field<'_>]| image(512, &[&common, fields].concat());
    let names: [&[u8]; 4] = [
        b"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i\"}}",
        b"nbd://host:10809/e",
        b"file:base.qcow2",
        b"nbd:unix:/run/s:exportname=e",
    ];
    let mut seeds = vec![
        with(&[]),
        with(&backing),
        // Version 2, which has no extensions' length.
        with(&[backing[0], backing[2], (7, &[2]), (72, b"\xe2\x79\x2a\xca\0\0\0\x03raw")]),
        // An external data file.
        with(&[(79, &[4])]),
        // L1 tables: one entry, as many as there may be, more, outside of the file.
        with(&[(36, &[0, 0, 0, 1]), (40, &[0, 0, 0, 0, 0, 3, 0, 0])]),
        with(&[(36, &[0, 0x40, 0, 0]), (40, &[0, 0, 0, 0, 0, 3, 0, 0])]),
        with(&[(36, &[0xff; 4]), (40, &[0xff; 8])]),
        // Snapshots: their number, and where they are.
        with(&[(60, &[0, 0, 0xff, 0xff]), (64, &[0x7f, 0xff, 0xff, 0xff])]),
        // Extensions without end.
        with(&[(112, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff])]),
        b"QED\0\0\0\x01\0".to_vec(),
    ];
    seeds.extend(names.map(|name| {
        let length = u32::try_from(name.len()).expect("short").to_be_bytes();
        with(&[(8, &[0, 0, 0, 0, 0, 0, 1, 0]), (16, &length), (256, name)])
    }));
    seeds
}

fn save_images() -> Seeds {
    let texts: [(&[u8], u32); 4] = [
        (b"<domain type='qemu'><name>vm</name></domain>\0", 0),
        (b"<domain/>\0<cookie><cpu mode='custom'/></cookie>\0", 10),
        (b"<domain/>\0", 10),
        (b"\0", 1),
    ];
    let mut seeds = Seeds::new();
    for (n, (text, cookie)) in texts.into_iter().enumerate() {
        let room = u32::try_from(text.len() + 8).expect("short");
        let format = u32::try_from(n).expect("short");
        for swapped in [false, true] {
            let mut bytes = b"LibvirtQemudSave".to_vec();
            for number in [2, room, 1, format, cookie] {
                let number = if swapped { u32::swap_bytes(number) } else { number };
                bytes.extend(number.to_ne_bytes());
            }
            bytes.resize(92, 0);
            bytes.extend(text);
            bytes.extend([0; 8]);
            bytes.extend(b"QEVM");
            seeds.push(bytes);
        }
    }
    seeds
}

/// Save images of xl's form, and what is told of snapshots.
fn xl_files(fixtures: &Path) -> Seeds {
    let mut seeds: Seeds = of_xen(fixtures, &["started"], ".json")
        .into_iter()
        .chain([br#"{"virtsnap":{"definition":"<domain type='xen'/>","running":false}}"#.to_vec()])
        .map(|config| {
            let length = u32::try_from(config.len() + 1).expect("short");
            let mut bytes = b"Xen saved domain, xl format\n \0 \r".to_vec();
            for number in [0x0102_0304, 3, 0, length + 4, length] {
                bytes.extend(number.to_ne_bytes());
            }
            bytes.extend(config);
            bytes.extend(b"\0LibxlFmt\0\0\0\x02");
            bytes
        })
        .collect();
    let information = "# mine\nsnapshot_name=\"a'b\\\"\"\nsnapshot_creationtime='1397207577'\n";
    seeds.push(information.as_bytes().to_vec());
    seeds.push(format!("{information}snapshot_save=\"/srv/vm.save\" # memory\n").into_bytes());
    seeds
}

/// The files of that ending in `fixtures/xen`.
fn of_xen(fixtures: &Path, directories: &[&str], ending: &str) -> Seeds {
    let all = directories.iter().flat_map(|of| files(&fixtures.join("xen").join(of)));
    all.filter(|(name, _)| name.ends_with(ending)).map(|(_, text)| text).collect()
}

fn streams() -> Seeds {
    let mut memory: Vec<u8> = (0..2000_u32).map(|n| (n * n / 300) as u8).collect();
    memory.extend([0; 6000]);
    let mut seeds = Seeds::new();
    for choice in [0, 1, 2, 3, 5] {
        for length in [0, 300, memory.len()] {
            seeds.push(compress(choice, &memory[..length]).expect("a format that is written"));
        }
    }
    seeds
}

fn statuses(fixtures: &Path) -> Seeds {
    let mut seeds: Seeds =
        files(&fixtures.join("domain/status")).into_iter().map(|(_, text)| text).collect();
    seeds.push(br#"{"tag":"s1","images":["/images/vm.qcow2"]}"#.to_vec());
    let of_xen = br#"{"version":1,"uuid":"5c84adcc-bd59-788a-96d2-195f9b599cfe","name":"vm","id":3,
        "state":"paused-for-snapshot","live":"<domain/>","saving":"/srv/vm.save"}"#;
    seeds.push(of_xen.to_vec());
    seeds
}

fn texts(texts: &[&str]) -> Seeds {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// As QEMU 10.0 says it, in shorter words.
const MONITOR: &[&str] = &[
    r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":"Debian"},"capabilities":["oob"]}}
{"return":{},"id":1}"#,
    r#"{"error":{"class":"GenericError","desc":"Node 'libvirt-1-format' is busy"},"id":7}"#,
    r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"}
{"timestamp":{"seconds":1,"microseconds":3},"event":"RESUME"}"#,
    r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}
{"event":"RESET","data":{"guest":true,"reason":"guest-reset"}}"#,
    r#"{"event":"BLOCK_IO_ERROR","data":{"device":"","qom-path":"/machine/peripheral/sata0-0-0","node-name":"libvirt-1-format","operation":"write","action":"stop","nospace":true,"reason":"No space left on device"}}"#,
    r#"{"event":"DEVICE_TRAY_MOVED","data":{"device":"","tray-open":true,"id":"sata0-0-1"}}"#,
    r#"{"event":"RTC_CHANGE","data":{"offset":-3600,"qom-path":"/machine/unattached/device[8]/rtc"}}
{"event":"RTC_CHANGE","data":{"offset":9223372036854775807}}"#,
    r#"{"event":"WATCHDOG","data":{"action":"reset"}}
{"event":"GUEST_PANICKED","data":{"action":"pause","info":{"type":"hyper-v","arg1":1}}}"#,
    r#"{"event":"BALLOON_CHANGE","data":{"actual":1073741824}}
{"event":"VSERPORT_CHANGE","data":{"id":"channel0","open":true}}"#,
    r#"{"event":"BLOCK_JOB_READY","data":{"device":"commit-vda","type":"commit","len":65536,"offset":65536,"speed":0}}
{"event":"JOB_STATUS_CHANGE","data":{"id":"commit-vda","status":"ready"}}"#,
    r#"{"event":"DEVICE_DELETED","data":{"device":"sata0-0-0","path":"/machine/peripheral/sata0-0-0"}}
{"event":"MIGRATION","data":{"status":"completed"}}
{"event":"SUSPEND"}
{"event":"WAKEUP"}
{"event":"POWERDOWN"}"#,
    r#"{"return":[{"node-name":"libvirt-1-format","drv":"qcow2","file":"/images/vm.qcow2","ro":false,"image":{"format":"qcow2","virtual-size":1048576,"actual-size":200704,"filename":"/images/vm.qcow2","backing-filename":"base","backing-filename-format":"raw","snapshots":[{"id":"1","name":"s1","vm-state-size":100,"date-sec":1,"date-nsec":0,"vm-clock-sec":9223372036854775807,"vm-clock-nsec":1}]}}],"id":3}"#,
    r#"{"return":[{"id":"commit-vda","type":"commit","status":"ready","current-progress":1,"total-progress":2}],"id":4}"#,
    r#"{"return":{"nodes":[{"id":1,"type":"block-backend","name":"/machine/vda"},{"id":2,"type":"block-driver","name":"libvirt-2-format"},{"id":3,"type":"block-driver","name":"libvirt-1-format"}],"edges":[{"parent":1,"child":2,"name":"root","perm":[],"shared-perm":[]},{"parent":2,"child":3,"name":"backing"},{"parent":3,"child":2,"name":"backing"}]},"id":5}"#,
    r#"{"return":{"status":"active","total-time":100,"expected-downtime":300,"setup-time":1,"ram":{"transferred":1,"remaining":2,"total":3,"duplicate":4,"normal":5,"normal-bytes":6,"dirty-pages-rate":7,"dirty-sync-count":8,"page-size":4096,"mbps":1.5}},"id":6}"#,
];

const IMAGE_TOOL: &[&str] = &[
    r#"{"virtual-size":1048576,"filename":"/images/vm.qcow2","cluster-size":65536,"format":"qcow2","actual-size":200704,"format-specific":{"type":"qcow2","data":{"compat":"1.1","lazy-refcounts":false}},"full-backing-filename":"/images/base","backing-filename":"base","backing-filename-format":"qcow2","dirty-flag":false}"#,
    r#"{"virtual-size":1,"format":"qcow2","snapshots":[{"id":"1","name":"s1","vm-state-size":100,"date-sec":1700000000,"date-nsec":0,"vm-clock-sec":10,"vm-clock-nsec":500},{"id":"1","name":"s2","vm-state-size":-1,"date-sec":-1,"date-nsec":0,"vm-clock-sec":-1,"vm-clock-nsec":-1}]}"#,
    r#"{"virtual-size":-1,"format":"raw","backing-filename":"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/x\"}}"}"#,
    r#"{"image-end-offset":393216,"total-clusters":16,"check-errors":0,"corruptions":1,"leaks":2,"allocated-clusters":3,"filename":"/images/vm.qcow2","format":"qcow2"}"#,
];

//! `docs/feature-table.md` is what `fixtures/features.txt` says; every feature that was asked for is
//! in it, and every test that it names is in the tree. `UPDATE_EXPECT=1` writes the document anew.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use regex::Regex;
use virtsnap_tests::host::root;
use virtsnap_tests::matrix;

/// The prefix of an id, from which number to which, and what the group is.
type Group = (&'static str, &'static [(u32, u32)], &'static str);
const GROUPS: [Group; 16] = [
    ("S2", &[(1, 78)], "RFC v2 of the snapshot API (2011)"),
    ("S0", &[(1, 17)], "xl domain snapshots, overview (2014)"),
    ("S1", &[(1, 20)], "Xen VM snapshots, RFC v2 (2014)"),
    ("S3", &[(1, 8)], "snapshot API, v3 (2010)"),
    ("S4", &[(1, 13)], "snapshot API (2010)"),
    ("L1", &[(1, 10)], "calls"),
    ("L2", &[(1, 10)], "flags of create"),
    ("L3", &[(1, 11)], "flags of revert, delete, list and XML"),
    ("L4", &[(1, 14)], "XML elements"),
    ("L5", &[(1, 13)], "behaviour around snapshots"),
    ("R", &[(1, 35), (40, 47), (50, 62)], "what libvirt 11.3's QEMU driver refuses"),
    ("H", &[(1, 15)], "hazards in libvirt 11.3"),
    ("U", &[(1, 46)], "what users ask for"),
    ("C", &[(1, 26)], "what comparable systems have"),
    ("K", &[(1, 19)], "consumers"),
    ("A", &[(1, 11)], "acceptance matrix"),
];

/// Where tests run a real QEMU, or the daemon with real clients.
const REAL: [&str; 5] =
    ["tests/tests/", "driver/qemu/", "driver/daemon/", "driver/store/", "driver/rpc/"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Yes,
    Simulated,
    Differs,
    No,
    Other,
    Xen,
}

impl State {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "yes" => Self::Yes,
            "simulated" => Self::Simulated,
            "differs" => Self::Differs,
            "no" => Self::No,
            "other" => Self::Other,
            "xen" => Self::Xen,
            _ => return None,
        })
    }

    fn shown(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Simulated => "yes, *simulated*",
            Self::Differs => "differs",
            Self::No => "no",
            Self::Other => "does not concern QEMU",
            Self::Xen => "Xen: later",
        }
    }
}

#[derive(Debug)]
struct Row {
    id: String,
    state: State,
    what: String,
    tests: Vec<String>,
    note: String,
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("fixtures/features.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let row = |line: &str| {
        let mut parts = line.split(" |").map(|part| part.trim().to_owned());
        let mut next = || parts.next().unwrap_or_default();
        let (id, state, what, tests, note) = (next(), next(), next(), next(), next());
        let state = State::parse(&state).unwrap_or_else(|| panic!("{line}: what is '{state}'?"));
        assert!(!what.is_empty(), "{line}: what is it?");
        let tests = tests.split_whitespace().map(str::to_owned).collect();
        Row { id, state, what, tests, note }
    };
    lines.map(row).collect()
}

/// Name of each test → files that have one of that name.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let test = Regex::new(r"#\[(?:tokio::)?test[^\n]*\n(?:\s*#\[[^\n]*\n)*\s*(?:async )?fn (\w+)");
    let test = test.unwrap();
    let listed_test = Regex::new(r#"(?m)^    (\w+): ""#).unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in listed.lines().filter(|file| Path::new(&root().join(file)).is_file()) {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        // A macro that makes tests of a list of names.
        let made = if text.contains("fn $test()") { &listed_test } else { &test };
        for name in test.captures_iter(&text).chain(made.captures_iter(&text)) {
            found.entry(name[1].to_owned()).or_default().insert(file.to_owned());
        }
    }
    found
}

#[test]
fn every_feature_is_in_the_table_once() {
    let mut expected = BTreeSet::new();
    for (prefix, ranges, _) in GROUPS {
        for (from, to) in ranges {
            expected.extend((*from..=*to).map(|n| format!("{prefix}-{n:02}")));
        }
    }
    let rows = rows();
    let found: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    assert_eq!(found.len(), rows.len(), "an id is there twice");
    let missing: Vec<_> = expected.symmetric_difference(&found).collect();
    assert!(missing.is_empty(), "missing, or not asked for: {missing:?}");
}

#[test]
fn every_test_that_is_named_is_there() {
    let tests = tests();
    let mut wrong = Vec::new();
    for row in rows() {
        let files = |name: &String| tests.get(name);
        let lost = row.tests.iter().filter(|name| files(name).is_none());
        wrong.extend(lost.map(|name| format!("{}: no test {name}", row.id)));
        let mut all = row.tests.iter().filter_map(files).flatten();
        let is_real = all.any(|file| REAL.iter().any(|place| file.starts_with(place)));
        match row.state {
            State::Yes if !is_real => wrong.push(format!("{}: yes, but simulated", row.id)),
            State::Simulated if row.tests.is_empty() => {
                wrong.push(format!("{}: who says?", row.id))
            }
            State::Differs if row.note.is_empty() && row.tests.is_empty() => {
                wrong.push(format!("{}: differs how?", row.id));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Names of tests there have two underscores at least, and are in backquotes.
#[test]
fn every_test_that_the_security_page_names_is_there() {
    let page = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let name = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){2,})`").unwrap();
    let tests = tests();
    let names: BTreeSet<_> = name.captures_iter(&page).map(|found| found[1].to_owned()).collect();
    assert!(names.len() > 30, "only {} tests are named", names.len());
    let own = ["no_new_privs", "like_this_one"];
    let lost: Vec<_> = names
        .iter()
        .filter(|name| !own.contains(&name.as_str()) && !tests.contains_key(*name))
        .collect();
    assert!(lost.is_empty(), "docs/security.md names tests that are not there: {lost:?}");
}

#[test]
fn the_document_is_what_the_data_says() {
    let path = root().join("docs/feature-table.md");
    let expected = document();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "run UPDATE_EXPECT=1 cargo test -p virtsnap-tests --test table");
}

fn document() -> String {
    let (rows, tests) = (rows(), tests());
    let mut text = String::from(
        "# Feature table\n\n\
         Every feature that was asked for, and how it stands. Made from `fixtures/features.txt` by a\n\
         test, which fails when a test named here is not in the tree.\n\n\
         *yes*: a test on real QEMU shows it, and reads content back where there is any; what only\n\
         the simulated hypervisor or the planner's tests show says *simulated*. *differs*: done in\n\
         another way, or in part. *no*: not done.\n",
    );
    text += "\n| group | yes | simulated | differs | no | not QEMU | Xen: later |\n";
    text += "|---|---|---|---|---|---|---|\n";
    let of = |prefix: &str| {
        let prefix = format!("{prefix}-");
        rows.iter().filter(move |row| row.id.starts_with(&prefix)).collect::<Vec<_>>()
    };
    for (prefix, _, title) in GROUPS {
        let count = |state| of(prefix).iter().filter(|row| row.state == state).count();
        let counts =
            [State::Yes, State::Simulated, State::Differs, State::No, State::Other, State::Xen];
        let counts: Vec<_> = counts.into_iter().map(|state| count(state).to_string()).collect();
        writeln!(text, "| {prefix}: {title} | {} |", counts.join(" | ")).unwrap();
    }
    text += "\n## The matrix\n\n\
        Domain state × memory × kinds of two disks × storage of the first × flags: in each cell a\n\
        snapshot is taken, the disks are written to, it is reverted to and deleted, on a real daemon\n\
        and QEMU, and patterns are read from the disks each time. `make matrix` runs all of it,\n\
        `make test` a sample. Each cell does what its rule (`tests/src/matrix.rs`) says:\n\n\
        | storage, state | cells | taken, reverted to, deleted | refused, with its code |\n\
        |---|---|---|---|\n";
    for (group, taken, refused) in matrix::counts() {
        writeln!(text, "| {group} | {} | {taken} | {refused} |", taken + refused).unwrap();
    }
    for (prefix, _, title) in GROUPS {
        writeln!(
            text,
            "\n## {prefix}: {title}\n\n| id | feature | state | tests |\n|---|---|---|---|"
        )
        .unwrap();
        for row in of(prefix) {
            let shown = row.tests.iter().map(|name| {
                let file = tests.get(name).and_then(|files| files.iter().next_back());
                let file = file.map_or("?", |file| file.trim_end_matches(".rs"));
                format!("`{}` {name}", file.rsplit('/').next().unwrap_or(file))
            });
            let shown = shown.collect::<Vec<_>>().join(", ");
            let note = if row.note.is_empty() { "" } else { ": " };
            writeln!(
                text,
                "| {} | {} | {}{note}{} | {shown} |",
                row.id,
                row.what.replace('<', "&lt;"),
                row.state.shown(),
                row.note.replace('<', "&lt;")
            )
            .unwrap();
        }
    }
    text
}

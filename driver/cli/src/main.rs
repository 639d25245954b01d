//! `virtsnap`: a libvirt client for what virsh has no option for.
//!
//! It speaks through libvirt's own library, as any other client does, and all it asks for any other
//! client can ask for too: by bits in a flag word, by elements in a snapshot's XML.
//!
//! - [`options`]: the command line (clap: `--help` that reads like a manual page, and refusals with
//!   a hint, for a dependency that the daemon has anyway);
//! - [`bits`]: flag words;
//! - [`request`]: the `<domainsnapshot>` that `create` sends;
//! - [`table`]: what is printed.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program that prints")]

mod bits;
mod options;
mod request;
mod table;

use std::process::ExitCode;

use clap::Parser;
use virt::connect::Connect;
use virt::domain::Domain;

use crate::options::{Command, DiskSnapshot, Options};

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot connect to {uri}: {source}")]
    Connect { uri: String, source: virt::error::Error },
    #[error("cannot read {}: {source}", file.display())]
    Read { file: std::path::PathBuf, source: std::io::Error },
    #[error("what the daemon sent cannot be read: {0}")]
    Answer(String),
    #[error("{0}")]
    Libvirt(#[from] virt::error::Error),
}

fn main() -> ExitCode {
    // libvirt's library would print each error once more.
    virt::error::clear_error_callback();
    match run(&Options::parse()) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            #[expect(clippy::print_stderr, reason = "a program that prints")]
            {
                eprintln!("virtsnap: {failure}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<String, Failure> {
    let only_reads = matches!(
        options.command,
        Command::Images { .. } | Command::DiskSnapshot(_) | Command::List { .. }
    );
    let uri = options.uri(only_reads);
    let open = match only_reads {
        true => Connect::open_read_only(Some(&uri)),
        false => Connect::open(Some(&uri)),
    };
    let connection = open.map_err(|source| Failure::Connect { uri, source })?;
    let domain = |name: &str| connection.lookup_domain_by_name(name);
    let snapshot = |vm: &str, name: &str| Domain::lookup_snapshot_by_name(&domain(vm)?, name, 0);
    match &options.command {
        Command::Create(create) => {
            let xml = request::xml(create)?;
            let made = domain(&create.domain)?.create_snapshot_xml(&xml, bits::create(create))?;
            Ok(format!("Domain snapshot {} created\n", made.name()?))
        }
        Command::Revert(revert) => {
            snapshot(&revert.domain, &revert.snapshot)?.revert(bits::revert(revert))?;
            Ok(format!("Domain snapshot {} reverted\n", revert.snapshot))
        }
        Command::Delete(delete) => {
            snapshot(&delete.domain, &delete.snapshot)?.delete(bits::delete(delete))?;
            Ok(format!("Domain snapshot {} deleted\n", delete.snapshot))
        }
        Command::Images { domain: name } => {
            let xml = domain(name)?.xml_desc(bits::XML_IMAGES)?;
            table::images(&xml).map_err(Failure::Answer)
        }
        Command::DiskSnapshot(DiskSnapshot::List { domain: name }) => {
            let xml = domain(name)?.xml_desc(bits::XML_IMAGES)?;
            table::disk_snapshots(&xml).map_err(Failure::Answer)
        }
        Command::List { domain: name, tree } => {
            let mut snapshots = Vec::new();
            for snapshot in domain(name)?.list_all_snapshots(bits::LIST_TOPOLOGICAL)? {
                snapshots.push((snapshot.xml_desc(0)?, snapshot.is_current(0)?));
            }
            table::snapshots(&snapshots, *tree).map_err(Failure::Answer)
        }
    }
}

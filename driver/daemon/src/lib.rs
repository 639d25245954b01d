//! virtsnapd: libvirt's protocol on a socket, snapshots behind it.
//!
//! - `config`, `hypervisors`, `startup`, `systemd`: from the command line to a daemon that serves;
//! - `server`, `session`, `stream`, …: the transport, which knows no procedure;
//! - `dispatch`: every procedure; flag words end and errors get their numbers there;
//! - `domains`: the registry of domains and their life;
//! - `events`, `vir_error`: what happened and what went wrong, in libvirt's numbers;
//! - `exchange`: instead of serving, moving domains from libvirt's files to ours and back;
//! - `host`, `consoles`: what the daemon itself asks of the host.
//!
//! The program is [`main`]. What else is public is for fuzz targets.

mod config;
mod consoles;
mod dispatch;
mod domains;
mod events;
mod exchange;
#[cfg(test)]
mod fake;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod host;
mod hypervisors;
mod keepalive;
mod outbox;
mod read_only;
mod server;
mod service;
mod session;
mod startup;
mod stream;
mod systemd;
mod vir_error;
mod wire;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Hypervisor, Mode};
use crate::exchange::Exchange;

/// A libvirt-compatible hypervisor daemon, made for snapshots
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Read this configuration instead of the usual one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Whose guests are run (the default, unless the configuration says otherwise, is qemu)
    #[arg(long, value_name = "HYPERVISOR")]
    hypervisor: Option<Hypervisor>,
    /// Run for this user alone, in the user's own directories (the default unless root)
    #[arg(long)]
    session: bool,
    /// Instead of serving
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Take over domains and their snapshots from libvirt's files, while neither daemon runs
    Import(Exchange),
    /// Hand domains and their snapshots over to libvirt's files, while neither daemon runs
    Export(Exchange),
}

/// What the program does.
pub fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        // What went wrong has been said.
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            complain(&*err);
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let root = rustix::process::geteuid().is_root();
    let mode = if root && !arguments.session { Mode::System } else { Mode::Session };
    // Whatever we were started with: nobody but us writes to what we make.
    let given = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Nor may it take from us what is ours: QEMU as root reaches no file by its capabilities.
    let others = given & rustix::fs::Mode::from_raw_mode(0o077);
    rustix::process::umask(others | rustix::fs::Mode::from_raw_mode(0o022));
    let config = Config::load(mode, arguments.config.as_deref(), arguments.hypervisor)?;
    // RUST_LOG wins over the configuration.
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match &arguments.act {
        Some(Act::Import(exchange)) => {
            return exchange::import(&config, exchange, hypervisors::completer(&config)?);
        }
        Some(Act::Export(exchange)) => return exchange::export(&config, exchange),
        None => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        match config.hypervisor {
            Hypervisor::Qemu => {
                startup::run(&config, |events| hypervisors::qemu(&config, events)).await
            }
            Hypervisor::Xen => {
                startup::run(&config, |events| hypervisors::xen(&config, events)).await
            }
        }
    });
    // What still runs is left as a crash would leave it, and recovered at the next start.
    runtime.shutdown_timeout(LAST_CALLS);
    served?;
    Ok(true)
}

/// How long a system call on another thread may keep the daemon from ending: a file on a server
/// that does not answer would do so for ever.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The error and its causes in one line, on the terminal or in the journal.
fn complain(err: &dyn Error) {
    let mut text = format!("virtsnapd: {err}");
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(&format!(": {err}"));
        cause = err.source();
    }
    // There is nobody left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "{text}");
}

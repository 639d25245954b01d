//! virtsnapd: libvirt's protocol on a socket, snapshots behind it.
//!
//! - [`config`], [`startup`], [`systemd`]: from the command line to a daemon that serves;
//! - [`server`], [`session`], [`stream`], …: the transport, which knows no procedure;
//! - [`dispatch`]: every procedure; flag words end and errors get their numbers there;
//! - [`domains`]: the registry of domains and their life;
//! - [`events`], [`vir_error`]: what happened and what went wrong, in libvirt's numbers;
//! - [`host`], [`consoles`]: what the daemon itself asks of the host.

mod config;
mod consoles;
mod dispatch;
mod domains;
mod events;
#[cfg(test)]
mod fake;
mod handle;
mod host;
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
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use virtsnap_engine::ports::EventSink;
use virtsnap_qemu::confine::Owner;
use virtsnap_qemu::hypervisor::{Qemu, QemuConfig};

use crate::config::{Config, Mode};

/// A libvirt-compatible hypervisor daemon, made for snapshots
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Read this configuration instead of the usual one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run for this user alone, in the user's own directories (the default unless root)
    #[arg(long)]
    session: bool,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            complain(&*err);
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let root = rustix::process::geteuid().is_root();
    let mode = if root && !arguments.session { Mode::System } else { Mode::Session };
    let config = Config::load(mode, arguments.config.as_deref())?;
    // RUST_LOG wins over the configuration.
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(startup::run(&config, |events| qemu(&config, events)));
    // What still runs is left as a crash would leave it, and recovered at the next start.
    runtime.shutdown_timeout(LAST_CALLS);
    Ok(served?)
}

/// How long a system call on another thread may keep the daemon from ending: a file on a server
/// that does not answer would do so for ever.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// The driver behind `qemu:///`. QEMU itself runs as the configuration says.
fn qemu(config: &Config, events: Arc<dyn EventSink>) -> virtsnap_engine::error::Result<Qemu> {
    let guests = &config.guests;
    let user = match (&guests.user, &guests.group) {
        (Some(user), group) => Some(Owner::named(user, group.as_deref())?),
        (None, _) => None,
    };
    let mut settings = QemuConfig::new(
        config.run_dir.join("qemu"),
        config.state_dir.join("qemu"),
        config.state_dir.join("log"),
    );
    settings.user = user;
    settings.dynamic_ownership = guests.dynamic_ownership;
    settings.sandbox = guests.sandbox;
    settings.freeze_deadline = guests.freeze_deadline;
    if let Some(emulator) = &guests.emulator {
        settings.emulator.clone_from(emulator);
    }
    Ok(Qemu::new(settings, events))
}

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

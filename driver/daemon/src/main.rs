//! virtsnapd.
#![allow(dead_code, reason = "parts are landed before they are wired")]

mod config;
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
mod stream;
mod vir_error;
mod wire;

use std::sync::Arc;

/// Serves the socket named on the command line.
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let path = std::env::args_os().nth(1).ok_or("usage: virtsnapd SOCKET")?;
    let endpoint =
        server::Endpoint { path: path.into(), mode: 0o660, group: None, read_only: false };
    let listener = server::Listener::bind(&endpoint)?;
    let sessions = Arc::new(session::Sessions::default());
    let daemon = Arc::new(dispatch::Daemon { sessions: Arc::clone(&sessions) });
    let (stop, shutdown) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(true);
        }
    });
    server::serve(vec![listener], daemon, sessions, server::Limits::default(), shutdown).await;
    Ok(())
}

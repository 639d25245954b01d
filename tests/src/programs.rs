//! Other programs than virsh as clients: Python scripts, and programs that want a terminal.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A program on a pseudo terminal, which `script` of Debian's base system provides.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl OnTerminal {
    pub fn start(command_line: &str) -> Self {
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", command_line, "/dev/null"])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("script is part of Debian's base system");
        let mut stdout = child.stdout.take().expect("piped");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, output, seen: String::new() }
    }

    pub fn type_text(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("it still listens");
    }

    /// Reads on until `word` has appeared; gives everything seen so far.
    #[track_caller]
    pub fn expect(&mut self, word: &str, seconds: u64) -> &str {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !self.seen.contains(word) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no '{word}' on the terminal, only:\n{}", self.seen),
            }
        }
        &self.seen
    }

    /// Whether it ends by itself within a time.
    pub fn ends(&mut self, seconds: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < deadline {
            if self.child.try_wait().expect("ours").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program is in the search path.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

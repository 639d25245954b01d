//! The program. It is a library too, so that fuzz targets can drive its sessions.

use std::process::ExitCode;

fn main() -> ExitCode {
    virtsnapd::main()
}

//! The `evergate` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    evergate_server::main()
}

//! The `ledgermq` program: see [`ledgermq::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ledgermq::cli::main()
}

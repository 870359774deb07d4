//! The `ledgermq` program: see [`ledgermq::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A tenth less processor time for each message than with the allocator of the C library, which gives
/// freed pages back and takes them again (docs/BENCHMARKS.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    ledgermq::cli::main()
}

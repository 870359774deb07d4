//! The `ledgermq` program.

fn main() {}

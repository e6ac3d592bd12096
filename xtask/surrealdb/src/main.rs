//! The SurrealDB server as its project publishes it, without the parts that tests do not need.

#![recursion_limit = "256"] // Optimised, what it gives to run statements is that deep.

use std::process::ExitCode;

fn main() -> ExitCode {
    surrealdb_server::init(surrealdb_server::core::CommunityComposer())
}

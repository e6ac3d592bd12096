//! The SurrealDB server as its project publishes it, without the parts that tests do not need.

use std::process::ExitCode;

fn main() -> ExitCode {
    surrealdb_server::init(surrealdb_server::core::CommunityComposer())
}

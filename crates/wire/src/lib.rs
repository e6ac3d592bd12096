//! What travels over HTTP between the programs of nodestats: types by version, route paths,
//! errors, the form of times, and (feature `client`) the one typed client.
//!
//! Knows neither the server nor the database, so that a client costs no more than it needs.

#[cfg(feature = "client")]
pub mod client;
pub mod problem;
pub mod routes;
pub mod time;
pub mod v1;

pub use problem::Problem;
pub use time::Timestamp;

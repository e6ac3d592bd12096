//! Whose samples are written: proved by whoever let the request in, and by nobody else.

/// A node whose samples may be written. The store takes nothing else, and who makes one says that
/// the caller was looked at: in the programs that is the API's room `access` alone, which
/// `cargo xtask edges` checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity(String);

impl NodeIdentity {
    /// For the node `uid`, after it was decided that the caller may write its samples.
    pub fn proved(uid: &str) -> Self {
        Self(uid.to_owned())
    }

    /// The UID that history is kept under.
    pub fn uid(&self) -> &str {
        &self.0
    }
}

//! TLS: which implementation of cryptography the process uses.

/// Makes ring the process's own. Without this a client that is not told panics as soon as a
/// dependency brings a second implementation along.
pub fn use_ring() {
    // An error says that one is chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

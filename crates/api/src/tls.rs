//! TLS of a listener: the certificate may change while this runs, and connections that begin later
//! are served with what is known then.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use nodestats_wire::routes;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WantsServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::serve::{Secure, serve_by};

/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why a certificate does not do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// What stands there is no PEM.
    #[error("{0} is no certificate or key")]
    Pem(&'static str),
    /// Certificate and key do not go together, or no authority is usable.
    #[error("the certificates are not usable")]
    Unusable(#[source] rustls::Error),
}

/// What a listener shows of itself.
#[derive(Debug)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// From two PEM files: the certificate with those that lead to its authority, and its key.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self {
            chain: certificates(chain, "tls.crt")?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Pem("tls.key"))?,
        })
    }

    /// For whoever connects.
    pub fn for_anybody(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.finish(builder()?.with_no_client_auth())
    }

    /// When it ends, in seconds since 1970 (RFC 5280 section 4.1.2.5); `None` where it cannot be read.
    pub fn end(&self) -> Option<i64> {
        let (_, read) = x509_parser::parse_x509_certificate(self.own()).ok()?;
        Some(read.validity().not_after.timestamp())
    }

    /// The certificate itself, in its DER form.
    pub fn own(&self) -> &[u8] {
        self.chain.first().expect("there is at least one")
    }

    pub(crate) fn finish(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, WantsServerCert>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map(Arc::new)
            .map_err(TlsError::Unusable)
    }
}

/// The start of every configuration here: ring, TLS 1.2 and 1.3.
pub(crate) fn builder()
-> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)
}

/// The certificates of a PEM file, at least one.
pub(crate) fn certificates(
    pem: &[u8],
    name: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(TlsError::Pem(name)),
    }
}

pub(crate) async fn handshake(
    config: Arc<ServerConfig>,
    stream: TcpStream,
) -> Option<TlsStream<TcpStream>> {
    let accepted = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(HANDSHAKE, accepted).await.ok()? {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "a connection was refused");
            None
        }
    }
}

#[derive(Clone)]
struct Current(watch::Receiver<Option<Arc<ServerConfig>>>);

impl Secure<TcpStream> for Current {
    type Stream = TlsStream<TcpStream>;

    async fn secure(&self, stream: TcpStream) -> Option<Self::Stream> {
        let config = self.0.borrow().clone()?;
        handshake(config, stream).await
    }
}

/// Serves with TLS until `stop`; nobody, while there is no certificate.
pub async fn serve_tls(
    listener: TcpListener,
    router: Router,
    config: watch::Receiver<Option<Arc<ServerConfig>>>,
    stop: CancellationToken,
) {
    serve_by(
        listener,
        Current(config),
        router,
        routes::SERVER_KEEP_ALIVE,
        stop,
    )
    .await;
}

//! The listener that the cluster's front proxy reaches: TLS with the certificate that the cluster's
//! controller made, and nobody is let in who has no certificate of the front proxy.
//!
//! Both come from objects that change while this runs: connections that begin later use what is
//! known then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::serve::{Secure, serve_by};

/// The header by which the front proxy names the user.
pub(crate) const USER_HEADER: &str = "x-remote-user";
/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why the objects do not do.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// A key of an object is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// What stands there is no PEM.
    #[error("{0} is no certificate or key")]
    Pem(&'static str),
    /// The list of names cannot be read.
    #[error("requestheader-allowed-names is no list")]
    Names,
    /// The front proxy names users by another header.
    #[error("the front proxy names users by another header than X-Remote-User")]
    Header,
    /// Certificate and key do not go together, or no authority is usable.
    #[error("the certificates are not usable")]
    Tls(#[source] rustls::Error),
}

/// What is needed to let the front proxy in.
#[derive(Debug, Clone)]
pub struct Front {
    tls: Arc<ServerConfig>,
    allowed_names: Vec<String>,
}

impl Front {
    /// From the serving certificate (`tls.crt`, `tls.key`) and from
    /// `kube-system/extension-apiserver-authentication`, which says who the front proxy is.
    pub fn new(
        certificate: &[u8],
        key: &[u8],
        authentication: &BTreeMap<String, String>,
    ) -> Result<Self, FrontError> {
        let text = |name: &'static str| authentication.get(name).ok_or(FrontError::Missing(name));
        let names =
            |name| serde_json::from_str::<Vec<String>>(text(name)?).map_err(|_| FrontError::Names);
        let chain = certificates(certificate, "tls.crt")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| FrontError::Pem("tls.key"))?;
        let authority = "requestheader-client-ca-file";
        let mut roots = RootCertStore::empty();
        for root in certificates(text(authority)?.as_bytes(), authority)? {
            roots.add(root).map_err(FrontError::Tls)?;
        }
        let users = names("requestheader-username-headers")?;
        if !users
            .iter()
            .any(|name| name.eq_ignore_ascii_case(USER_HEADER))
        {
            return Err(FrontError::Header);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|_| FrontError::Pem(authority))?;
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(FrontError::Tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(FrontError::Tls)?;
        Ok(Self {
            tls: Arc::new(tls),
            allowed_names: names("requestheader-allowed-names")?,
        })
    }

    /// Whether a client whose certificate was verified is the front proxy, and not another one that
    /// the same authority has signed.
    fn is_front_proxy(&self, stream: &TlsStream<TcpStream>) -> bool {
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some(name) = certificates.first().and_then(common_name) else {
            return false;
        };
        self.allowed_names.is_empty() || self.allowed_names.contains(&name)
    }
}

fn certificates(
    pem: &[u8],
    name: &'static str,
) -> Result<Vec<CertificateDer<'static>>, FrontError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(FrontError::Pem(name)),
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// The front as it is known now.
#[derive(Clone)]
struct Guarded(watch::Receiver<Option<Front>>);

impl Secure for Guarded {
    type Stream = TlsStream<TcpStream>;

    async fn secure(&self, stream: TcpStream) -> Option<Self::Stream> {
        let front = self.0.borrow().clone()?;
        let acceptor = TlsAcceptor::from(Arc::clone(&front.tls));
        let accepted = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
        let stream = match accepted.ok()? {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection was refused");
                return None;
            }
        };
        if front.is_front_proxy(&stream) {
            return Some(stream);
        }
        tracing::warn!("a client that is not the front proxy was refused");
        None
    }
}

/// Serves the front proxy until `stop`; nobody, while `front` is not known.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    front: watch::Receiver<Option<Front>>,
    stop: CancellationToken,
) {
    serve_by(listener, Guarded(front), router, stop).await;
}

//! The listener that the cluster's front proxy reaches: TLS with the certificate that the cluster's
//! controller made, and nobody is let in who has no certificate of the front proxy.
//!
//! Both come from objects that change while this runs: connections that begin later use what is
//! known then.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use nodestats_wire::routes;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::access::{EXTRA_HEADERS, GROUP_HEADER, USER_HEADER};
use crate::serve::{Secure, serve_by};
use crate::tls::{self, Certificate, TlsError};

/// Where the object says by which headers the front proxy names a user, and those that are read.
const HEADERS: [(&str, &str); 3] = [
    ("requestheader-username-headers", USER_HEADER),
    ("requestheader-group-headers", GROUP_HEADER),
    ("requestheader-extra-headers-prefix", EXTRA_HEADERS),
];

/// Why the objects do not do.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// A key of an object is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A list cannot be read.
    #[error("{0} is no list")]
    Names(&'static str),
    /// The front proxy names users by other headers.
    #[error("the front proxy names users by other headers than {0}")]
    Header(&'static str),
    /// A certificate does not do.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What is needed to let the front proxy in.
#[derive(Debug, Clone)]
pub struct Front {
    tls: Arc<ServerConfig>,
    allowed_names: Vec<String>,
}

impl Front {
    /// From the serving certificate and from `kube-system/extension-apiserver-authentication`, which
    /// says who the front proxy is.
    pub fn new(
        certificate: &Certificate,
        authentication: &BTreeMap<String, String>,
    ) -> Result<Self, FrontError> {
        let text = |name: &'static str| authentication.get(name).ok_or(FrontError::Missing(name));
        let names = |name| {
            let list = serde_json::from_str::<Vec<String>>(text(name)?);
            list.map_err(|_| FrontError::Names(name))
        };
        let authority = "requestheader-client-ca-file";
        let mut roots = RootCertStore::empty();
        for root in tls::certificates(text(authority)?.as_bytes(), authority)? {
            roots.add(root).map_err(TlsError::Unusable)?;
        }
        for (key, header) in HEADERS {
            let is_ours = |name: &String| name.eq_ignore_ascii_case(header);
            if !names(key)?.iter().any(is_ours) {
                return Err(FrontError::Header(header));
            }
        }
        let builder = tls::builder()?;
        let provider = Arc::clone(builder.crypto_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|_| TlsError::Pem(authority))?;
        Ok(Self {
            tls: certificate.finish(builder.with_client_cert_verifier(verifier))?,
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

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// The front as it is known now.
#[derive(Clone)]
struct Guarded(watch::Receiver<Option<Front>>);

impl Secure<TcpStream> for Guarded {
    type Stream = TlsStream<TcpStream>;

    async fn secure(&self, stream: TcpStream) -> Option<Self::Stream> {
        let front = self.0.borrow().clone()?;
        let stream = tls::handshake(Arc::clone(&front.tls), stream).await?;
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
    serve_by(
        listener,
        Guarded(front),
        router,
        routes::SERVER_KEEP_ALIVE,
        stop,
    )
    .await;
}

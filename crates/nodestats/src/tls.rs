//! TLS outside Kubernetes: a certificate from files, which may change, or one that is made here.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nodestats_api::{Certificate, CertificateEnd};
use nodestats_wire::client::Fingerprint;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);
/// Names in the data directory of the one that is made here.
const OWN: [&str; 2] = ["tls.crt", "tls.key"];

/// The two files of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What the files held.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    /// Of the certificate that is made here at the first start.
    pub(crate) fn own(data_dir: &Path) -> Self {
        let [certificate, key] = OWN.map(|name| data_dir.join(name));
        Self { certificate, key }
    }

    /// Makes it where it is missing, for this host's names. Nobody else vouches for it, and nothing
    /// but its fingerprint counts, so it does not end before the host does.
    pub(crate) fn make(&self, addresses: &[IpAddr]) -> anyhow::Result<()> {
        if self.certificate.exists() && self.key.exists() {
            return Ok(());
        }
        let hostname = nodestats_runtime::hostname();
        let mut names = vec![hostname.clone(), "localhost".to_owned()];
        names.extend(addresses.iter().map(ToString::to_string));
        let mut params = CertificateParams::new(names)?;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        params.distinguished_name.push(DnType::CommonName, hostname);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        // The key first: a certificate without it would be taken for whole at the next start.
        write(&self.key, 0o600, &key.serialize_pem())?;
        write(&self.certificate, 0o644, &certificate.pem())
    }

    /// The fingerprint of the certificate.
    pub(crate) fn fingerprint(&self) -> anyhow::Result<Fingerprint> {
        Ok(Fingerprint::of(self.load(&self.read()?)?.0.own()))
    }

    fn read(&self) -> anyhow::Result<Read> {
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Read {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
        })
    }

    fn load(&self, read: &Read) -> anyhow::Result<(Certificate, Arc<ServerConfig>)> {
        let loaded = Certificate::new(&read.certificate, &read.key).and_then(|certificate| {
            certificate
                .for_anybody()
                .map(|config| (certificate, config))
        });
        loaded.with_context(|| {
            let [certificate, key] = [&self.certificate, &self.key].map(|path| path.display());
            format!("{certificate} and {key} are no certificate and its key")
        })
    }

    /// What is served at the start; an error where the files are not there or do not do.
    pub(crate) fn first(&self, end: &CertificateEnd) -> anyhow::Result<Arc<ServerConfig>> {
        let (certificate, config) = self.load(&self.read()?)?;
        end.set(certificate.end().unwrap_or_default());
        Ok(config)
    }

    /// Follows the files until `stop`. What does not do changes nothing.
    pub(crate) async fn follow(
        self,
        known: watch::Sender<Option<Arc<ServerConfig>>>,
        end: CertificateEnd,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut seen = self.read().ok();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return Ok(()),
            }
            let read = match self.read() {
                Ok(read) => read,
                Err(error) => {
                    // Told once: the next look finds the same.
                    if seen.take().is_some() {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the old certificate is served on"
                        );
                    }
                    continue;
                }
            };
            if seen.as_ref() == Some(&read) {
                continue;
            }
            match self.load(&read) {
                Ok((certificate, config)) => {
                    end.set(certificate.end().unwrap_or_default());
                    known.send_replace(Some(config));
                    tracing::info!("a new certificate is served");
                }
                // A certificate is written before its key, or the other way round: the next look
                // finds both.
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the old certificate is served on"
                ),
            }
            seen = Some(read);
        }
    }
}

fn write(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut options = File::options();
    let file = options.create(true).truncate(true).write(true).mode(mode);
    let written = file.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

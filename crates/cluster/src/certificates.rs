//! Certificates and kubeconfigs: one authority for the cluster, one for the front proxy, a leaf for
//! each component.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::state::State;

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Makes one, and writes `pki/FILE.crt` and `pki/FILE.key`.
    pub(crate) fn new(state: &State, file: &str, name: &str) -> anyhow::Result<Self> {
        let params = authority_params(name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        write(state, file, &pem, &key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// Reads back the one that [`Authority::new`] wrote with the same arguments.
    pub(crate) fn read(state: &State, file: &str, name: &str) -> anyhow::Result<Self> {
        let read =
            |extension: &str| fs::read_to_string(state.path(&format!("pki/{file}.{extension}")));
        let key = KeyPair::from_pem(&read("key")?)?;
        Ok(Self {
            issuer: Issuer::new(authority_params(name), key),
            pem: read("crt")?,
        })
    }

    /// A leaf for clients and servers, written to `pki/FILE.crt` and `pki/FILE.key`.
    pub(crate) fn leaf(
        &self,
        state: &State,
        file: &str,
        (organization, name): (Option<&str>, &str),
        alternative_names: &[&str],
    ) -> anyhow::Result<()> {
        let names: Vec<String> = alternative_names
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(organization) = organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(state, file, &certificate.pem(), &key)
    }

    /// The kubeconfig of a leaf, written to `FILE.kubeconfig`.
    pub(crate) fn kubeconfig(&self, state: &State, file: &str, server: &str) -> anyhow::Result<()> {
        let read = |extension: &str| fs::read(state.path(&format!("pki/{file}.{extension}")));
        let (certificate, key) = (read("crt")?, read("key")?);
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": file}}],
            "clusters": [{"name": "test", "cluster": {
                "server": server, "certificate-authority-data": base64(self.pem.as_bytes()),
            }}],
            "users": [{"name": file, "user": {
                "client-certificate-data": base64(&certificate), "client-key-data": base64(&key),
            }}],
        });
        // YAML takes JSON as it is.
        write_secret(
            &state.path(&format!("{file}.kubeconfig")),
            &format!("{config:#}"),
        )
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The key pair that signs tokens of service accounts: `pki/sa.key` and `pki/sa.pub`.
pub(crate) fn service_account_keys(state: &State) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    write_secret(&state.path("pki/sa.key"), &key.serialize_pem())?;
    Ok(fs::write(state.path("pki/sa.pub"), key.public_key_pem())?)
}

fn write(state: &State, file: &str, certificate: &str, key: &KeyPair) -> anyhow::Result<()> {
    fs::write(state.path(&format!("pki/{file}.crt")), certificate)?;
    write_secret(
        &state.path(&format!("pki/{file}.key")),
        &key.serialize_pem(),
    )
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

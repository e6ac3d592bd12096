//! The certificate that the API serves with, and the authority that signs it: what is to be done with
//! them is a function of what the Secret holds, of what is known, and of the time.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_hours(24);

/// How long certificates are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of an authority; another one takes its place when a tenth is left.
    pub authority: Duration,
    /// Of a certificate; renewed when a third is left.
    pub certificate: Duration,
    /// A new authority signs when it was published for so long: by then everybody who asks the API has
    /// heard of it.
    pub published: Duration,
}

impl Default for Lifetimes {
    /// Ten years, ninety days, five minutes.
    fn default() -> Self {
        Self {
            authority: 3650 * DAY,
            certificate: 90 * DAY,
            published: Duration::from_mins(5),
        }
    }
}

/// Why none can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("a certificate cannot be signed")]
    Sign(#[from] rcgen::Error),
    #[error("the clock shows a time that no certificate has")]
    Clock,
}

/// What the Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Material {
    /// Authorities to trust, the one that signs first.
    pub(crate) authorities: String,
    authority_key: String,
    certificate: String,
    key: String,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Keep(Material),
    /// This is to be written.
    Write(Material),
}

/// Keys of the Secret; `tls.crt` and `tls.key` as in Secrets of type `kubernetes.io/tls`.
const KEYS: [&str; 4] = ["ca.crt", "ca.key", "tls.crt", "tls.key"];

impl Material {
    pub(crate) fn read(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let [authorities, authority_key, certificate, key] = KEYS.map(|name| {
            let bytes = data.get(name)?.0.clone();
            String::from_utf8(bytes)
                .ok()
                .filter(|text| !text.is_empty())
        });
        Some(Self {
            authorities: authorities?,
            // Whoever else makes the certificates keeps it.
            authority_key: authority_key.unwrap_or_default(),
            certificate: certificate.unwrap_or_default(),
            key: key.unwrap_or_default(),
        })
    }

    /// As the Secret holds it.
    pub(crate) fn data(&self) -> BTreeMap<String, ByteString> {
        let values = [
            &self.authorities,
            &self.authority_key,
            &self.certificate,
            &self.key,
        ];
        let bytes = |text: &String| ByteString(text.clone().into_bytes());
        KEYS.into_iter()
            .map(str::to_owned)
            .zip(values.map(bytes))
            .collect()
    }
}

/// Decides. A new authority is published beside the old one before anything is signed by it:
/// `is_known` says that everybody who asks has had time to hear of what the Secret holds.
pub(crate) fn step(
    data: &BTreeMap<String, ByteString>,
    host: &str,
    is_known: bool,
    lifetimes: &Lifetimes,
    now: Timestamp,
) -> Result<Step, Error> {
    let own = |material: &Material| !material.authority_key.is_empty();
    let Some(material) = Material::read(data).filter(own) else {
        let authority = Authority::new(lifetimes, now)?;
        let (certificate, key) = authority.sign(host, lifetimes, now)?;
        return Ok(Step::Write(Material {
            authorities: authority.pem,
            authority_key: authority.key,
            certificate,
            key,
        }));
    };
    let authorities = facts(&material.authorities);
    let certificate = facts(&material.certificate).into_iter().next();
    let Some(first) = authorities.first() else {
        return step(&BTreeMap::new(), host, is_known, lifetimes, now);
    };
    let left = |end: i64| Duration::from_secs(end.saturating_sub(now.as_second()).max(0) as u64);
    if left(first.end) < lifetimes.authority / 10 {
        let authority = Authority::new(lifetimes, now)?;
        let old: String = authorities
            .iter()
            .filter(|one| left(one.end) > Duration::ZERO)
            .map(|one| one.pem.clone())
            .collect();
        return Ok(Step::Write(Material {
            authorities: format!("{}{old}", authority.pem),
            authority_key: authority.key,
            ..material
        }));
    }
    let does = |certificate: &Facts| {
        let is_for_host = certificate.hosts.iter().any(|name| name == host);
        let is_of_first = certificate.issuer == first.subject;
        let is_new = left(certificate.end) >= lifetimes.certificate / 3;
        // The old authority's key is gone: until the new one is known the old certificate serves.
        let waits = !is_of_first && !is_known && left(certificate.end) > Duration::ZERO;
        is_for_host && (waits || (is_new && (is_of_first || !is_known)))
    };
    if material.key.is_empty() || !certificate.as_ref().is_some_and(does) {
        let authority = Authority {
            name: first.subject.clone(),
            pem: first.pem.clone(),
            key: material.authority_key.clone(),
        };
        let (certificate, key) = authority.sign(host, lifetimes, now)?;
        return Ok(Step::Write(Material {
            certificate,
            key,
            ..material
        }));
    }
    Ok(Step::Keep(material))
}

/// What matters of a certificate.
struct Facts {
    subject: String,
    issuer: String,
    end: i64,
    hosts: Vec<String>,
    pem: String,
}

/// Of each certificate of a PEM file; those that cannot be read are left out.
fn facts(pem: &str) -> Vec<Facts> {
    let blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes());
    let mut found = Vec::new();
    for block in blocks.flatten() {
        let Ok(certificate) = block.parse_x509() else {
            continue;
        };
        let name = |name: &x509_parser::x509::X509Name<'_>| {
            let name = name.iter_common_name().next();
            name.and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| &names.value.general_names);
        let hosts = names.into_iter().flatten().filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(host) => Some((*host).to_owned()),
            _ => None,
        });
        found.push(Facts {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            end: certificate.validity().not_after.timestamp(),
            hosts: hosts.collect(),
            pem: encode(&block.contents),
        });
    }
    found
}

/// One certificate as PEM (RFC 7468).
fn encode(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der)).replace("\r\n", "\n")
}

struct Authority {
    name: String,
    pem: String,
    key: String,
}

impl Authority {
    fn new(lifetimes: &Lifetimes, now: Timestamp) -> Result<Self, Error> {
        // Two authorities have two names, by which it is seen who signed.
        let name = format!("nodestats {}", now.as_second());
        let key = KeyPair::generate()?;
        let certificate = Self::params(&name, lifetimes, now)?.self_signed(&key)?;
        Ok(Self {
            name,
            pem: encode(certificate.der()),
            key: key.serialize_pem(),
        })
    }

    fn params(
        name: &str,
        lifetimes: &Lifetimes,
        now: Timestamp,
    ) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, now, lifetimes.authority)?;
        Ok(params)
    }

    fn sign(
        &self,
        host: &str,
        lifetimes: &Lifetimes,
        now: Timestamp,
    ) -> Result<(String, String), Error> {
        let issuer = Issuer::new(
            Self::params(&self.name, lifetimes, now)?,
            KeyPair::from_pem(&self.key)?,
        );
        let mut params =
            CertificateParams::new(vec![host.to_owned(), format!("{host}.cluster.local")])?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now, lifetimes.certificate)?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok((encode(certificate.der()), key.serialize_pem()))
    }
}

/// From the day before, since clocks differ, for `duration`.
fn valid(params: &mut CertificateParams, now: Timestamp, duration: Duration) -> Result<(), Error> {
    let at = |time: Result<Timestamp, _>| {
        let time: Timestamp = time.map_err(|_: k8s_openapi::jiff::Error| Error::Clock)?;
        OffsetDateTime::from_unix_timestamp(time.as_second()).map_err(|_| Error::Clock)
    };
    params.not_before = at(now.checked_sub(DAY))?;
    params.not_after = at(now.checked_add(duration))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "nodestats-api.nodestats.svc";

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + days * 86_400).expect("in range")
    }

    fn written(step: Step) -> Material {
        match step {
            Step::Write(material) => material,
            Step::Keep(_) => panic!("something was to be written"),
        }
    }

    fn new() -> Material {
        let nothing = BTreeMap::new();
        written(step(&nothing, HOST, false, &Lifetimes::default(), at(0)).expect("made"))
    }

    fn next(material: &Material, is_known: bool, days: i64) -> Step {
        step(
            &material.data(),
            HOST,
            is_known,
            &Lifetimes::default(),
            at(days),
        )
        .expect("made")
    }

    #[test]
    fn an_empty_secret_is_filled_once() {
        let first = new();
        assert_eq!(
            facts(&first.certificate)[0].issuer,
            facts(&first.authorities)[0].subject
        );
        for is_known in [false, true] {
            assert_eq!(next(&first, is_known, 1), Step::Keep(first.clone()));
        }
        // What is damaged is made anew, and the authority stays where it can.
        for (name, value) in [("tls.crt", "nonsense"), ("tls.key", ""), ("ca.crt", "")] {
            let mut damaged = first.data();
            damaged.insert(name.to_owned(), ByteString(value.into()));
            let mended =
                written(step(&damaged, HOST, false, &Lifetimes::default(), at(1)).expect("made"));
            assert_eq!(mended.authorities == first.authorities, name != "ca.crt");
        }
    }

    #[test]
    fn a_certificate_is_renewed_before_its_end_and_for_another_host() {
        let first = new();
        assert_eq!(next(&first, true, 59), Step::Keep(first.clone()));
        let renewed = written(next(&first, true, 61));
        assert_eq!(renewed.authorities, first.authorities);
        assert_ne!(renewed.certificate, first.certificate);
        assert_eq!(next(&renewed, true, 62), Step::Keep(renewed));
        let lifetimes = Lifetimes::default();
        let other = "nodestats-api.other.svc";
        let elsewhere = step(&first.data(), other, false, &lifetimes, at(1));
        written(elsewhere.expect("made"));
    }

    #[test]
    fn what_is_good_for_minutes_is_renewed_in_minutes() {
        let lifetimes = Lifetimes {
            certificate: Duration::from_mins(3),
            ..Lifetimes::default()
        };
        let second = |n: i64| Timestamp::from_second(1_800_000_000 + n).expect("in range");
        let next = |data: &BTreeMap<_, _>, n| step(data, HOST, true, &lifetimes, second(n));
        let first = written(next(&BTreeMap::new(), 0).expect("made"));
        assert_eq!(facts(&first.certificate)[0].end, 1_800_000_180);
        assert_eq!(
            next(&first.data(), 119).expect("kept"),
            Step::Keep(first.clone())
        );
        let second = written(next(&first.data(), 121).expect("made"));
        assert_eq!(facts(&second.certificate)[0].end, 1_800_000_301);
    }

    #[test]
    fn a_new_authority_is_published_before_it_signs() {
        let first = new();
        let day = 3650 - 360;
        let served = written(next(&first, true, day - 10));
        let both = written(next(&served, true, day));
        assert!(
            both.authorities.ends_with(&first.authorities),
            "the old one is beside it"
        );
        assert_eq!(both.certificate, served.certificate);
        // Nothing more until it is known, also where the certificate is to be renewed meanwhile.
        for later in [0, 75] {
            assert_eq!(next(&both, false, day + later), Step::Keep(both.clone()));
        }
        let signed = written(next(&both, true, day));
        assert_eq!(
            facts(&signed.certificate)[0].issuer,
            facts(&both.authorities)[0].subject
        );
        assert_ne!(
            facts(&signed.certificate)[0].issuer,
            facts(&first.authorities)[0].subject
        );
        assert_eq!(next(&signed, true, day), Step::Keep(signed));
    }
}

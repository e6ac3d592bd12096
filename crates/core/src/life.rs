//! The lives of nodes: who has which name and address when, and whom a name in a request means.
//!
//! An address is not an identity: history belongs to a UID, and a name or an address leads to the
//! life that had it at the time asked for. Two of them at once are an error that names both.

use std::borrow::Borrow;
use std::net::IpAddr;

use nodestats_wire::Timestamp;
use nodestats_wire::v1::{ClusterRegistration, Origin, Registration};
use serde::{Deserialize, Serialize};

/// Most namings that a life remembers; the oldest are forgotten first. A host whose address
/// changes daily keeps two months of them.
const NAMINGS_LIMIT: usize = 64;

/// Most further addresses of a node: two families, and some interfaces.
const ADDRESSES_LIMIT: usize = 32;

/// One node from its first registration until its history is purged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Life {
    /// The identity that history is kept under.
    pub uid: String,
    /// What it last said of itself, its present name and address among it.
    pub registration: Registration,
    /// What a cluster's controller last said of it; `None` for nodes outside clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterRegistration>,
    /// When it first registered.
    pub registered_at: Timestamp,
    /// When it signed off; `None` while it is live.
    pub gone_at: Option<Timestamp>,
    /// Which names it had when, oldest first.
    pub namings: Vec<Naming>,
}

/// A name and an address, and when a life had them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// Host name.
    pub hostname: String,
    /// Address.
    pub ip: String,
    /// Further addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// From when on.
    pub from: Timestamp,
    /// Until when; `None` while it still has them.
    pub until: Option<Timestamp>,
}

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The address is neither IPv4 nor IPv6.
    #[error("{0:?} is not an IPv4 or IPv6 address")]
    Address(String),
    /// The host name is empty, too long, or has characters that no name has.
    #[error("{0:?} is not a host name: 1 to 253 letters, digits, '-', '_' and '.'")]
    Hostname(String),
    /// The identity is empty, too long, or has characters that no UID has.
    #[error("{0:?} is not an identity: 1 to 128 letters, digits, '-', '_', '.' and ':'")]
    Uid(String),
    /// More addresses than any node has.
    #[error("more than {ADDRESSES_LIMIT} further addresses")]
    Addresses,
    /// A text is longer than any fact about a host.
    #[error("{0} is longer than 256 characters")]
    TooLong(&'static str),
}

impl RegistrationError {
    /// The field that is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Address(_) => "ip",
            Self::Addresses => "addresses",
            Self::Hostname(_) => "hostname",
            Self::Uid(_) => "uid",
            Self::TooLong(field) => field,
        }
    }
}

/// Checks a registration and gives it its identity: its own, or where it has none the one that
/// follows from host name and address.
pub fn identify(
    mut registration: Registration,
) -> Result<(String, Registration), RegistrationError> {
    let shown = |text: &str| text.chars().take(40).collect::<String>();
    registration.ip = canonical_address(&registration.ip)?;
    check_hostname(&registration.hostname)?;
    let hostname = &registration.hostname;
    let facts = [
        ("kernel", &registration.kernel),
        ("os", &registration.os),
        ("architecture", &registration.architecture),
        ("agent_version", &registration.agent_version),
    ];
    for (field, fact) in facts {
        if fact.as_ref().is_some_and(|fact| fact.len() > 256) {
            return Err(RegistrationError::TooLong(field));
        }
    }
    let uid = match &registration.uid {
        Some(uid) => {
            if uid.is_empty() || uid.len() > 128 || !uid.chars().all(|c| is_of_name(c) || c == ':')
            {
                return Err(RegistrationError::Uid(shown(uid)));
            }
            uid.clone()
        }
        None => derived_uid(hostname, &registration.ip),
    };
    registration.uid = Some(uid.clone());
    Ok((uid, registration))
}

/// Whether it is a name that a host may have.
pub fn check_hostname(hostname: &str) -> Result<(), RegistrationError> {
    if hostname.is_empty() || hostname.len() > 253 || !hostname.chars().all(is_of_name) {
        let shown = hostname.chars().take(40).collect();
        return Err(RegistrationError::Hostname(shown));
    }
    Ok(())
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Checks what a controller says of the node `uid`.
pub fn identify_in_cluster(
    uid: &str,
    mut cluster: ClusterRegistration,
) -> Result<(Registration, ClusterRegistration), RegistrationError> {
    let registration = Registration {
        ip: cluster.ip,
        hostname: cluster.hostname,
        uid: Some(uid.to_owned()),
        kernel: cluster.kernel,
        os: cluster.os,
        architecture: cluster.architecture,
        agent_version: cluster.agent_version,
        interval_seconds: Some(cluster.interval_seconds),
    };
    let (_, registration) = identify(registration)?;
    if cluster.addresses.len() > ADDRESSES_LIMIT {
        return Err(RegistrationError::Addresses);
    }
    let further = cluster.addresses.iter().map(|ip| canonical_address(ip));
    let further = further.collect::<Result<Vec<_>, _>>()?;
    let known = registration.clone();
    cluster = ClusterRegistration {
        hostname: known.hostname,
        ip: known.ip,
        addresses: further,
        kernel: known.kernel,
        os: known.os,
        architecture: known.architecture,
        agent_version: known.agent_version,
        ..cluster
    };
    Ok((registration, cluster))
}

/// One address has many spellings, and histories know one.
fn canonical_address(text: &str) -> Result<String, RegistrationError> {
    let shown = || RegistrationError::Address(text.chars().take(40).collect());
    let address: IpAddr = text.trim().parse().map_err(|_| shown())?;
    Ok(address.to_string())
}

/// The identity of who sends none: version 8 UUID (RFC 9562) of host name and address.
fn derived_uid(hostname: &str, ip: &str) -> String {
    // FNV-1a over 128 bits: a name for a pair of public texts, no secret and no checksum.
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in hostname.bytes().chain([0]).chain(ip.bytes()) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    uuid::Builder::from_custom_bytes(hash.to_be_bytes())
        .into_uuid()
        .to_string()
}

impl Life {
    /// A life that begins.
    pub fn new(uid: String, registration: Registration, now: Timestamp) -> Self {
        let mut life = Self {
            uid,
            registration,
            cluster: None,
            registered_at: now,
            gone_at: Some(now),
            namings: Vec::new(),
        };
        life.register(life.registration.clone(), now);
        life
    }

    /// A life that begins in a cluster.
    pub fn new_in_cluster(
        uid: String,
        (registration, cluster): (Registration, ClusterRegistration),
        now: Timestamp,
    ) -> Self {
        let mut life = Self {
            uid,
            registration: registration.clone(),
            cluster: None,
            registered_at: now,
            gone_at: Some(now),
            namings: Vec::new(),
        };
        life.register_in_cluster((registration, cluster), now);
        life
    }

    /// Takes a node's own registration, and says whether the node was not live before.
    pub fn register(&mut self, registration: Registration, now: Timestamp) -> bool {
        self.cluster = None;
        self.take_registration(registration, &[], now)
    }

    /// Takes the registration by a cluster's controller, and says whether the node was not live
    /// before.
    pub fn register_in_cluster(
        &mut self,
        (registration, cluster): (Registration, ClusterRegistration),
        now: Timestamp,
    ) -> bool {
        let new = self.take_registration(registration, &cluster.addresses, now);
        self.cluster = Some(cluster);
        new
    }

    /// Who registered it.
    pub fn origin(&self) -> Origin {
        match self.cluster {
            Some(_) => Origin::Kubernetes,
            None => Origin::Rest,
        }
    }

    fn take_registration(
        &mut self,
        registration: Registration,
        addresses: &[String],
        now: Timestamp,
    ) -> bool {
        let was_gone = self.gone_at.take().is_some();
        let same = self.namings.last().is_some_and(|last| {
            last.until.is_none()
                && last.hostname == registration.hostname
                && last.ip == registration.ip
                && last.addresses == addresses
        });
        if !same {
            self.close_naming(now);
            let (hostname, ip) = (registration.hostname.clone(), registration.ip.clone());
            self.namings.push(Naming {
                hostname,
                ip,
                addresses: addresses.to_vec(),
                from: now,
                until: None,
            });
            let surplus = self.namings.len().saturating_sub(NAMINGS_LIMIT);
            self.namings.drain(..surplus);
        }
        self.registration = registration;
        was_gone
    }

    /// Ends its being managed; history stays.
    pub fn retire(&mut self, now: Timestamp) {
        self.gone_at.get_or_insert(now);
        self.close_naming(now);
    }

    /// Whether it is managed now.
    pub fn is_live(&self) -> bool {
        self.gone_at.is_none()
    }

    fn close_naming(&mut self, now: Timestamp) {
        if let Some(last) = self.namings.last_mut() {
            last.until.get_or_insert(now);
        }
    }

    /// Whether this is its name or one of its addresses now.
    pub fn is_called(&self, name: &str) -> bool {
        let now = self.namings.last().filter(|last| last.until.is_none());
        now.is_some_and(|naming| naming.is(name))
    }

    /// Whether this is or was its name or one of its addresses.
    pub fn was_called(&self, name: &str) -> bool {
        self.namings.iter().any(|naming| naming.is(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let namings = self
            .namings
            .iter()
            .flat_map(|naming| [&*naming.hostname, &*naming.ip]);
        std::iter::once(&*self.uid).chain(namings)
    }
}

impl Naming {
    fn is(&self, name: &str) -> bool {
        self.hostname.eq_ignore_ascii_case(name)
            || self.ip == name
            || self.addresses.iter().any(|address| address == name)
    }

    fn overlaps(&self, from: Timestamp, to: Timestamp) -> bool {
        self.from <= to && self.until.is_none_or(|until| until > from)
    }
}

/// When a request asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Now: only live nodes answer.
    Now,
    /// A span of the past, both ends included.
    Span(Timestamp, Timestamp),
}

/// Why a name leads to no life.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nobody has or had this name; these come close.
    #[error("no node is named {name:?}")]
    Unknown {
        /// The name asked for, shortened.
        name: String,
        /// At most five known names that come close.
        nearest: Vec<String>,
    },
    /// It was managed once, and the request asks about now.
    #[error("{name} signed off at {gone_at}; ask for its history with from and to, or at")]
    Gone {
        /// The name asked for.
        name: String,
        /// When it signed off.
        gone_at: Timestamp,
    },
    /// More than one life had the name then.
    #[error("{name} is the name of more than one node: ask by UID")]
    Ambiguous {
        /// The name asked for.
        name: String,
        /// Their identities.
        uids: Vec<String>,
    },
}

/// The one life that `name` (UID, host name or address, in this order) means.
pub fn resolve<'a, L: Borrow<Life>>(
    lives: &'a [L],
    name: &str,
    when: When,
) -> Result<&'a Life, ResolveError> {
    let all = || lives.iter().map(Borrow::<Life>::borrow);
    // One address has many spellings, and histories know one.
    let canonical = name
        .parse::<IpAddr>()
        .map_or_else(|_| name.to_owned(), |ip| ip.to_string());
    let had_it: Vec<&Life> = match all().find(|life| life.uid == name) {
        Some(life) => vec![life],
        None => all().filter(|life| life.was_called(&canonical)).collect(),
    };
    let has_it_then = |life: &&&Life| match when {
        _ if life.uid == name => when != When::Now || life.is_live(),
        When::Now => {
            life.is_live()
                && life
                    .namings
                    .last()
                    .is_some_and(|naming| naming.is(&canonical))
        }
        When::Span(from, to) => life
            .namings
            .iter()
            .any(|naming| naming.is(&canonical) && naming.overlaps(from, to)),
    };
    let mut owners: Vec<&Life> = had_it.iter().filter(has_it_then).copied().collect();
    if owners.is_empty() && when != When::Now {
        // Samples may be older than the registration (data of the past that somebody puts in).
        owners.clone_from(&had_it);
    }
    match (owners.as_slice(), had_it.last()) {
        ([life], _) => Ok(life),
        ([], None) => Err(ResolveError::Unknown {
            name: canonical.chars().take(80).collect(),
            nearest: nearest(all(), &canonical, when),
        }),
        ([], Some(last)) => Err(match last.gone_at {
            Some(gone_at) => ResolveError::Gone {
                name: canonical,
                gone_at,
            },
            // The life goes on under another name.
            None => ResolveError::Unknown {
                name: canonical,
                nearest: vec![
                    last.registration.ip.clone(),
                    last.registration.hostname.clone(),
                ],
            },
        }),
        (many, _) => Err(ResolveError::Ambiguous {
            name: canonical,
            uids: many.iter().map(|life| life.uid.clone()).collect(),
        }),
    }
}

/// The five known names that take the fewest changes to become `name`, if half of it stays.
fn nearest<'a>(lives: impl Iterator<Item = &'a Life>, name: &str, when: When) -> Vec<String> {
    // A name is at most 253 characters; a longer text is near to none. Nor is a UUID, by which thousands
    // of agents ask at once where a server has lost its registry.
    if name.len() > 253 || uuid::Uuid::parse_str(name).is_ok() {
        return Vec::new();
    }
    let mut close: Vec<(usize, &str)> = lives
        .filter(|life| when != When::Now || life.is_live())
        .flat_map(Life::names)
        // So far apart in length alone that less than half of it stays.
        .filter(|known| known.len().abs_diff(name.len()) <= known.len().max(name.len()) / 2)
        .map(|known| (distance(known, name), known))
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
        .collect();
    close.sort_unstable();
    close.dedup();
    close
        .into_iter()
        .take(5)
        .map(|(_, known)| known.to_owned())
        .collect()
}

/// Levenshtein's distance in bytes, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).expect("in range")
    }

    fn registration(hostname: &str, ip: &str) -> Registration {
        Registration::new(ip, hostname)
    }

    fn life(uid: &str, hostname: &str, ip: &str, born: i64) -> Life {
        Life::new(uid.into(), registration(hostname, ip), at(born))
    }

    #[test]
    fn who_sends_no_identity_is_hostname_and_address() {
        let uid = |hostname, ip| identify(registration(hostname, ip)).expect("valid").0;
        assert_eq!(uid("a", "10.0.0.1"), uid("a", "10.0.0.1"));
        assert_ne!(uid("a", "10.0.0.1"), uid("a", "10.0.0.2"));
        assert_ne!(uid("a", "10.0.0.1"), uid("b", "10.0.0.1"));
        assert_eq!(uid("a", "FE80::0:1"), uid("a", "fe80::1"));
        assert!(Uuid::parse_str(&uid("a", "10.0.0.1")).is_ok());
    }

    #[test]
    fn impossible_registrations_name_the_field() {
        let field = |registration| identify(registration).map_err(|error| error.field());
        assert_eq!(field(registration("a", "10.0.0.256")), Err("ip"));
        assert_eq!(field(registration("", "10.0.0.1")), Err("hostname"));
        assert_eq!(field(registration("<b>", "10.0.0.1")), Err("hostname"));
        let uid = Some("a/b".to_owned());
        assert_eq!(
            field(Registration {
                uid,
                ..registration("a", "10.0.0.1")
            }),
            Err("uid")
        );
        let os = Some("x".repeat(300));
        assert_eq!(
            field(Registration {
                os,
                ..registration("a", "10.0.0.1")
            }),
            Err("os")
        );
    }

    #[test]
    fn a_reused_address_leads_to_the_life_of_that_time() {
        let mut old = life("old", "a", "10.0.0.1", 100);
        old.retire(at(200));
        let lives = [old, life("new", "b", "10.0.0.1", 300)];
        let uid = |name, when| resolve(&lives, name, when).map(|life| life.uid.as_str());
        assert_eq!(uid("10.0.0.1", When::Now), Ok("new"));
        assert_eq!(uid("10.0.0.1", When::Span(at(100), at(250))), Ok("old"));
        assert_eq!(uid("10.0.0.1", When::Span(at(250), at(400))), Ok("new"));
        assert_eq!(uid("old", When::Span(at(250), at(400))), Ok("old"));
        assert_eq!(uid("A", When::Span(at(0), at(1000))), Ok("old"));
        assert!(matches!(
            uid("a", When::Now),
            Err(ResolveError::Gone { .. })
        ));
        assert!(matches!(
            uid("old", When::Now),
            Err(ResolveError::Gone { .. })
        ));
        let both = uid("10.0.0.1", When::Span(at(100), at(400)));
        let uids = vec!["old".to_owned(), "new".to_owned()];
        assert_eq!(
            both,
            Err(ResolveError::Ambiguous {
                name: "10.0.0.1".into(),
                uids
            })
        );
    }

    #[test]
    fn two_live_owners_are_an_error_that_names_both() {
        let lives = [
            life("x", "a", "10.0.0.1", 100),
            life("y", "b", "10.0.0.1", 100),
        ];
        let error = resolve(&lives, "10.0.0.1", When::Now).expect_err("ambiguous");
        assert!(matches!(error, ResolveError::Ambiguous { uids, .. } if uids == ["x", "y"]));
        assert_eq!(
            resolve(&lives, "b", When::Now).map(|life| &*life.uid),
            Ok("y")
        );
    }

    #[test]
    fn a_past_before_the_registration_belongs_to_who_has_the_name() {
        let lives = [life("x", "a", "10.0.0.1", 1000)];
        let span = When::Span(at(0), at(10));
        assert_eq!(
            resolve(&lives, "10.0.0.1", span).map(|life| &*life.uid),
            Ok("x")
        );
    }

    #[test]
    fn a_changed_address_is_remembered_with_its_time() {
        let mut moved = life("x", "a", "10.0.0.1", 100);
        assert!(!moved.register(registration("a", "10.0.0.2"), at(200)));
        let lives = [moved];
        assert!(resolve(&lives, "10.0.0.1", When::Now).is_err());
        assert!(resolve(&lives, "10.0.0.2", When::Now).is_ok());
        assert!(resolve(&lives, "10.0.0.1", When::Span(at(150), at(160))).is_ok());
    }

    #[test]
    fn registering_again_after_signing_off_is_new() {
        let mut node = life("x", "a", "10.0.0.1", 100);
        assert!(!node.register(registration("a", "10.0.0.1"), at(110)));
        assert_eq!(node.namings.len(), 1);
        node.retire(at(120));
        assert!(!node.is_live());
        assert!(node.register(registration("a", "10.0.0.1"), at(130)));
        assert!(node.is_live());
        assert_eq!(node.namings.len(), 2);
    }

    #[test]
    fn a_cluster_s_node_answers_to_all_its_addresses() {
        let said = |addresses: &[&str]| ClusterRegistration {
            hostname: "node-1".to_owned(),
            ip: "10.0.0.1".to_owned(),
            addresses: addresses.iter().map(|ip| (*ip).to_owned()).collect(),
            kernel: None,
            os: None,
            architecture: None,
            agent_version: None,
            interval_seconds: 10,
            retention_seconds: 3600,
            retention_minute_seconds: None,
            retention_hour_seconds: None,
            deletion_policy: nodestats_wire::v1::DeletionPolicy::Retain,
        };
        let checked = identify_in_cluster("x", said(&["fd00:0::1"])).expect("valid");
        let mut life = Life::new_in_cluster("x".to_owned(), checked, at(100));
        assert_eq!(life.origin(), Origin::Kubernetes);
        let found =
            |life: &Life, name| resolve(std::slice::from_ref(life), name, When::Now).is_ok();
        assert!(found(&life, "fd00::1") && found(&life, "10.0.0.1") && found(&life, "node-1"));
        let moved = identify_in_cluster("x", said(&["fd00::2"])).expect("valid");
        assert!(!life.register_in_cluster(moved, at(200)));
        assert!(!found(&life, "fd00::1") && found(&life, "fd00::2"));
        assert!(identify_in_cluster("x", said(&["nonsense"])).is_err());
        assert!(identify_in_cluster("a b", said(&[])).is_err());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let lives = [
            life("x", "web-1", "10.0.0.1", 100),
            life("y", "db-1", "10.0.0.2", 100),
        ];
        let Err(ResolveError::Unknown { nearest, .. }) = resolve(&lives, "web-2", When::Now) else {
            panic!("web-2 is unknown");
        };
        assert_eq!(nearest.first().map(String::as_str), Some("web-1"));
    }
}

//! What the parts of a group's path say: whose group it is.

use std::sync::Arc;

use nodestats_core::sample::cgroup::Kind;

/// Where a process runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its group, as the kernel shows it to this process.
    pub(crate) path: Option<String>,
    pub(crate) container_id: Option<String>,
    pub(crate) pod_uid: Option<String>,
}

/// Reads `/proc/PID/cgroup`: `hierarchy:controllers:path` a line, of version 1, 2 or both.
pub(crate) fn of_process(text: &str) -> Place {
    let mut place = Place {
        // The hierarchy in which groups are looked for first: `Layout::trees`.
        path: ["cpuacct", "cpu", "", "memory"]
            .into_iter()
            .find_map(|controller| path_in(text, controller)),
        ..Place::default()
    };
    let first = place.path.clone().into_iter();
    let others = text
        .lines()
        .filter_map(|line| Some(line.splitn(3, ':').nth(2)?.to_owned()));
    for path in first.chain(others) {
        for segment in path.split('/') {
            // The outermost one, and none that a user of the host made.
            if place.pod_uid.is_none() && !path.contains("/user.slice/") {
                place.pod_uid = pod_uid(segment);
            }
            // The innermost one: a container may hold others.
            place.container_id = container_id(segment).or(place.container_id);
        }
        if place.pod_uid.is_some() || place.container_id.is_some() {
            break;
        }
    }
    place
}

/// The path in the hierarchy of this controller of version 1, or with an empty name in that of
/// version 2.
pub(super) fn path_in(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let has = controllers.split(',').any(|name| name == controller);
        has.then(|| path.to_owned())
    })
}

/// A path that the kernel shows to a process whose cgroup namespace begins at `own_root`, from the
/// root of the hierarchy; `None` where it leads out of what is known.
pub(super) fn absolute(own_root: &str, path: &str) -> Option<String> {
    let mut segments: Vec<&str> = own_root
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        match part {
            ".." => drop(segments.pop()?),
            part => segments.push(part),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

/// What a group of this name stands for; `None` for one that nobody has a name for, such as the
/// classes of Kubernetes' pods.
pub(super) fn kind(segment: &str, pod: Option<&Arc<str>>) -> Option<Kind> {
    if let Some(id) = container_id(segment) {
        return Some(Kind::Container {
            id: id.into(),
            pod_uid: pod.cloned().or_else(|| pod_uid(segment).map(Arc::from)),
        });
    }
    if let Some(uid) = pod_uid(segment) {
        return Some(Kind::Pod { uid: uid.into() });
    }
    let (name, suffix) = segment.rsplit_once('.')?;
    match suffix {
        // Those around pods are the classes of Kubernetes.
        "slice" => Some(Kind::Slice),
        "scope" if name.starts_with("session-") => Some(Kind::Session),
        "service" | "scope" | "socket" | "mount" | "swap" => Some(Kind::Unit),
        _ => None,
    }
}

/// `pod<uid>` of the cgroupfs driver, `kubepods-burstable-pod<uid>.slice` of systemd's, where
/// dashes stand as underscores.
fn pod_uid(segment: &str) -> Option<String> {
    // The cgroupfs driver has names of systemd's, with the runtime and the container behind them.
    let name = segment.split(':').next().unwrap_or(segment);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        // Below a cgroup root of its own the kubelet's slices begin with that one's name.
        None if name.starts_with("kubepods") || name.contains("-kubepods") => {
            &name[name.rfind("-pod")? + 4..]
        }
        None => return None,
    };
    let uid = uid.replace('_', "-");
    let hexadecimal = |c: char| c.is_ascii_hexdigit() || c == '-';
    // Static pods have a hash of 32 digits, others a UUID.
    (matches!(uid.len(), 32 | 36) && uid.chars().all(hexadecimal)).then_some(uid)
}

/// 64 hexadecimal digits, alone or between a runtime's prefix and `.scope`.
fn container_id(segment: &str) -> Option<String> {
    // What watches a container of CRI-O has its id, and is not it.
    if segment.starts_with("crio-conmon-") {
        return None;
    }
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";

    #[test]
    fn each_driver_and_runtime_is_understood() {
        let id = "0123456789abcdef".repeat(4);
        let under = UID.replace('-', "_");
        for path in [
            format!("/kubepods/burstable/pod{UID}/{id}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
            ),
            format!("/../../kubepods-pod{under}.slice/crio-{id}.scope"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/cri-containerd-{id}.scope"
            ),
            format!(
                "/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:{id}"
            ),
        ] {
            let found = of_process(&format!("0::{path}\n"));
            assert_eq!(found.path.as_ref(), Some(&path));
            assert_eq!(found.container_id.as_ref(), Some(&id), "{path}");
            assert_eq!(found.pod_uid.as_deref(), Some(UID), "{path}");
        }
        let text = format!("12:cpu,cpuacct:/\n11:memory:/kubepods/pod{UID}/{id}\n0::/x\n");
        let found = of_process(&text);
        assert_eq!(found.path.as_deref(), Some("/"));
        assert_eq!(found.container_id.as_ref(), Some(&id));
        assert_eq!(
            of_process(&format!("0::/system.slice/docker-{id}.scope\n")).container_id,
            Some(id)
        );
        let session = of_process("0::/user.slice/user-0.slice/session-1.scope\n");
        assert_eq!((session.container_id, session.pod_uid), (None, None));
        let made_up =
            format!("0::/user.slice/user-1000.slice/user@1000.service/pod{UID}/x.scope\n");
        assert_eq!(of_process(&made_up).pod_uid, None);
        assert_eq!(of_process(""), Place::default());
        assert_eq!(pod_uid("kubepods-burstable.slice"), None);
    }

    #[test]
    fn names_say_what_a_group_stands_for() {
        let id = "0123456789abcdef".repeat(4);
        let pod: Arc<str> = UID.into();
        let container = Kind::Container {
            id: id.as_str().into(),
            pod_uid: Some(pod.clone()),
        };
        assert_eq!(kind(&id, Some(&pod)), Some(container.clone()));
        let joined = format!(
            "kubepods-burstable-pod{}.slice:cri-containerd:{id}",
            UID.replace('-', "_")
        );
        assert_eq!(kind(&joined, None), Some(container));
        assert_eq!(
            kind(&format!("pod{UID}"), None),
            Some(Kind::Pod { uid: pod })
        );
        for (name, expected) in [
            ("ssh.service", Some(Kind::Unit)),
            ("init.scope", Some(Kind::Unit)),
            ("session-3.scope", Some(Kind::Session)),
            ("user-0.slice", Some(Kind::Slice)),
            ("burstable", None),
            ("kubepods", None),
        ] {
            assert_eq!(kind(name, None), expected, "{name}");
        }
        let watcher = format!("crio-conmon-{id}.scope");
        assert_eq!(kind(&watcher, None), Some(Kind::Unit));
    }

    #[test]
    fn paths_of_a_private_namespace_are_seen_from_the_root() {
        let own = "/kubepods/burstable/poda/b";
        for (shown, path) in [
            ("/", Some("/kubepods/burstable/poda/b")),
            ("/../c", Some("/kubepods/burstable/poda/c")),
            (
                "/../../../../system.slice/x.service",
                Some("/system.slice/x.service"),
            ),
            ("/../../../../..", None),
        ] {
            assert_eq!(absolute(own, shown).as_deref(), path, "{shown}");
        }
        assert_eq!(absolute("/", "/a/b").as_deref(), Some("/a/b"));
        assert_eq!(absolute("/", "/../a"), None);
    }
}

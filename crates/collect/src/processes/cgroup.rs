//! Container and pod of a process, from its cgroup path.

/// Where a process runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) container_id: Option<String>,
    pub(super) pod_uid: Option<String>,
}

/// Reads `/proc/PID/cgroup`: `hierarchy:controllers:path` a line, of version 1, 2 or both.
pub(super) fn parse(text: &str) -> Place {
    let mut place = Place::default();
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        for segment in path.split('/') {
            place.pod_uid = pod_uid(segment).or(place.pod_uid);
            // The innermost one: a container may hold others.
            place.container_id = container_id(segment).or(place.container_id);
        }
        if place != Place::default() {
            break;
        }
    }
    place
}

/// `pod<uid>` of the cgroupfs driver, `kubepods-burstable-pod<uid>.slice` of systemd's, where
/// dashes stand as underscores.
fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None if name.starts_with("kubepods") => &name[name.rfind("-pod")? + 4..],
        None => return None,
    };
    let uid = uid.replace('_', "-");
    let hexadecimal = |c: char| c.is_ascii_hexdigit() || c == '-';
    // Static pods have a hash of 32 digits, others a UUID.
    (matches!(uid.len(), 32 | 36) && uid.chars().all(hexadecimal)).then_some(uid)
}

/// 64 hexadecimal digits, alone or between a runtime's prefix and `.scope`.
fn container_id(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_and_runtime_is_understood() {
        let id = "0123456789abcdef".repeat(4);
        let uid = "3c1f5a52-8e37-4c5e-9f5d-0a2b3c4d5e6f";
        let under = uid.replace('-', "_");
        let both = Place {
            container_id: Some(id.clone()),
            pod_uid: Some(uid.into()),
        };
        for path in [
            format!("/kubepods/burstable/pod{uid}/{id}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
            ),
            format!("/../../kubepods-pod{under}.slice/crio-{id}.scope"),
            format!(
                "/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:{id}"
            ),
        ] {
            let found = parse(&format!("0::{path}\n"));
            assert_eq!(found.container_id, both.container_id, "{path}");
        }
        assert_eq!(
            parse(&format!("12:cpu:/\n11:memory:/kubepods/pod{uid}/{id}\n")),
            both
        );
        assert_eq!(
            parse(&format!("0::/system.slice/docker-{id}.scope\n")).container_id,
            Some(id)
        );
        assert_eq!(
            parse("0::/user.slice/user-0.slice/session-1.scope\n"),
            Place::default()
        );
        assert_eq!(parse(""), Place::default());
        assert_eq!(pod_uid("kubepods-burstable.slice"), None);
    }
}

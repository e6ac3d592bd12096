//! What happened, one line each.

use jiff::tz::TimeZone;
use nodestats_wire::v1::{Event, EventKind};

use crate::table::{Table, or_dash};
use crate::times;

pub(super) fn render(events: &[Event], wide: bool, zone: &TimeZone) -> String {
    let Some(first) = events.first().and_then(|event| event.time) else {
        return "nothing happened in this span\n".to_owned();
    };
    let mut headings = vec!["TIME", "KIND", "NODE", "POD", "WHAT"];
    if wide {
        headings.extend(["CGROUP", "CONTAINER ID", "SOURCES"]);
    }
    let mut table = Table::new(&headings);
    for event in events {
        let pod = match (&event.namespace, &event.pod, &event.pod_uid) {
            (Some(namespace), Some(pod), _) => Some(format!("{namespace}/{pod}")),
            (.., uid) => uid.clone(),
        };
        let mut row = vec![
            or_dash(event.time.map(|time| times::local(zone, time))),
            event.kind.map_or("-", EventKind::name).to_owned(),
            or_dash(event.node.clone().or_else(|| event.node_uid.clone())),
            or_dash(pod),
            or_dash(event.message.clone()),
        ];
        if wide {
            let sources = event.sources.iter().flatten();
            let sources: Vec<String> = sources
                .filter_map(|source| {
                    let name = serde_json::to_value(source).ok()?;
                    name.as_str().map(str::to_owned)
                })
                .collect();
            row.extend([
                or_dash(event.cgroup.clone()),
                or_dash(event.container_id.clone()),
                sources.join(", "),
            ]);
        }
        table.row(row);
    }
    format!(
        "times are {}\n{}",
        times::zone_name(zone, first),
        table.render()
    )
}

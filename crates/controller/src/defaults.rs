//! The cluster's defaults in `spec`: which of them are to be applied to an object.
//!
//! They are applied by a field manager of their own and never by force, so that a changed value
//! reaches every node that nobody edited, and a field that somebody else owns is left out: one
//! conflict must not stop the others.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use nodestats_k8s::{MonitoredNode, MonitoredNodeSpec, manager};
use serde_json::{Map, Value};

/// The defaults in the form that the resource has them in (`60s` is `1m`); an error names what no
/// spec has, or what the resource's definition refuses.
pub(crate) fn canonical(defaults: &Value) -> anyhow::Result<Value> {
    let spec: MonitoredNodeSpec = serde_json::from_value(defaults.clone())
        .map_err(|error| anyhow::anyhow!("the defaults are no spec: {error}"))?;
    let interval = spec.interval.0;
    let whole_seconds = interval.subsec_nanos() == 0;
    if !whole_seconds || interval.is_zero() || interval > std::time::Duration::from_hours(1) {
        anyhow::bail!("the default interval is from 1s to 1h");
    }
    let whole = serde_json::to_value(spec)?;
    match unknown(defaults, &whole, "") {
        Some(field) => anyhow::bail!("the defaults have a field that no spec has: {field}"),
        None => Ok(project(defaults, &whole)),
    }
}

/// The values of `whole` at the leaves of `part`.
fn project(part: &Value, whole: &Value) -> Value {
    let Some(part) = part.as_object() else {
        return whole.clone();
    };
    let field = |(key, part): (&String, &Value)| {
        let whole = whole.get(key).unwrap_or(&Value::Null);
        (key.clone(), project(part, whole))
    };
    Value::Object(part.iter().map(field).collect())
}

fn unknown(part: &Value, whole: &Value, path: &str) -> Option<String> {
    let part = part.as_object()?;
    part.iter().find_map(|(key, value)| {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match whole.get(key) {
            None => Some(path),
            Some(whole) => unknown(value, whole, &path),
        }
    })
}

/// The spec to apply, or `None` where the object has it already.
pub(crate) fn wanted(object: &MonitoredNode, defaults: &Value) -> Option<Value> {
    let entries = object
        .metadata
        .managed_fields
        .as_deref()
        .unwrap_or_default();
    let ours = |entry: &&ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(manager::DEFAULTS)
            && entry.operation.as_deref() == Some("Apply")
    };
    let own = fields(entries.iter().filter(ours));
    let others = fields(
        entries
            .iter()
            .filter(|entry| !ours(entry) && entry.subresource.is_none()),
    );
    let spec = serde_json::to_value(&object.spec).unwrap_or_default();
    let wanted = without(defaults, &others);
    let unchanged = same_fields(&wanted, &own) && has(&spec, &wanted);
    (!unchanged).then_some(wanted)
}

/// Drops from the managed fields what is not asked for here: at thousands of nodes they are most of
/// what an object takes.
pub(crate) fn keep_owners_of_spec(metadata: &mut ObjectMeta) {
    let entries = metadata.managed_fields.iter_mut().flatten();
    for entry in entries {
        if let Some(fields) = &mut entry.fields_v1 {
            let spec = fields.0.get_mut("f:spec").map(Value::take);
            fields.0 = spec.map_or(Value::Null, |spec| serde_json::json!({ "f:spec": spec }));
        }
    }
    if let Some(entries) = &mut metadata.managed_fields {
        entries.retain(|entry| {
            entry
                .fields_v1
                .as_ref()
                .is_some_and(|fields| !fields.0.is_null())
        });
        entries.shrink_to_fit();
    }
}

/// The fields of `spec` that these entries own, as a tree of `f:…` keys (`fieldsV1`).
fn fields<'a>(entries: impl Iterator<Item = &'a ManagedFieldsEntry>) -> Value {
    let mut all = Value::Object(Map::new());
    for entry in entries {
        if let Some(fields) = &entry.fields_v1
            && let Some(spec) = fields.0.get("f:spec")
        {
            merge(&mut all, spec);
        }
    }
    all
}

fn merge(into: &mut Value, from: &Value) {
    let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) else {
        return;
    };
    for (key, value) in from.iter().filter(|(key, _)| key.starts_with("f:")) {
        merge(
            into.entry(key.clone())
                .or_insert_with(|| Value::Object(Map::new())),
            value,
        );
    }
}

fn owned<'a>(tree: &'a Value, field: &str) -> Option<&'a Value> {
    tree.get(format!("f:{field}"))
}

/// The defaults without the leaves that somebody else owns.
fn without(defaults: &Value, others: &Value) -> Value {
    let Some(object) = defaults.as_object() else {
        return defaults.clone();
    };
    let kept = object.iter().filter_map(|(key, value)| {
        let theirs = owned(others, key);
        match (value.is_object(), theirs) {
            (false, Some(_)) => None,
            (true, Some(theirs)) => {
                let rest = without(value, theirs);
                let empty = rest.as_object().is_some_and(Map::is_empty);
                (!empty).then(|| (key.clone(), rest))
            }
            (_, None) => Some((key.clone(), value.clone())),
        }
    });
    Value::Object(kept.collect())
}

/// Whether exactly the leaves of `wanted` are owned.
fn same_fields(wanted: &Value, own: &Value) -> bool {
    let empty = Map::new();
    let own = own.as_object().unwrap_or(&empty);
    match wanted.as_object() {
        None => own.is_empty(),
        Some(wanted) => {
            wanted.len() == own.len()
                && wanted.iter().all(|(key, value)| {
                    let mine = own.get(&format!("f:{key}"));
                    mine.is_some_and(|mine| same_fields(value, mine))
                })
        }
    }
}

/// Whether `spec` has each value of `wanted`.
fn has(spec: &Value, wanted: &Value) -> bool {
    match wanted.as_object() {
        None => spec == wanted,
        Some(wanted) => wanted
            .iter()
            .all(|(key, value)| spec.get(key).is_some_and(|spec| has(spec, value))),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
    use serde_json::json;

    use super::*;

    fn object(spec: Value, owners: &[(&str, Value)]) -> MonitoredNode {
        let spec: MonitoredNodeSpec = serde_json::from_value(spec).expect("a spec");
        let mut object = MonitoredNode::new("node-1", spec);
        let entry = |(owner, fields): &(&str, Value)| ManagedFieldsEntry {
            manager: Some((*owner).to_owned()),
            operation: Some("Apply".to_owned()),
            fields_v1: Some(FieldsV1(json!({ "f:spec": fields }))),
            ..ManagedFieldsEntry::default()
        };
        object.metadata.managed_fields = Some(owners.iter().map(entry).collect());
        object
    }

    #[test]
    fn what_nobody_owns_is_applied_and_what_a_person_owns_is_left_out() {
        let defaults = json!({"interval": "30s", "processes": {"commandLine": "Off"}});
        let fresh = object(json!({}), &[]);
        assert_eq!(wanted(&fresh, &defaults), Some(defaults.clone()));
        let edited = object(
            json!({"interval": "1m"}),
            &[("kubectl", json!({"f:interval": {}}))],
        );
        let rest = json!({"processes": {"commandLine": "Off"}});
        assert_eq!(wanted(&edited, &defaults), Some(rest));
        let mut slim = edited.clone();
        keep_owners_of_spec(&mut slim.metadata);
        assert_eq!(wanted(&slim, &defaults), wanted(&edited, &defaults));
        let all = json!({"f:interval": {}, "f:processes": {"f:commandLine": {}}});
        let both = object(json!({}), &[("kubectl", all)]);
        assert_eq!(wanted(&both, &defaults), None);
    }

    #[test]
    fn what_is_applied_already_is_not_applied_again() {
        let defaults = json!({"interval": "30s", "processes": {"commandLine": "Off"}});
        let own = json!({"f:interval": {}, "f:processes": {"f:commandLine": {}}});
        let done = object(defaults.clone(), &[(manager::DEFAULTS, own.clone())]);
        assert_eq!(wanted(&done, &defaults), None);
        let other = json!({"interval": "20s"});
        assert_eq!(wanted(&done, &other), Some(other.clone()));
        // A person took over a field that was ours: we let go of it.
        let person = ("kubectl", json!({"f:interval": {}}));
        let taken = object(defaults.clone(), &[(manager::DEFAULTS, own), person]);
        assert_eq!(
            wanted(&taken, &defaults),
            Some(json!({"processes": {"commandLine": "Off"}}))
        );
    }

    #[test]
    fn defaults_that_no_spec_has_are_refused() {
        for wrong in [
            json!({"intervall": "10s"}),
            json!({"processes": {"x": 1}}),
            json!({"interval": 5}),
        ] {
            assert!(canonical(&wrong).is_err(), "{wrong}");
        }
        for right in [
            json!({}),
            json!({"interval": "1m", "retention": {"raw": "7d"}}),
        ] {
            assert_eq!(canonical(&right).expect("a spec"), right);
        }
    }

    #[test]
    fn another_spelling_is_the_same_value() {
        let written = json!({"interval": "60s", "retention": {"raw": "24h"}});
        let defaults = canonical(&written).expect("a spec");
        assert_eq!(
            defaults,
            json!({"interval": "1m", "retention": {"raw": "1d"}})
        );
        let own = json!({"f:interval": {}, "f:retention": {"f:raw": {}}});
        let done = object(written, &[(manager::DEFAULTS, own)]);
        assert_eq!(wanted(&done, &defaults), None);
        for refused in [json!({"interval": "2h"}), json!({"interval": "500ms"})] {
            assert!(canonical(&refused).is_err(), "{refused}");
        }
    }
}

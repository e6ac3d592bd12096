//! Logs of programs, which are an object a line where nobody reads them on a terminal.

use serde_json::Value;

/// The lines of a log with this target, each as `name=value name=value …`.
pub fn lines_of(log: &str, target: &str) -> Vec<String> {
    let objects = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_target = objects.filter(|line| line["target"] == target);
    let told = |line: Value| {
        let fields = line.as_object().into_iter().flatten();
        let field = |(name, value): (&String, &Value)| match value.as_str() {
            Some(text) => format!("{name}={text}"),
            None => format!("{name}={value}"),
        };
        fields.map(field).collect::<Vec<_>>().join(" ")
    };
    of_target.map(told).collect()
}

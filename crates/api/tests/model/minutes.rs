//! Figures by minutes, of samples and of rollups, with what stands for all samples of a minute.

use std::collections::BTreeMap;

use nodestats_core::rollup;
use serde_json::{Value, json};

use super::History;
use super::made::{at, is_near};

/// A figure at a sample, and for how long it stands, in seconds.
#[derive(Debug)]
pub(crate) struct Seen {
    value: f64,
    weight: f64,
}

impl Seen {
    /// What was seen and not watched counts next to nothing.
    pub(crate) fn new(value: f64, span: Option<f64>) -> Self {
        let weight = span.unwrap_or(1e-6);
        Self { value, weight }
    }
}

/// What is asked for, and all that was seen of it, by minutes.
pub(crate) struct Figure {
    /// With its span.
    pub(crate) path: String,
    /// Where it stands in an entry (RFC 6901).
    pub(crate) pointer: &'static str,
    pub(crate) seen: BTreeMap<i64, Vec<Seen>>,
    pub(crate) aggregate: &'static str,
    pub(crate) error: f64,
    /// Whether rollups keep it always, and not from the begin of an hour on.
    pub(crate) is_whole: bool,
}

/// What stands for all that was seen, and how far a quantile may be from it.
fn stands_for(seen: &[Seen], aggregate: &str) -> (f64, f64) {
    let mut values: Vec<f64> = seen.iter().map(|seen| seen.value).collect();
    let value = match aggregate {
        "max" => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
        "min" => values.into_iter().fold(f64::INFINITY, f64::min),
        "last" => *values.last().expect("one"),
        "mean" => {
            let sum: f64 = seen.iter().map(|seen| seen.value * seen.weight).sum();
            sum / seen.iter().map(|seen| seen.weight).sum::<f64>()
        }
        _ => {
            values.sort_by(f64::total_cmp);
            let share = if aggregate == "p95" { 0.95 } else { 0.5 };
            let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
            let exact = values[rank - 1];
            return (exact, exact * (rollup::ERROR + 1e-6));
        }
    };
    (value, 0.0)
}

impl History {
    /// A span of whole minutes.
    pub(crate) fn minutes(&mut self) -> (i64, i64) {
        let (from, to) = self.span();
        (from / 60 * 60, to / 60 * 60 + 59)
    }

    pub(crate) fn aggregate(&mut self, has_quantiles: bool) -> &'static str {
        let count = if has_quantiles { 6 } else { 4 };
        ["mean", "max", "min", "last", "p95", "p50"][self.random.below(count) as usize]
    }

    pub(crate) async fn by_minutes(&self, figure: Figure) {
        let path = format!("{}&step=60&aggregate={}", figure.path, figure.aggregate);
        let answer = self.get(&path).await.unwrap_or_else(|| json!({}));
        let told = answer.as_object().expect("entries").iter();
        let mut told: BTreeMap<&str, f64> = told
            .filter_map(|(key, entry)| {
                Some((key.as_str(), entry.pointer(figure.pointer)?.as_f64()?))
            })
            .collect();
        let context = || format!("{}: {path} {}", self.stage, figure.pointer);
        let mut left_out = None;
        for (minute, seen) in &figure.seen {
            let key = at(*minute).to_key();
            let Some(told) = told.remove(key.as_str()) else {
                if !seen.is_empty() {
                    assert!(!figure.is_whole, "{}: {key}: {answer}", context());
                    left_out = Some(*minute);
                }
                continue;
            };
            assert!(!seen.is_empty(), "{}: {key}: {told}", context());
            let (expected, more) = stands_for(seen, figure.aggregate);
            assert!(
                is_near(told, expected, figure.error + more),
                "{}: {key}: {told} {expected}",
                context()
            );
            // What is kept once is kept until it ends, from the begin of an hour on.
            if let Some(left_out) = left_out {
                assert!(left_out / 3600 < minute / 3600, "{}: {key}", context());
            }
        }
        assert!(told.is_empty(), "{}: {told:?}", context());
    }
}

/// A number, or none.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

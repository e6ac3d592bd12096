//! The two texts that Prometheus reads: its own (version 0.0.4) and `OpenMetrics` 1.0.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::data::{
    AggregatedMetrics, Histogram, MetricData, ResourceMetrics, ScopeMetrics,
};

/// Which of them is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What a client that sends this `Accept` header is given: `OpenMetrics` where it names that, as
    /// Prometheus does.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// The media type of the text.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a family of samples is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until its source begins anew.
    Counter,
    /// It is what it is.
    Gauge,
    /// Counts by upper bounds.
    Histogram,
    /// Nobody says.
    Untyped,
}

/// A text under way.
#[derive(Debug)]
pub struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    /// An empty one.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            text: String::new(),
        }
    }

    /// Begins a family; its samples follow. `name` is as Prometheus has it, with `_total` where it is a
    /// counter.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.describe(name, kind, help, None);
    }

    fn describe(&mut self, name: &str, kind: Kind, help: &str, unit: Option<&str>) {
        let open = self.format == Format::OpenMetrics;
        let (name, kind) = match kind {
            Kind::Counter if open => match name.strip_suffix("_total") {
                Some(stem) => (stem, "counter"),
                // There a counter ends so, always.
                None => (name, "unknown"),
            },
            Kind::Counter => (name, "counter"),
            Kind::Gauge => (name, "gauge"),
            Kind::Histogram => (name, "histogram"),
            Kind::Untyped if open => (name, "unknown"),
            Kind::Untyped => (name, "untyped"),
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}");
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
        if let Some(unit) = unit.filter(|_| open) {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    /// A sample of the family that was begun last.
    pub fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        value: impl Display,
    ) {
        self.text.push_str(name);
        let mut open = '{';
        for (label, value) in labels {
            self.text.push(open);
            open = ',';
            self.text.push_str(label);
            self.text.push_str("=\"");
            for char in value.chars() {
                match char {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    char => self.text.push(char),
                }
            }
            self.text.push('"');
        }
        if open == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// The text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// Writes what instruments say, by the rules of OpenTelemetry's "Prometheus and `OpenMetrics`
/// Compatibility": dots become underscores, the unit is part of the name, counters end in `_total`.
pub(super) fn write(metrics: &ResourceMetrics, to: &mut Exposition) {
    // A name that two rooms use is one family.
    let mut families: BTreeMap<String, Vec<&AggregatedMetrics>> = BTreeMap::new();
    let mut described = BTreeMap::new();
    for metric in metrics.scope_metrics().flat_map(ScopeMetrics::metrics) {
        let unit = unit(metric.unit());
        let mut name = escape(metric.name()).into_owned();
        if let Some(unit) = unit
            && !name.ends_with(unit)
        {
            name = format!("{name}_{unit}");
        }
        let kind = kind(metric.data());
        if kind == Kind::Counter {
            name.push_str("_total");
        }
        described
            .entry(name.clone())
            .or_insert((kind, metric.description(), unit));
        families.entry(name).or_default().push(metric.data());
    }
    for (name, data) in families {
        let (kind, help, unit) = described[&name];
        to.describe(&name, kind, help, unit);
        for data in data {
            match data {
                AggregatedMetrics::F64(data) => points(&name, data, to),
                AggregatedMetrics::U64(data) => points(&name, data, to),
                AggregatedMetrics::I64(data) => points(&name, data, to),
            }
        }
    }
}

fn kind(data: &AggregatedMetrics) -> Kind {
    fn of<T>(data: &MetricData<T>) -> Kind {
        match data {
            MetricData::Sum(sum) if sum.is_monotonic() => Kind::Counter,
            MetricData::Gauge(_) | MetricData::Sum(_) => Kind::Gauge,
            MetricData::Histogram(_) | MetricData::ExponentialHistogram(_) => Kind::Histogram,
        }
    }
    match data {
        AggregatedMetrics::F64(data) => of(data),
        AggregatedMetrics::U64(data) => of(data),
        AggregatedMetrics::I64(data) => of(data),
    }
}

fn points<T: Copy + Display>(name: &str, data: &MetricData<T>, to: &mut Exposition) {
    match data {
        MetricData::Gauge(gauge) => {
            for point in gauge.data_points() {
                sample(name, point.attributes(), point.value(), to);
            }
        }
        MetricData::Sum(sum) => {
            for point in sum.data_points() {
                sample(name, point.attributes(), point.value(), to);
            }
        }
        MetricData::Histogram(histogram) => buckets(name, histogram, to),
        // Nothing here makes one: it has no form in these texts.
        MetricData::ExponentialHistogram(_) => {}
    }
}

fn sample<'a>(
    name: &str,
    attributes: impl Iterator<Item = &'a KeyValue>,
    value: impl Display,
    to: &mut Exposition,
) {
    let labels = labels(attributes);
    to.sample(name, pairs(&labels), value);
}

fn buckets<T: Copy + Display>(name: &str, histogram: &Histogram<T>, to: &mut Exposition) {
    for point in histogram.data_points() {
        let labels = labels(point.attributes());
        let bounds = point.bounds().map(|bound| bound.to_string());
        let bounds = bounds.chain(std::iter::once("+Inf".to_owned()));
        let mut below = 0;
        for (bound, count) in bounds.zip(point.bucket_counts()) {
            below += count;
            let le = ("le", bound.as_str());
            to.sample(&format!("{name}_bucket"), pairs(&labels).chain([le]), below);
        }
        to.sample(&format!("{name}_sum"), pairs(&labels), point.sum());
        to.sample(&format!("{name}_count"), pairs(&labels), point.count());
    }
}

fn labels<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> Vec<(String, String)> {
    let label = |one: &KeyValue| {
        let name = escape(one.key.as_str()).into_owned();
        (name, one.value.as_str().into_owned())
    };
    let mut labels: Vec<_> = attributes.map(label).collect();
    labels.sort();
    labels
}

fn pairs(labels: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(name, value)| (&**name, &**value))
}

fn escape(name: &str) -> Cow<'_, str> {
    let odd = |char: char| !(char.is_ascii_alphanumeric() || char == '_' || char == ':');
    if name.contains(odd) {
        Cow::Owned(name.replace(odd, "_"))
    } else {
        Cow::Borrowed(name)
    }
}

/// The unit (UCUM) as Prometheus calls it; what stands in braces is no unit but a word for a reader.
fn unit(unit: &str) -> Option<&'static str> {
    match unit {
        "s" => Some("seconds"),
        "By" => Some("bytes"),
        _ => None,
    }
}

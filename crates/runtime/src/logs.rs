//! Logs: on standard error, one line an event; standard output is for data.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use opentelemetry_sdk::trace::Tracer;
use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, format};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::telemetry;

/// Our own programs at `info`, all others at `warn`.
const DEFAULT: &str = "warn,nodestats=info,nodestats_api=info,nodestats_agent=info,\
                       nodestats_controller=info,nodestats_store=info,nodestats_runtime=info";
/// What the targets of our own spans begin with.
const OURS: [&str; 2] = ["nodestats", "kubectl_nodestats"];
/// Lines with this target record what somebody did: each of them is written.
const AUDIT: &str = "nodestats::audit";
/// Lines that one place of the program writes in [`WINDOW`]; further ones are counted, and the next line
/// says how many there were. A fault that comes back with every request must not fill a disk.
const LINES: u32 = 30;
const WINDOW: Duration = Duration::from_mins(1);

/// How a program logs.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Arguments {
    /// What is logged: levels by module, such as `debug` or `info,nodestats_store=trace`
    /// [default: `info` of nodestats and `warn` of all else].
    #[arg(long = "log", env = "RUST_LOG", value_name = "FILTER", value_parser = filter, global = true)]
    filter: Option<String>,

    /// The form of a line [default: text on a terminal, else json].
    #[arg(
        long = "log-format",
        env = "NODESTATS_LOG_FORMAT",
        value_name = "FORM",
        global = true
    )]
    format: Option<Form>,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// An object a line, for whatever collects them.
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    let parsed = EnvFilter::builder().parse(text);
    parsed
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

type Boxed = Box<dyn tracing_subscriber::Layer<tracing_subscriber::Registry> + Send + Sync>;

/// Sets up logs where they are wanted, and spans where somebody takes them.
pub(crate) fn init(arguments: Option<&Arguments>, spans: Option<Tracer>) {
    let lines = arguments.map(|arguments| {
        let filter = arguments.filter.as_deref().filter(|text| !text.is_empty());
        let is_terminal = std::io::stderr().is_terminal();
        let form = match arguments.format {
            Some(form) => form,
            None if is_terminal => Form::Text,
            None => Form::Json,
        };
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let layer: Boxed = match form {
            Form::Text => layer
                .with_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none())
                .event_format(Lines::new(format().with_target(false), form))
                .boxed(),
            Form::Json => layer
                .event_format(Lines::new(
                    format()
                        .json()
                        .flatten_event(true)
                        .with_current_span(false)
                        .with_span_list(false),
                    form,
                ))
                .fmt_fields(format::JsonFields::new())
                .boxed(),
        };
        let filter = EnvFilter::builder().parse_lossy(filter.unwrap_or(DEFAULT));
        // Spans are made for who collects them; without one they cost nothing.
        layer.with_filter(filter.and(events()))
    });
    let spans = spans.map(|tracer| {
        let ours = |metadata: &Metadata<'_>| {
            metadata.is_span() && OURS.iter().any(|ours| metadata.target().starts_with(ours))
        };
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // All of ours are of this level: a filter that does not say so has the database's thousands
            // of spans and events of lower levels looked at each time (a fifth of a push).
            .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
    });
    // A second set-up in one process (tests) keeps the first.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(spans)
        .try_init();
}

/// Takes events and no spans, of whichever level: together with another filter, that one's level counts.
fn events() -> FilterFn {
    fn is_event(metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
    }
    let filter: fn(&Metadata<'_>) -> bool = is_event;
    filter_fn(filter).with_max_level_hint(LevelFilter::TRACE)
}

/// Lines with the trace that they belong to, and not too many of a kind.
struct Lines<F> {
    inner: F,
    form: Form,
    written: Mutex<HashMap<Identifier, Written>>,
}

/// What one place of the program wrote.
struct Written {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl<F> Lines<F> {
    fn new(inner: F, form: Form) -> Self {
        Self {
            inner,
            form,
            written: Mutex::default(),
        }
    }

    /// How many lines were left out before this one; `None` where this one is.
    fn admit(&self, metadata: &Metadata<'_>, now: Instant) -> Option<u64> {
        if metadata.target() == AUDIT {
            return Some(0);
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let place = written.entry(metadata.callsite()).or_insert(Written {
            since: now,
            lines: 0,
            left_out: 0,
        });
        if now.duration_since(place.since) >= WINDOW {
            (place.since, place.lines) = (now, 0);
        }
        if place.lines >= LINES {
            place.left_out += 1;
            return None;
        }
        place.lines += 1;
        Some(std::mem::take(&mut place.left_out))
    }
}

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(left_out) = self.admit(event.metadata(), Instant::now()) else {
            return Ok(());
        };
        let mut more = Vec::new();
        if let Some((trace, span)) = telemetry::current_ids() {
            more.extend([("trace_id", trace), ("span_id", span)]);
        }
        if left_out > 0 {
            more.push(("left_out", left_out.to_string()));
        }
        if more.is_empty() {
            return self.inner.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.inner
            .format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        let open = line.strip_suffix('}').filter(|_| self.form == Form::Json);
        writer.write_str(open.unwrap_or(line))?;
        for (name, value) in more {
            match open {
                Some(_) => write!(writer, ",\"{name}\":\"{value}\"")?,
                None => write!(writer, " {name}={value}")?,
            }
        }
        writeln!(writer, "{}", if open.is_some() { "}" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What is written while `work` runs, with spans that are collected.
    fn written(form: Form, work: impl FnOnce()) -> Vec<String> {
        use opentelemetry::trace::TracerProvider as _;
        let kept = Kept::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(kept.clone());
        let layer: Boxed = match form {
            Form::Text => layer
                .with_ansi(false)
                .event_format(Lines::new(format().with_target(false), form))
                .boxed(),
            Form::Json => layer
                .event_format(Lines::new(format().json().flatten_event(true), form))
                .fmt_fields(format::JsonFields::new())
                .boxed(),
        };
        let tracer = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let spans = tracing_opentelemetry::layer().with_tracer(tracer.tracer("test"));
        let layer = layer.with_filter(events());
        let subscriber = tracing_subscriber::registry().with(layer).with(spans);
        tracing::subscriber::with_default(subscriber, work);
        let text = kept.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(text).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_within_a_span_names_it_and_one_outside_does_not() {
        for form in [Form::Text, Form::Json] {
            let lines = written(form, || {
                tracing::info!(node = "a\"b", "outside");
                tracing::info_span!("work").in_scope(|| tracing::info!("inside"));
            });
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(!lines[0].contains("trace_id"), "{}", lines[0]);
            assert!(
                lines[1].contains("trace_id") && lines[1].contains("span_id"),
                "{}",
                lines[1]
            );
        }
        let lines = written(Form::Json, || {
            tracing::info_span!("work").in_scope(|| tracing::warn!(node = "a\"b", "in\nside"));
        });
        assert!(
            lines[0].starts_with('{') && lines[0].ends_with("\"}"),
            "{}",
            lines[0]
        );
        assert!(lines[0].contains(r#""message":"in\nside""#), "{}", lines[0]);
        assert!(lines[0].contains(r#""node":"a\"b""#), "{}", lines[0]);
    }

    #[test]
    fn a_fault_that_comes_back_is_told_a_few_times_and_what_is_recorded_always() {
        let lines = written(Form::Text, || {
            for _ in 0..1000 {
                tracing::warn!("the same again");
                tracing::info!(target: "nodestats::audit", "read");
            }
        });
        let of = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(of("the same again"), LINES as usize);
        assert_eq!(of("read"), 1000);
    }

    #[test]
    fn lines_that_were_left_out_are_counted() {
        struct Place;
        impl tracing::Callsite for Place {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &Metadata<'_> {
                &METADATA
            }
        }
        static PLACE: Place = Place;
        static METADATA: Metadata<'static> = tracing::metadata! {
            name: "event", target: "test", level: tracing::Level::WARN, fields: &[],
            callsite: &PLACE, kind: tracing::metadata::Kind::EVENT,
        };
        let lines = Lines::new((), Form::Text);
        let begin = Instant::now();
        for _ in 0..LINES {
            assert_eq!(lines.admit(&METADATA, begin), Some(0));
        }
        assert_eq!(lines.admit(&METADATA, begin), None);
        assert_eq!(lines.admit(&METADATA, begin), None);
        assert_eq!(lines.admit(&METADATA, begin + WINDOW), Some(2));
        assert_eq!(lines.admit(&METADATA, begin + WINDOW), Some(0));
    }

    #[test]
    fn what_is_below_the_level_of_both_is_not_even_looked_at() {
        use tracing_subscriber::layer::Filter;
        let hint = |filter: &dyn Filter<tracing_subscriber::Registry>| filter.max_level_hint();
        let logs = EnvFilter::builder().parse_lossy(DEFAULT).and(events());
        assert_eq!(hint(&logs), Some(LevelFilter::INFO));
        let logs = EnvFilter::builder().parse_lossy("debug").and(events());
        assert_eq!(hint(&logs), Some(LevelFilter::DEBUG));
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_refused() {
        assert!(filter("info,nodestats_store=trace").is_ok());
        assert!(filter("nodestats=loud").is_err());
    }
}

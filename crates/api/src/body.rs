//! Bodies of requests: read within limits of size, time and memory.

mod objects;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{ApiError, App};

/// All bodies that are being read or worked on take at most so many of the largest together: twice
/// what one node may have under way.
const BODIES: usize = 8;
/// Of these so many are for small bodies alone: what thousands of agents bring of the past holds up no
/// sample of now.
const OF_SMALL: usize = 2;
/// Most bytes of a body that brings no samples.
const SMALL: usize = 64 << 10;
/// And of one that brings a sample of now: of 8,000 processes.
const PRESENT: usize = 256 << 10;
/// A large body waits so long for its turn, and then comes again.
const LARGE_PATIENCE: Duration = Duration::from_secs(2);
/// Who has had no turn comes again after so long.
const RETRY: Duration = Duration::from_secs(5);
/// A value in JSON can be two bytes and takes hundreds in memory: more values than this are
/// refused before they are parsed. A sample of 4,000 processes has a tenth of it.
const VALUES_LIMIT: usize = 1_000_000;

/// What all bodies may take together, in KiB.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Budget {
    /// For bodies of at most so many bytes each.
    pub(crate) fn new(body_limit: usize) -> Self {
        let of = |bodies| Arc::new(Semaphore::new(bodies * ((body_limit >> 10) + 1)));
        Self {
            small: of(OF_SMALL),
            large: of(BODIES - OF_SMALL),
        }
    }

    /// A place for a body of at most `most` bytes.
    async fn enter(
        &self,
        most: usize,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let share_kib = (most >> 10) as u32 + 1;
        let (places, patience) = if most <= PRESENT {
            (&self.small, patience)
        } else {
            (&self.large, patience.min(LARGE_PATIENCE))
        };
        let share = Arc::clone(places).acquire_many_owned(share_kib);
        let share = tokio::time::timeout(patience, share).await;
        let share = share.map_err(|_| {
            let busy = "too many bodies are being worked on";
            ApiError::too_many(busy, RETRY)
        })?;
        Ok(share.expect("the budget is never closed"))
    }
}

/// A body, and its share of the budget until it is dropped.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

/// Reads a body whole.
pub(crate) async fn receive(app: &App, body: Body) -> Result<Received, ApiError> {
    receive_within(app, body, app.options.body_limit).await
}

/// The same of a body that says a few things and brings no samples.
pub(crate) async fn receive_small(app: &App, body: Body) -> Result<Received, ApiError> {
    receive_within(app, body, SMALL).await
}

async fn receive_within(app: &App, body: Body, limit: usize) -> Result<Received, ApiError> {
    let too_large = || ApiError::too_large(format!("the body is larger than {limit} bytes"));
    let size = http_body::Body::size_hint(&body);
    if size.lower() > limit as u64 {
        return Err(too_large());
    }
    // One that does not say how long it is counts as the largest that is allowed.
    let most = size
        .upper()
        .map_or(limit, |upper| upper.min(limit as u64) as usize);
    let share = app.bodies.enter(most, app.options.body_patience).await?;
    let read = tokio::time::timeout(
        app.options.body_patience,
        Limited::new(body, limit).collect(),
    )
    .await;
    match read.map_err(|_| ApiError::slow_body())? {
        Ok(collected) => Ok(Received {
            bytes: collected.to_bytes(),
            _share: share,
        }),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(ApiError::malformed("the body broke off")),
    }
}

/// Reads JSON: 400 where it is malformed, 422 naming the field where it is well formed and wrong.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let values = bytes
        .iter()
        .filter(|byte| matches!(byte, b',' | b'{' | b'['))
        .count();
    if values > VALUES_LIMIT {
        return Err(ApiError::too_large(format!(
            "the body has more than {VALUES_LIMIT} values"
        )));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value: T =
        serde_path_to_error::deserialize(objects::Objects(&mut reader)).map_err(|error| {
            let path = error.path().to_string();
            let message = shorten(&error.inner().to_string());
            if error.inner().is_data() {
                ApiError::field(field_name(&path, &message), message)
            } else {
                ApiError::malformed(format!("the body is not JSON: {message}"))
            }
        })?;
    reader.end().map_err(|error| {
        ApiError::malformed(format!(
            "the body is not JSON: {}",
            shorten(&error.to_string())
        ))
    })?;
    Ok(value)
}

/// The path of the field; serde names an unknown one in its message only.
fn field_name(path: &str, message: &str) -> String {
    let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
    let unknown = message
        .strip_prefix("unknown field ")
        .or(message.strip_prefix("missing field "));
    let named = unknown.and_then(quoted);
    let path = if path == "." { "" } else { path };
    match named {
        Some(name) if path.is_empty() => name,
        // An unknown field is the end of its own path already.
        Some(name) if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        Some(name) => format!("{path}.{name}"),
        None => path.to_owned(),
    }
}

/// A message that repeats a client's text is no longer than a sentence.
fn shorten(message: &str) -> String {
    const MOST: usize = 300;
    match message.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use nodestats_wire::v1::Reading;

    use super::*;

    fn refused(text: &str) -> (u16, Option<String>) {
        let error = json::<Reading>(text.as_bytes()).expect_err(text);
        let body = format!("{error:?}");
        let field = body
            .split("field: Some(\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        (error.status().as_u16(), field.map(str::to_owned))
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path() {
        assert_eq!(
            refused(r#"{"nonsense": 1}"#),
            (422, Some("nonsense".into()))
        );
        assert_eq!(
            refused(r#"{"cpu": {"nonsense": 1}}"#),
            (422, Some("cpu.nonsense".into()))
        );
        let path = Some("cpu.cpus[0].usage_percent".into());
        assert_eq!(
            refused(r#"{"cpu": {"cpus": [{"usage_percent": "x"}]}}"#),
            (422, path)
        );
        assert_eq!(
            refused(r#"{"processes": [{}]}"#),
            (422, Some("processes[0].pid".into()))
        );
        assert_eq!(refused(r#"{"loadavg": [1, 2]}"#).0, 422);
    }

    #[test]
    fn an_array_is_no_object() {
        for (text, field) in [
            ("[]", ""),
            (r#"{"cpu": []}"#, "cpu"),
            (r#"{"cpu": {"cpus": [[0]]}}"#, "cpu.cpus[0]"),
            (r#"{"processes": [[1]]}"#, "processes[0]"),
        ] {
            assert_eq!(refused(text), (422, Some(field.to_owned())), "{text}");
        }
        let kept =
            br#"{"cpu": {"cpus": [{"cpu": 0, "usage_percent": 1}]}, "loadavg": [1, 2.5, 3]}"#;
        let reading: Reading = json(kept).expect("an object");
        assert_eq!(reading.loadavg, Some([1.0, 2.5, 3.0]));
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for text in [
            "",
            "{",
            "{} {}",
            "nonsense",
            "{\"boottime\":1,}",
            "\u{1F980}",
        ] {
            assert_eq!(refused(text).0, 400, "{text}");
        }
        assert_eq!(refused(&"[".repeat(500)).0, 422);
    }

    #[test]
    fn a_body_of_millions_of_values_is_refused_unparsed() {
        assert_eq!(refused(&format!("[{}0]", "0,".repeat(VALUES_LIMIT))).0, 413);
    }
}

//! What anybody may send, read as far as it can be: what fuzz targets call. No input may make any of it
//! panic, hang, or take more memory than its limits say.

use nodestats_core::Timestamp;
use nodestats_wire::v1::{Reading, Registration};

use crate::body;
use crate::query::{self, EventQuery, OfPod, ProcessQuery, SpanQuery};

/// Bytes as the body of a push, and of a registration.
pub fn json_body(data: &[u8]) {
    let _ = body::json::<Vec<Reading>>(data);
    let _ = body::json::<Reading>(data);
    let _ = body::json::<Registration>(data);
}

/// Bytes as the query of a request, where a URI may hold them.
pub fn query_string(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(uri) = format!("/?{text}").parse::<http::Uri>() else {
        return;
    };
    let query = uri.query();
    let now = Timestamp::MIN;
    if let Ok(span) = query::parse::<SpanQuery>(query) {
        let _ = span.samples(now);
    }
    let _ = query::parse::<ProcessQuery>(query);
    if let Ok(events) = query::parse::<EventQuery>(query) {
        let _ = events.events(now);
    }
    let _ = OfPod::<SpanQuery>::parse(query);
}

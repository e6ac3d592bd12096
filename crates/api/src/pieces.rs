//! Answers that are written as they are read, piece by piece.

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;

use crate::ApiError;

/// What makes the pieces of an answer.
pub(crate) trait Pieces: Send + 'static {
    /// The next piece of the body; an empty one is the end.
    fn next(&mut self) -> impl Future<Output = Result<Bytes, ApiError>> + Send;
}

/// The body that begins with `first`. That is made before the headers go out, so that a store that fails
/// is a 503; later it is too late for a status, and the connection is cut, so that nobody takes it as
/// complete.
pub(crate) fn body(first: Bytes, source: impl Pieces) -> Body {
    let begin = Some((Some(first), source));
    Body::from_stream(stream::unfold(begin, |state| async move {
        let (ready, mut source) = state?;
        if let Some(piece) = ready {
            return Some((Ok(piece), Some((None, source))));
        }
        match source.next().await {
            Ok(piece) if piece.is_empty() => None,
            Ok(piece) => Some((Ok(piece), Some((None, source)))),
            Err(error) => {
                let cut = std::io::Error::other(error.status().to_string());
                Some((Err(cut), None))
            }
        }
    }))
}

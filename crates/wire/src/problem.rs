//! The body of every error answer: a problem document of RFC 9457.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What kind of error this is: `about:blank`, or a short name such as `ambiguous-node`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words, the same for each error of this status.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What is wrong with this request, in one sentence.
    pub detail: String,
    /// The field of the body or of the query that is wrong, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Names that exist and are close to the one that was asked for, or that share it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

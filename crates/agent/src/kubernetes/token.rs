//! What a service account's token says of the pod that it was made for. It is read, not verified:
//! the API server that it is sent to does that.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The claims of a token that is bound to a pod on a node (KEP-4193).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The Node's name.
    pub(crate) node_name: String,
    /// The Node's UID.
    pub(crate) node_uid: String,
}

impl Claims {
    pub(crate) fn read(token: &str) -> anyhow::Result<Self> {
        let payload = token
            .split('.')
            .nth(1)
            .context("the token is no JSON web token")?;
        let payload = URL_SAFE_NO_PAD
            .decode(payload.trim_end_matches('='))
            .context("the token is no JSON web token")?;
        let claims: serde_json::Value =
            serde_json::from_slice(&payload).context("the token is no JSON web token")?;
        let node = &claims["kubernetes.io"]["node"];
        let text = |field: &str| {
            let value = node[field].as_str().map(str::to_owned);
            value.context("the token names no Node: it is not bound to a pod that is on one (KEP-4193, Kubernetes 1.32)")
        };
        Ok(Self {
            node_name: text("name")?,
            node_uid: text("uid")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &serde_json::Value) -> String {
        format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn the_node_is_in_the_claims() {
        let claims = serde_json::json!({"kubernetes.io": {"node": {"name": "a", "uid": "u"}}});
        let read = Claims::read(&token(&claims)).expect("claims");
        assert_eq!((&*read.node_name, &*read.node_uid), ("a", "u"));
    }

    #[test]
    fn a_token_without_a_node_says_so() {
        let error = Claims::read(&token(&serde_json::json!({}))).expect_err("no node");
        assert!(error.to_string().contains("names no Node"), "{error}");
        for nonsense in ["", "a.b", "a.!.c"] {
            assert!(Claims::read(nonsense).is_err(), "{nonsense}");
        }
    }
}

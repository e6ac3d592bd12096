//! Kubernetes as the authority: `TokenReview` says whose a token is, `SubjectAccessReview` what they
//! may. While it does not answer nobody is let in who is not known already.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use nodestats_wire::{Timestamp, routes};
use serde::Deserialize;
use serde_json::Value;

use super::{Authority, Question, Unreachable, User};

/// A question has this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The cluster that this runs in.
pub struct Kubernetes {
    client: Client,
    audience: String,
}

impl Kubernetes {
    /// Takes tokens of this audience.
    pub fn new(client: Client, audience: &str) -> Self {
        Self {
            client,
            audience: audience.to_owned(),
        }
    }

    async fn user(&self, token: &str) -> Result<Option<User>, Unreachable> {
        if !is_for(
            token,
            &self.audience,
            Timestamp::from_system(SystemTime::now()),
        ) {
            return Ok(None);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let status = timely(reviews.create(&PostParams::default(), &review)).await?;
        let status = status.status.unwrap_or_default();
        // An authenticator that knows nothing of audiences names none.
        let is_meant = status
            .audiences
            .unwrap_or_default()
            .contains(&self.audience);
        let Some(user) = status
            .user
            .filter(|_| status.authenticated == Some(true) && is_meant)
        else {
            return Ok(None);
        };
        let Some(name) = user.username.filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(User {
            name,
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn allows(&self, user: &User, question: &Question) -> Result<bool, Unreachable> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(routes::GROUP.to_owned()),
                    version: Some(routes::GROUP_VERSION.to_owned()),
                    resource: Some(question.resource.to_owned()),
                    namespace: some(&question.namespace),
                    subresource: some(question.subresource),
                    name: some(&question.name),
                    verb: Some(question.verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let review = timely(reviews.create(&PostParams::default(), &review)).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}

/// Whether it is worth asking about a token: what it says of itself is not proved, but what is for
/// somebody else by its own words, or past, or no JSON Web Token (RFC 7519), is no question.
fn is_for(token: &str, audience: &str, now: Timestamp) -> bool {
    #[derive(Deserialize)]
    struct Claims {
        aud: Value,
        exp: Option<f64>,
    }
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let claims = URL_SAFE_NO_PAD.decode(claims).ok();
    let claims = claims.and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok());
    claims.is_some_and(|claims| {
        let is_meant = match &claims.aud {
            Value::String(one) => one == audience,
            Value::Array(all) => all.iter().any(|one| one == audience),
            _ => false,
        };
        is_meant && claims.exp.is_none_or(|exp| exp > now.seconds())
    })
}

impl Authority for Kubernetes {
    fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, Unreachable>> {
        Box::pin(self.user(token))
    }

    fn may<'a>(
        &'a self,
        user: &'a User,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<bool, Unreachable>> {
        Box::pin(self.allows(user, question))
    }
}

async fn timely<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Unreachable> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(|error| Unreachable(error.to_string())),
        Err(_) => Err(Unreachable(format!("no answer within {PATIENCE:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_ours_is_asked_about() {
        let now = Timestamp::from_micros(1_000_000_000).expect("a time");
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        for ours in [
            r#"{"aud": "nodestats"}"#,
            r#"{"aud": ["other", "nodestats"], "exp": 1001}"#,
        ] {
            assert!(is_for(&token(ours), "nodestats", now), "{ours}");
        }
        for other in [
            token(r#"{"aud": ["https://kubernetes.default.svc"]}"#),
            token(r#"{"aud": ["nodestats"], "exp": 999}"#),
            token(r#"{"exp": 1001}"#),
            token("nonsense"),
            "nonsense".to_owned(),
            "a.b.c.d".to_owned(),
            String::new(),
        ] {
            assert!(!is_for(&other, "nodestats", now), "{other}");
        }
    }
}

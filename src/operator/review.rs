//! Identifies a worker pod by the token of its ServiceAccount: the gateway has the API server review the token
//! (TokenReview), and learns the pod's namespace, name and UID.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;
use kube::api::{Api, PostParams};
use serde::Deserialize;

use super::client::bounded_by;
use crate::turn::objects::objects_only;
use crate::worker_port::identity::{PodIdentity, ReviewError, Reviewer};

/// The audience that worker pods' tokens are issued for. A token for another audience, such as the API server itself,
/// identifies nobody here: else whoever was shown such a token could show it to a gateway.
pub const AUDIENCE: &str = "lastword.dev";
/// The longest that a review may take. The worker asks again.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How far this machine's clock may be ahead of the API server's, in seconds.
const CLOCK_SKEW: i64 = 60;
/// Keys under which a review's answer names the pod that the token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Reviews tokens by asking the API server.
#[derive(Clone)]
pub struct TokenReviewer {
    api: Api<TokenReview>,
}

impl fmt::Debug for TokenReviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenReviewer")
    }
}

impl TokenReviewer {
    /// Sends nothing yet.
    pub fn new(client: Client) -> Self {
        TokenReviewer { api: Api::all(client) }
    }

    async fn ask(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: Some(token.into()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = bounded_by(REVIEW_TIMEOUT, self.api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|e| ReviewError::Unavailable(e.to_string()))?;
        identity(&answer.status.unwrap_or_default())
    }
}

impl Reviewer for TokenReviewer {
    fn claimed(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        claimed(token, jiff::Timestamp::now().as_second())
    }

    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<PodIdentity, ReviewError>> {
        Box::pin(self.ask(token))
    }
}

/// The claims of a ServiceAccount token that are read here; it has more.
#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Claims {
    #[serde(rename = "aud")]
    audiences: Vec<String>,
    /// Seconds since 1970.
    #[serde(rename = "exp")]
    expires: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaim,
}

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct KubernetesClaim {
    namespace: String,
    pod: Option<PodClaim>,
}

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct PodClaim {
    name: String,
    uid: String,
}

objects_only!(read Claims, KubernetesClaim, PodClaim);

/// The pod that a token's claims name. `now` is in seconds since 1970; clocks may differ by [`CLOCK_SKEW`].
fn claimed(token: &str, now: i64) -> Result<PodIdentity, ReviewError> {
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Claims> = payload.and_then(|json| serde_json::from_slice(&json).ok());
    let claims = claims.ok_or(ReviewError::Refused)?;
    if claims.expires < now - CLOCK_SKEW || !claims.audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(ReviewError::Refused);
    }
    let KubernetesClaim { namespace, pod } = claims.kubernetes;
    let PodClaim { name, uid } = pod.ok_or(ReviewError::NotAPod)?;
    Ok(PodIdentity { namespace, name, uid })
}

/// Reads a review's answer. An answer that does not confirm our audience is a refusal, also from an authenticator that knows
/// no audiences and so confirms none.
fn identity(status: &TokenReviewStatus) -> Result<PodIdentity, ReviewError> {
    let for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !for_us {
        return Err(ReviewError::Refused);
    }
    let user = status.user.clone().unwrap_or_default();
    let namespace = user.username.as_deref().and_then(|name| {
        let (namespace, _) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        Some(namespace.to_owned())
    });
    let extra = user.extra.unwrap_or_default();
    // A token is bound to one pod. More than one value was not written by the API server's own authenticator.
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        _ => None,
    };
    let pod = || Some(PodIdentity { namespace: namespace?, name: one(POD_NAME)?, uid: one(POD_UID)? });
    pod().ok_or(ReviewError::NotAPod)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_token_says_of_itself() {
        let claims = json!({
            "aud": ["lastword.dev"], "exp": 1000, "iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:team:default",
            "kubernetes.io": {"namespace": "team", "pod": {"name": "bot-1", "uid": "u-1"}, "serviceaccount": {"name": "default"}},
        });
        let read = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut claims = claims.clone();
            change(&mut claims);
            claimed(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string())), 1030)
        };
        let pod = PodIdentity { namespace: "team".into(), name: "bot-1".into(), uid: "u-1".into() };
        assert_eq!(read(&|_| {}), Ok(pod), "a clock may be half a minute off");
        assert_eq!(read(&|c| c["exp"] = json!(900)), Err(ReviewError::Refused));
        assert_eq!(read(&|c| c["aud"] = json!(["https://kubernetes.default.svc"])), Err(ReviewError::Refused));
        assert_eq!(read(&|c| c["kubernetes.io"]["pod"] = json!(null)), Err(ReviewError::NotAPod));
        assert_eq!(read(&|c| c["kubernetes.io"] = json!(null)), Err(ReviewError::Refused));
        for garbage in ["a.b.c", "..", "e30.e30.e30", "e30.!!!.e30"] {
            assert_eq!(claimed(garbage, 0), Err(ReviewError::Refused), "{garbage}");
        }
    }

    #[test]
    fn what_a_review_proves() {
        let good = json!({
            "authenticated": true,
            "audiences": ["lastword.dev"],
            "user": {
                "username": "system:serviceaccount:team:default",
                "extra": {POD_NAME: ["bot-1"], POD_UID: ["u-1"], "authentication.kubernetes.io/node-name": ["n"]},
            },
        });
        let read = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut status = good.clone();
            change(&mut status);
            identity(&serde_json::from_value(status).expect("a status"))
        };
        let pod = PodIdentity { namespace: "team".into(), name: "bot-1".into(), uid: "u-1".into() };
        assert_eq!(read(&|_| {}), Ok(pod));
        assert_eq!(read(&|s| s["authenticated"] = json!(false)), Err(ReviewError::Refused));
        assert_eq!(read(&|s| s["audiences"] = json!(["https://kubernetes.default.svc"])), Err(ReviewError::Refused));
        assert_eq!(read(&|s| s["audiences"] = json!(null)), Err(ReviewError::Refused));
        assert_eq!(read(&|s| s["user"]["username"] = json!("alice")), Err(ReviewError::NotAPod));
        assert_eq!(read(&|s| s["user"]["extra"] = json!({POD_NAME: ["bot-1"]})), Err(ReviewError::NotAPod));
        assert_eq!(read(&|s| s["user"]["extra"][POD_UID] = json!(["u-1", "u-2"])), Err(ReviewError::NotAPod));
    }
}

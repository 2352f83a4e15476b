//! Identifies a worker pod by the token of its ServiceAccount: the gateway has the API server review the token
//! (TokenReview), and learns the pod's namespace, name and UID.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;
use kube::api::{Api, PostParams};

use super::client::bounded_by;
use crate::worker_port::identity::{PodIdentity, ReviewError, Reviewer};

/// The audience that worker pods' tokens are issued for. A token for another audience, such as the API server itself,
/// identifies nobody here: else whoever was shown such a token could show it to a gateway.
pub const AUDIENCE: &str = "lastword.dev";
/// The longest that a review may take. The worker asks again.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
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
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<PodIdentity, ReviewError>> {
        Box::pin(self.ask(token))
    }
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

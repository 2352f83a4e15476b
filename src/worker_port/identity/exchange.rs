//! `POST /worker/v1/credential`: a pod shows its ServiceAccount token and gets a credential that any replica accepts.
//!
//! The review of the token names the pod and its UID. Both are compared with what the controller recorded in the lease
//! when it made the pod, never with a label, which others could set.
//!
//! Once the pod's worker has connected with its credential, a further request is refused: it comes from the agent program,
//! which can read the token too. (A worker of the adapter `Custom` may ask again, since its process may start anew within
//! its container.)

use std::sync::{Mutex, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::token::ReviewError;
use crate::problem::Problem;
use crate::store::CredentialExchange;
use crate::wire::{Credential, IssuedCredential};
use crate::worker_port::WorkerPort;

/// Exchanges the bearer token of a pod for a credential.
pub(in crate::worker_port) async fn exchange_token(
    State(port): State<WorkerPort>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.ok_or_else(|| {
        Problem::new(StatusCode::UNAUTHORIZED, "show the token of the pod's ServiceAccount as a bearer token")
    })?;
    let Some(reviews) = &port.reviews else {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this gateway reviews no tokens (--token-review)"));
    };
    let pod = reviews.claimed(token).map_err(unproven)?;
    let reference = format!("{}/{}", pod.namespace, pod.name);
    let place = reviews.place().await.map_err(unproven)?;
    // Only a pod that is to have a credential is worth a review.
    match port.store.would_give_credential_to_pod(&reference, &pod.uid).await? {
        CredentialExchange::Granted(_) => {}
        nothing => return Err(refusal(nothing, &reference)),
    }
    reviews.review(token, &pod, place).await.map_err(unproven)?;
    // The credential contains the start's id, which only the store can look up; so the store calls `hash` with the id,
    // and `fresh` carries the credential out of that closure.
    let fresh = Mutex::new(None);
    let hash = |start| {
        let credential = Credential::new(start);
        let hash = credential.hash();
        *fresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(credential);
        hash
    };
    let granted = port.store.exchange_credential_of_pod(&reference, &pod.uid, hash).await?;
    let credential = fresh.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (granted, credential) {
        (CredentialExchange::Granted(start), Some(credential)) => {
            tracing::info!(pod = reference, %start, "pod {reference} has shown who it is");
            let mut answer = Json(IssuedCredential { credential: credential.reveal() }).into_response();
            answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            Ok(answer)
        }
        (nothing, _) => Err(refusal(nothing, &reference)),
    }
}

/// The answer to a token that proves nothing.
fn unproven(error: ReviewError) -> Problem {
    match error {
        ReviewError::Refused => Problem::new(StatusCode::UNAUTHORIZED, error.to_string()),
        ReviewError::NotAPod => Problem::new(StatusCode::FORBIDDEN, error.to_string()),
        ReviewError::Unavailable(why) => {
            tracing::warn!(%why, "a worker's token was not reviewed");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the token cannot be reviewed now; try again")
        }
    }
}

/// The answer to a pod that is given no credential, or to somebody who says to be that pod.
fn refusal(answer: CredentialExchange, pod: &str) -> Problem {
    match answer {
        CredentialExchange::NotRecorded => {
            Problem::new(StatusCode::TOO_EARLY, "this pod is not recorded yet; ask again")
        }
        CredentialExchange::Dead => Problem::new(StatusCode::GONE, "this pod's lease is dead; stop"),
        CredentialExchange::AlreadyConnected => {
            tracing::warn!(
                pod,
                "another credential was asked for in the name of pod {pod}: not by its adapter, which already has one"
            );
            Problem::new(StatusCode::GONE, "this pod has used its credential, and is given no other")
        }
        CredentialExchange::Unknown | CredentialExchange::Granted(_) => {
            tracing::warn!(pod, "pod {pod} is no worker of ours");
            Problem::new(StatusCode::FORBIDDEN, "this pod is no worker")
        }
    }
}

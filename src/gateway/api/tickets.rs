//! Tickets: each opens one stream for a client that cannot send a header, such as an EventSource.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::refusals::{AnyCall, WithBody, WithJson};
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::{MAX_TICKETS, TICKET_SECONDS};
use crate::turn::objects::objects_only;

/// The longest path that a ticket may be for, in bytes.
const MAX_PATH_BYTES: usize = 2048;

pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/v1/streams/tickets", post(issue))
}

/// Body of a call for a ticket.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(remote = "Self")]
pub struct TicketRequest {
    /// The path of the one stream that it is to open, as it is requested, without a query; default: any stream.
    pub path: Option<String>,
}

objects_only!(read TicketRequest);

/// A ticket, for `?ticket=` of a stream's URL.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuedTicket {
    /// A secret. It opens one stream.
    ticket: String,
    /// A minute ahead: the stream is to be opened by then, and may be open for longer.
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

#[utoipa::path(post, operation_id = "issueTicket", path = "/v1/streams/tickets", request_body = TicketRequest,
    responses((status = 201, body = IssuedTicket), AnyCall, WithBody, WithJson))]
pub(super) async fn issue(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    body: Body,
) -> Result<(StatusCode, Json<IssuedTicket>), Problem> {
    let asked: TicketRequest = gateway.bodies.whole(&caller.account(), body).await?.json()?;
    if asked
        .path
        .as_ref()
        .is_some_and(|path| !path.starts_with('/') || path.len() > MAX_PATH_BYTES || path.contains('\0'))
    {
        return Err(Problem::bad_request(format!("path begins with / and has {MAX_PATH_BYTES} bytes at most")));
    }
    let issued = gateway.store.issue_ticket(&caller.principal, caller.known_by.into(), asked.path.as_deref()).await?;
    let (ticket, expires_at) = issued.ok_or_else(|| {
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("you have {MAX_TICKETS} tickets that were not used; each ends after {TICKET_SECONDS} s"),
        )
        .with_retry_after(5)
    })?;
    Ok((StatusCode::CREATED, Json(IssuedTicket { ticket, expires_at })))
}

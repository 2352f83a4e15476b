//! `/session`: who the browser is logged in as. A login stands for the API key that was shown once, as a cookie that no script can
//! read (`gateway/cookie.rs`, `store/login.rs`).

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::gateway::caller::{ApiCaller, KnownBy};
use crate::gateway::{Gateway, cookie};
use crate::problem::Problem;
use crate::store::login::LoginSecret;
use crate::turn::objects::objects_only;

pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/session", get(who).post(log_in).delete(log_out))
}

/// Body of a login: nothing. The key is shown as with any call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(remote = "Self")]
struct LogIn {}

objects_only!(read LogIn);

/// Who a caller is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Who {
    user: String,
    organization: String,
    operator: bool,
    /// Whether there is a login that can be ended.
    login: bool,
}

fn told(caller: &ApiCaller, login: bool) -> Json<Who> {
    let principal = &caller.principal;
    Json(Who {
        user: principal.user.clone(),
        organization: principal.organization.clone(),
        operator: caller.is_operator(),
        login,
    })
}

/// Who calls.
async fn who(caller: ApiCaller, headers: HeaderMap) -> Json<Who> {
    told(&caller, cookie::read(&headers).is_some())
}

/// Logs a browser in with the key that it shows as a bearer token.
async fn log_in(
    State(gateway): State<Gateway>,
    caller: ApiCaller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let _: LogIn = gateway.bodies.whole(&caller.account(), body).await?.json()?;
    let refused = || Problem::new(StatusCode::UNAUTHORIZED, "log in with an API key as a bearer token");
    let KnownBy::Key(key) = caller.known_by else { return Err(refused()) };
    let (secret, until) = gateway.store.log_in(key).await?.ok_or_else(refused)?;
    let seconds = (until - OffsetDateTime::now_utc()).whole_seconds().max(0);
    let keep = cookie::set(&secret, seconds, cookie::over_tls(&headers));
    Ok((StatusCode::CREATED, [(header::SET_COOKIE, keep)], told(&caller, true)).into_response())
}

/// Ends the browser's login, if it has one that opens anything. The browser forgets the cookie in any case.
async fn log_out(
    State(gateway): State<Gateway>,
    caller: Result<ApiCaller, Problem>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let login = cookie::read(&headers).and_then(|secret| LoginSecret::read(&secret));
    if let (Ok(_), Some(login)) = (caller, login) {
        gateway.store.log_out(&login).await?;
        gateway.auth.forget();
    }
    let forget = cookie::set("", 0, cookie::over_tls(&headers));
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, forget)]).into_response())
}

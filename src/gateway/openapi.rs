//! `/openapi.json`: generated from the handlers, so that it cannot fall behind them.

use axum::Json;
use utoipa::OpenApi;

use super::api;
use crate::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(title = "Lastword", description = "Every agent turn gets exactly one last word."),
    paths(
        api::submit::submit,
        api::streams::session,
        api::streams::turn_stream,
        api::records::record,
        api::records::history,
        api::records::list,
        api::records::cancel,
        api::records::erase
    ),
    components(schemas(
        api::submit::Submit,
        api::submit::Submitted,
        api::records::RecordView,
        api::records::Page,
        api::records::ErasedView,
        Problem
    ))
)]
struct Document;

/// Serves the document.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

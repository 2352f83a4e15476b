//! `/openapi.json`: generated from the handlers, so that it cannot fall behind them.

use axum::Json;
use utoipa::OpenApi;

use super::native;
use super::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(title = "Lastword", description = "Every agent turn gets exactly one last word."),
    paths(
        native::submit::submit,
        native::streams::session,
        native::streams::turn_stream,
        native::records::record,
        native::records::history,
        native::records::list,
        native::records::cancel,
        native::records::erase
    ),
    components(schemas(
        native::submit::Submit,
        native::submit::Submitted,
        native::records::RecordView,
        native::records::Page,
        native::records::ErasedView,
        Problem
    ))
)]
struct Document;

/// Serves the document.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

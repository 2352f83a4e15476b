//! `/openapi.json`: generated from the handlers, so that it cannot fall behind them.

use axum::Json;
use utoipa::OpenApi;

use super::native;
use super::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(title = "Lastword", description = "Every agent turn gets exactly one last word."),
    paths(
        native::submit,
        native::session,
        native::turn_stream,
        native::record,
        native::history,
        native::list,
        native::cancel,
        native::erase
    ),
    components(schemas(
        native::Submit,
        native::Submitted,
        native::RecordView,
        native::Page,
        native::ErasedView,
        Problem
    ))
)]
struct Document;

/// Serves the document.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

//! `/openapi.json`: the API's description, generated from the handlers, so that it cannot fall behind them.

use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;

use super::{records, streams, submit};
use crate::gateway::Gateway;
use crate::gateway::dialects::{agui, openai, ui};
use crate::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(title = "Lastword", description = "Every agent turn gets exactly one last word."),
    paths(
        submit::submit,
        streams::session,
        streams::turn_stream,
        records::record,
        records::history,
        records::list,
        records::cancel,
        records::erase,
        agui::run_agent,
        ui::send,
        ui::resume,
        openai::completions::complete,
        openai::calls::create,
        openai::calls::retrieve,
        openai::calls::cancel,
        openai::calls::input_items,
        openai::calls::delete,
        openai::models::list,
        openai::models::retrieve
    ),
    components(schemas(
        submit::Submit,
        submit::Submitted,
        records::RecordView,
        records::Page,
        records::ErasedView,
        agui::RunAgentInput,
        ui::UiRequest,
        openai::ChatBody,
        openai::ResponsesBody,
        Problem
    ))
)]
struct Document;

/// The route of the description.
pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/openapi.json", get(document))
}

/// Serves the description.
async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

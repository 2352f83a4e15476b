//! `/openapi.json`: the API's description, generated from the handlers, so that it cannot fall behind them.

use axum::routing::get;
use axum::{Json, Router};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{agents, conversations, events, records, streams, submit, tickets};
use crate::gateway::Gateway;
use crate::gateway::dialects::{agui, openai, ui};
use crate::problem::Problem;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lastword",
        description = "Every agent turn gets exactly one last word.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/", description = "the gateway that serves this description")),
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
        conversations::list,
        agents::list,
        tickets::issue,
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
        conversations::ConversationPage,
        agents::AgentPage,
        tickets::TicketRequest,
        tickets::IssuedTicket,
        events::StreamEvents,
        openai::ChatBody,
        openai::ResponsesBody,
        Problem
    )),
    security(("key" = []), ("login" = []), ()),
    modifiers(&Credentials)
)]
pub(super) struct Document;

/// How callers are known. With `--auth none` the user who runs the gateway needs nothing.
struct Credentials;

impl Modify for Credentials {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("lwk_…");
        let key = key.description(Some("an API key (`lastword keys create`)")).build();
        let ticket = ApiKeyValue::with_description("ticket", "opens one stream, once: POST /v1/streams/tickets");
        let login = ApiKeyValue::with_description("lastword", "the gateway's own page; over TLS `__Host-lastword`");
        components.add_security_scheme("key", SecurityScheme::Http(key));
        components.add_security_scheme("ticket", SecurityScheme::ApiKey(ApiKey::Query(ticket)));
        components.add_security_scheme("login", SecurityScheme::ApiKey(ApiKey::Cookie(login)));
    }
}

/// The route of the description.
pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/openapi.json", get(document))
}

/// Serves the description.
async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Generated clients name their functions after these.
    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let document = serde_json::to_value(Document::openapi()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths").values();
        let calls = paths.flat_map(|path| path.as_object().expect("calls").values());
        let mut names: Vec<_> = calls.map(|call| call["operationId"].to_string()).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{names:?}");
    }

    /// Types are generated from this file (`scripts/client-types`), and people read it without a gateway.
    #[test]
    fn the_committed_description_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/clients/openapi.json");
        let served = Document::openapi().to_pretty_json().expect("JSON") + "\n";
        if std::env::var_os("LASTWORD_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &served).expect("writes");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(served == committed, "{path} is old: run `make generate`");
    }
}

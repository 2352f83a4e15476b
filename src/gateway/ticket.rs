//! A ticket in a request's URL: `?ticket=`, with a GET of a stream and nothing else.

use axum::http::Method;
use axum::http::request::Parts;

/// The ticket that a request shows, where one is taken: what changes something is never done for a URL that somebody has found.
pub(super) fn shown(parts: &Parts) -> Option<String> {
    if parts.method != Method::GET || !is_stream(parts.uri.path()) {
        return None;
    }
    let query = parts.uri.query()?;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ticket")
        .map(|(_, value)| value.into_owned())
}

/// Whether a path is that of a stream, in any dialect.
fn is_stream(path: &str) -> bool {
    let within = |begin: &str, end: &str| path.starts_with(begin) && path.ends_with(end);
    within("/v1/", "/events") || within("/ui/", "/stream") || path.starts_with("/openai/v1/responses/")
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[test]
    fn only_streams_are_opened_by_a_ticket() {
        let shown = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).expect("a request");
            shown(&request.into_parts().0)
        };
        let ticket = Some("lwt_1".to_owned());
        assert_eq!(shown("GET", "/v1/conversations/c/events?after=1&ticket=lwt_1"), ticket);
        assert_eq!(shown("GET", "/v1/turns/t/events?ticket=lwt_1"), ticket);
        assert_eq!(shown("GET", "/ui/bot/chat/stream?ticket=lwt_1"), ticket);
        for (method, path) in [
            ("POST", "/v1/turns/t/events?ticket=lwt_1"),
            ("GET", "/v1/turns/t?ticket=lwt_1"),
            ("GET", "/v1/turns?ticket=lwt_1"),
            ("GET", "/openai/v1/models?ticket=lwt_1"),
            ("GET", "/v1/turns/t/events"),
        ] {
            assert_eq!(shown(method, path), None, "{method} {path}");
        }
    }
}

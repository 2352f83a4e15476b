//! The page and its modules, which are part of this program. All of them lie below a path with a digest of all of them, so that
//! browsers keep them for ever and never mix those of two versions; only `/` itself is asked for again.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};

use crate::gateway::Gateway;
use crate::problem::Problem;

/// What the page may do: run its own modules, look as its own sheet says, call its own origin. Nothing inline, nothing from
/// elsewhere, no frame, no form; and text becomes HTML only through the sanitiser's policy.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types dompurify";
/// A year, and never asked for again.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// Kept, and asked for again each time.
const ASK: &str = "no-cache";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page: its path below the digest, its media type and its content.
type PageFile = (&'static str, &'static str, &'static str);

macro_rules! files {
    ($($path:literal: $kind:expr),* $(,)?) => {
        [$(($path, $kind, include_str!(concat!("assets/", $path)))),*]
    };
}

static FILES: [PageFile; 18] = files! {
    "page.css": STYLE,
    "icon.svg": SVG,
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "chat.js": SCRIPT,
    "conversation.js": SCRIPT,
    "login.js": SCRIPT,
    "markdown.js": SCRIPT,
    "parts.js": SCRIPT,
    "sidebar.js": SCRIPT,
    "sse.js": SCRIPT,
    "stream.js": SCRIPT,
    "turns.js": SCRIPT,
    "vendor/hooks.js": SCRIPT,
    "vendor/htm.js": SCRIPT,
    "vendor/marked.js": SCRIPT,
    "vendor/preact.js": SCRIPT,
    "vendor/purify.js": SCRIPT,
};

/// `/`, in which the digest's path stands for `%FILES%`.
static INDEX: LazyLock<(String, String)> = LazyLock::new(|| {
    let page = include_str!("assets/index.html").replace("%FILES%", &format!("/page/{}", *DIGEST));
    let tag = format!("\"{}\"", digest([page.as_bytes()]));
    (page, tag)
});
static DIGEST: LazyLock<String> =
    LazyLock::new(|| digest(FILES.iter().flat_map(|(path, _, content)| [path.as_bytes(), content.as_bytes()])));

fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn router() -> Router<Gateway> {
    Router::new().route("/", get(index)).route("/page/{digest}/{*path}", get(file))
}

/// Serves the page, or says that the browser has it.
async fn index(headers: HeaderMap) -> Response {
    let (page, tag) = &*INDEX;
    let common = [
        (header::ETAG, tag.as_str()),
        (header::CACHE_CONTROL, ASK),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (
            header::HeaderName::from_static("permissions-policy"),
            "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        ),
    ];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.as_str()).into_response()
}

/// Serves a file of this version. One of another version is not found: its page asks again and gets the new one.
async fn file(Path((digest, path)): Path<(String, String)>) -> Result<Response, Problem> {
    let found = FILES.iter().find(|(name, ..)| digest == *DIGEST && path == *name);
    let (_, kind, content) = found.ok_or_else(|| Problem::not_found("file of this version of the page"))?;
    let headers = [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, FOR_EVER)];
    Ok((headers, *content).into_response())
}

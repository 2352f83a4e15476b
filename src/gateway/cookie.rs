//! The cookie of a browser that is logged in to the web page. Only the page itself is served for it: a request for another page
//! is not, and one that may change something only where the browser says that it is for this page.

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};

use super::origin::RequestOrigin;
use crate::store::login::LOGIN_PREFIX;

/// The cookie's name over TLS: browsers take one of this prefix only with `Secure`, for this host alone and all of its paths.
const SECURE_NAME: &str = "__Host-lastword";
/// Its name without TLS, where no cookie is safer than the network.
const PLAIN_NAME: &str = "lastword";

/// What a request's cookie is worth.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ShownLogin {
    None,
    /// The login's secret.
    Login(String),
    /// There is one, and the request is not one of the page's.
    NotOurs,
}

/// The login that a request shows.
pub(super) fn shown(parts: &Parts) -> ShownLogin {
    let Some(secret) = read(&parts.headers) else { return ShownLogin::None };
    let of = parts.extensions.get::<RequestOrigin>();
    match of {
        Some(RequestOrigin::Own) => ShownLogin::Login(secret),
        Some(RequestOrigin::Unnamed) if parts.method.is_safe() => ShownLogin::Login(secret),
        _ => ShownLogin::NotOurs,
    }
}

/// The secret in a request's cookie.
pub(super) fn read(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let ours =
        pairs.filter(|(name, value)| [SECURE_NAME, PLAIN_NAME].contains(name) && value.starts_with(LOGIN_PREFIX));
    // The one that only TLS can have set comes first.
    ours.max_by_key(|(name, _)| *name == SECURE_NAME).map(|(_, value)| value.to_owned())
}

/// The header that has a browser keep a login for so many seconds; an empty secret, for none, has it forgotten.
pub(super) fn set(secret: &str, seconds: i64, tls: bool) -> HeaderValue {
    let (name, secure) = if tls { (SECURE_NAME, "; Secure") } else { (PLAIN_NAME, "") };
    let text = format!("{name}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether the page that sends this request was loaded over TLS: its browser names the scheme, which a proxy between may hide.
pub(super) fn over_tls(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

#[cfg(test)]
mod tests {
    use axum::http::{Method, Request};

    use super::*;

    fn parts(method: Method, cookie: &str, of: RequestOrigin) -> Parts {
        let request = Request::builder().method(method).header("cookie", cookie).extension(of).body(());
        request.expect("a request").into_parts().0
    }

    #[test]
    fn a_cookie_counts_for_our_own_page_alone() {
        use RequestOrigin::{Allowed, Own, Unnamed};
        let login = || ShownLogin::Login("lws_1".into());
        let ours = "a=b; lastword=lws_1";
        assert_eq!(shown(&parts(Method::GET, ours, Unnamed)), login());
        assert_eq!(shown(&parts(Method::GET, ours, Own)), login());
        assert_eq!(shown(&parts(Method::POST, ours, Own)), login());
        assert_eq!(shown(&parts(Method::POST, ours, Unnamed)), ShownLogin::NotOurs);
        assert_eq!(shown(&parts(Method::DELETE, ours, Unnamed)), ShownLogin::NotOurs);
        assert_eq!(shown(&parts(Method::GET, ours, Allowed)), ShownLogin::NotOurs);
        assert_eq!(shown(&parts(Method::GET, "lastword=other", Own)), ShownLogin::None);
        let both = "lastword=lws_2; __Host-lastword=lws_1";
        assert_eq!(shown(&parts(Method::GET, both, Own)), login());
    }

    #[test]
    fn over_tls_a_cookie_is_of_this_host_alone() {
        assert_eq!(
            set("lws_1", 60, true),
            "__Host-lastword=lws_1; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure"
        );
        assert_eq!(set("", 0, false), "lastword=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    }
}

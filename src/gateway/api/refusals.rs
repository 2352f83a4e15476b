//! What calls are refused with, as `/openapi.json` tells it: a problem detail for each status. Every call may be refused as
//! [`AnyCall`] says; the others are named by the calls that they are for.

use std::collections::BTreeMap;

use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

use crate::problem;

type Responses = BTreeMap<String, RefOr<Response>>;

fn told(refusals: &[(u16, &str)]) -> Responses {
    let problem = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response =
        |said: &str| ResponseBuilder::new().description(said).content(problem::CONTENT_TYPE, problem()).build();
    refusals.iter().map(|(status, said)| (status.to_string(), response(said).into())).collect()
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: [$($refusal:expr),+ $(,)?]),+ $(,)?) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> Responses {
                told(&[$($refusal),+])
            }
        }
    )+};
}

refusals! {
    /// Any call.
    AnyCall: [
        (400, "malformed, or without one Host"),
        (401, "no key, ticket or login, or none that is good"),
        (403, "for operators, or another's; or a host or a web page's origin that is not served"),
        (429, "a limit; Retry-After says when to try again"),
        (500, "a fault of Lastword"),
        (503, "the database is away, or too much is being sent at once; Retry-After"),
    ],
    /// A call on something that may not be there, or that the caller may not see.
    OfSomething: [(404, "there is no such thing, or the caller may not see it")],
    /// A call with a body.
    WithBody: [
        (408, "the body did not come in time"),
        (411, "the body does not say how long it is"),
        (413, "the body is too long"),
    ],
    /// A POST.
    WithJson: [(415, "not application/json")],
    /// A submit.
    OfSubmit: [(409, "the messageId was used with other content, or the conversation is another Agent's")],
    /// A stream.
    OfStream: [
        (410, "turns behind the cursor are past their retention: begin again without one"),
        (426, "asked for by HTTP/1.0, in which a cut and an end look the same"),
    ],
}

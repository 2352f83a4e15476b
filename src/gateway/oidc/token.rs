//! What is asked of a token, from the cheapest question to the dearest.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};

use super::{OidcConfig, TokenRefused};

/// The algorithms that a token may be signed by: only those whose verifying key signs nothing. With a shared secret (HS256 and
/// its kin) whoever knows the issuer's public key could make tokens, if it were taken for one.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The longest token, in bytes. A header of a request has a limit of its own, twice this.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The longest first part, in characters of base64: an algorithm, a type, a key's id.
const MAX_HEADER_CHARACTERS: usize = 1024;
/// An issuer's clock may be so far ahead of the database's.
const AHEAD: Duration = Duration::seconds(10);
/// What `typ` may say. Tokens of other kinds, which the same keys sign, are for other readers: a logout token say, or a
/// security event. Many issuers give access tokens the general type or none.
const TYPES: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];

/// What the first part of a token says, as far as it may be said.
#[derive(Debug)]
pub(super) struct TokenHeader {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
}

/// Reads a token's header. Nothing of it is proven yet.
pub(super) fn header(token: &str) -> Result<TokenHeader, TokenRefused> {
    let no_token = || bad("it is neither an API key nor a JWT");
    if token.len() > MAX_TOKEN_BYTES || token.bytes().filter(|&b| b == b'.').count() != 2 {
        return Err(no_token());
    }
    if token.find('.').is_none_or(|at| at > MAX_HEADER_CHARACTERS) {
        return Err(no_token());
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| no_token())?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(bad("its algorithm is none that is taken"));
    }
    if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
        return Err(bad("its header asks for an extension"));
    }
    if header.typ.is_some_and(|typ| !TYPES.contains(&typ.to_ascii_lowercase().as_str())) {
        return Err(bad("it is no access token or ID token by its type"));
    }
    Ok(TokenHeader { algorithm: header.alg, key_id: header.kid })
}

/// The claims of a token that this key has signed, for one of our audiences.
pub(super) fn claims(
    token: &str,
    algorithm: Algorithm,
    key: &DecodingKey,
    config: &OidcConfig,
) -> Result<Map<String, Value>, TokenRefused> {
    let mut asked = Validation::new(algorithm);
    asked.set_issuer(&[config.issuer.as_str()]);
    asked.set_audience(&config.audiences);
    asked.set_required_spec_claims(&["exp", "iss", "aud"]);
    // Times are compared with the database's clock.
    asked.validate_exp = false;
    let claims =
        jsonwebtoken::decode::<Map<String, Value>>(token, key, &asked).map_err(|error| match error.kind() {
            ErrorKind::InvalidIssuer => bad("it is of another issuer"),
            ErrorKind::InvalidAudience => bad("it is for another audience"),
            ErrorKind::MissingRequiredClaim(claim) => bad(&format!("it has no {claim}")),
            ErrorKind::InvalidSignature => bad("its signature is wrong"),
            _ => bad("it cannot be read"),
        })?;
    let claims = claims.claims;
    if claims.contains_key("cnf") {
        return Err(bad("it is bound to a key (cnf), which is not checked here"));
    }
    if claims.contains_key("events") {
        return Err(bad("it tells of events, and is no access token"));
    }
    Ok(claims)
}

/// When a token ends, if it has begun and not ended by now.
pub(super) fn check_times(claims: &Map<String, Value>, now: OffsetDateTime) -> Result<OffsetDateTime, TokenRefused> {
    let time = |claim: &str| match claims.get(claim) {
        None => Ok(None),
        Some(value) => seconds(value).map(Some).ok_or_else(|| bad(&format!("its {claim} is no time"))),
    };
    let expires_at = time("exp")?.ok_or_else(|| bad("it has no exp"))?;
    if expires_at <= now {
        return Err(bad("it has expired"));
    }
    for (claim, what) in [("nbf", "it is not yet good"), ("iat", "it was issued in the future")] {
        if time(claim)?.is_some_and(|at| at > now + AHEAD) {
            return Err(bad(what));
        }
    }
    Ok(expires_at)
}

/// A claim of time: seconds since 1970, perhaps with a fraction. What lies beyond the calendar is no time.
fn seconds(value: &Value) -> Option<OffsetDateTime> {
    let whole = value.as_i64().or_else(|| value.as_f64().filter(|s| s.abs() < 1e15).map(|s| s.floor() as i64))?;
    OffsetDateTime::from_unix_timestamp(whole).ok()
}

fn bad(why: &str) -> TokenRefused {
    TokenRefused::Bad(why.to_owned())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    fn with_header(header: Value) -> String {
        format!("{}.e30.c2ln", BASE64_URL_SAFE_NO_PAD.encode(header.to_string()))
    }

    #[test]
    fn a_header_is_read_before_anything_is_verified() {
        for good in [
            json!({"alg": "RS256", "kid": "k"}),
            json!({"alg": "ES256", "typ": "at+jwt"}),
            json!({"alg": "EdDSA", "typ": "JWT"}),
            json!({"alg": "PS512", "typ": "application/at+JWT"}),
        ] {
            assert!(header(&with_header(good.clone())).is_ok(), "{good}");
        }
        for wrong in [
            json!({"alg": "none"}),
            json!({"alg": "None"}),
            json!({"alg": ""}),
            json!({}),
            json!({"alg": "HS256"}),
            json!({"alg": "HS512", "typ": "at+jwt"}),
            json!({"alg": "RS256", "typ": "logout+jwt"}),
            json!({"alg": "RS256", "typ": "dpop+jwt"}),
            json!({"alg": "RS256", "typ": "secevent+jwt"}),
            json!({"alg": "RS256", "crit": ["b64"], "b64": false}),
            json!({"alg": "RS256", "enc": "A128GCM"}),
            json!({"alg": "RS256", "zip": "DEF"}),
            json!({"alg": "RS256", "kid": 7}),
            json!({"alg": "RS256", "kid": "k".repeat(2000)}),
            json!(["RS256"]),
        ] {
            assert!(header(&with_header(wrong.clone())).is_err(), "{wrong}");
        }
        for wrong in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "lwk_0", &"x".repeat(20_000)] {
            assert!(header(wrong).is_err(), "{wrong:.20}");
        }
    }

    #[test]
    fn times_go_by_the_clock_that_is_given() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        let check = |claims: Value| check_times(claims.as_object().expect("an object"), now).is_ok();
        assert!(check(json!({"exp": 1_800_000_001_i64})));
        assert!(check(json!({"exp": 1_800_000_001.5})));
        assert!(check(json!({"exp": 1_800_000_600_i64, "nbf": 1_800_000_010_i64, "iat": 1_800_000_010_i64})));
        for wrong in [
            json!({}),
            json!({"exp": 1_800_000_000_i64}),
            json!({"exp": 1_799_996_400_i64}),
            json!({"exp": "1800000600"}),
            json!({"exp": null}),
            json!({"exp": -1}),
            json!({"exp": 1e300}),
            json!({"exp": i64::MAX}),
            json!({"exp": 1_800_000_600_i64, "nbf": 1_800_000_011_i64}),
            json!({"exp": 1_800_007_200_i64, "iat": 1_800_003_600_i64}),
            json!({"exp": 1_800_000_600_i64, "nbf": "soon"}),
        ] {
            assert!(!check(wrong.clone()), "{wrong}");
        }
    }
}

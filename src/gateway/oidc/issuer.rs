//! The issuer's documents: where its keys are (OpenID Connect Discovery 1.0), and the keys (RFC 7517).
//!
//! The issuer's address is whoever runs the gateway's own choice, not a tenant's, so the rules of [`crate::egress`] for
//! tenants' URLs do not bind it: an issuer may well be in the cluster. It must be spoken to by TLS, since whoever can forge
//! its keys is everybody.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use url::Host;

use super::token::ALGORITHMS;
use crate::turn::objects::objects_only;

/// The issuer has so long for each of its documents.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest document, in bytes.
const MAX_DOCUMENT_BYTES: usize = 256 * 1024;
/// The most keys in a document. Issuers have two or three; some that serve many, dozens.
const MAX_KEYS: usize = 100;

/// Why an issuer's keys could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssuerError {
    #[error("{url} cannot be read: {why}")]
    Away { url: Url, why: String },
    #[error("{url} is not what it should be: {why}")]
    Wrong { url: Url, why: String },
}

/// An issuer's identifier: a URL that is compared to the letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerId {
    text: String,
    /// Where the issuer says how it is configured.
    configuration: Url,
}

impl IssuerId {
    /// The identifier, as it stands in tokens.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the issuer would be asked for its keys without TLS, over a network.
    pub fn is_in_cleartext(&self) -> bool {
        let loopback = match self.configuration.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        self.configuration.scheme() != "https" && !loopback
    }
}

impl FromStr for IssuerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is no issuer: {why}");
        let url: Url = text.parse().map_err(|error| wrong(&format!("{error}")))?;
        if !matches!(url.scheme(), "https" | "http") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it is an https URL without query and fragment"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it names a user"));
        }
        let configuration = format!("{}/.well-known/openid-configuration", text.trim_end_matches('/'));
        let configuration = configuration.parse().map_err(|error| wrong(&format!("{error}")))?;
        Ok(IssuerId { text: text.to_owned(), configuration })
    }
}

/// The issuer, as an HTTP client sees it.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    id: IssuerId,
    client: Client,
}

/// What is read of an issuer's configuration.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// A key set as it comes. Each key is read by itself: one of a kind that is not known here does not spoil the others.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct KeyDocument {
    keys: Vec<serde_json::Value>,
}

objects_only!(read Discovery, KeyDocument);

/// A key, and the algorithms that it may verify.
#[derive(Debug, Clone)]
pub(super) struct VerifyingKey {
    pub key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl VerifyingKey {
    /// Whether the key is for this algorithm.
    pub fn verifies(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// The keys of an issuer, by their ids. Keys without an id have the id "".
pub(super) type KeySet = HashMap<String, Vec<VerifyingKey>>;

impl Issuer {
    /// The issuer of this identifier.
    ///
    /// # Errors
    /// If the TLS backend cannot be initialised.
    pub fn new(id: IssuerId) -> Result<Self, reqwest::Error> {
        let client = crate::tls::http()
            .redirect(redirect::Policy::none())
            .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")))
            .timeout(PATIENCE)
            .build()?;
        Ok(Issuer { id, client })
    }

    /// Reads the keys.
    pub async fn keys(&self) -> Result<KeySet, IssuerError> {
        let configuration = &self.id.configuration;
        let found: Discovery = self.read(configuration).await?;
        let wrong = |why: &str| IssuerError::Wrong { url: configuration.clone(), why: why.to_owned() };
        if found.issuer != self.id.text {
            return Err(wrong("it names another issuer"));
        }
        let keys: Url = found.jwks_uri.parse().map_err(|_| wrong("its jwks_uri is no URL"))?;
        if keys.scheme() != "https" && keys.scheme() != configuration.scheme() {
            return Err(wrong("its keys are at an address without TLS"));
        }
        let document: KeyDocument = self.read(&keys).await?;
        let wrong = |why: String| IssuerError::Wrong { url: keys.clone(), why };
        if document.keys.len() > MAX_KEYS {
            return Err(wrong(format!("it has more than {MAX_KEYS} keys")));
        }
        let usable = usable(document.keys);
        if usable.is_empty() { Err(wrong("it has no key for signatures that are taken".into())) } else { Ok(usable) }
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, url: &Url) -> Result<T, IssuerError> {
        let away = |why: String| IssuerError::Away { url: url.clone(), why };
        let failed = |error: reqwest::Error| away(crate::egress::explain(error));
        let mut answer = self.client.get(url.clone()).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(away(format!("the answer is {}", answer.status())));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_DOCUMENT_BYTES {
                return Err(away(format!("it is larger than {MAX_DOCUMENT_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| IssuerError::Wrong { url: url.clone(), why: error.to_string() })
    }
}

/// The keys that verify signatures by algorithms that are taken.
fn usable(keys: Vec<serde_json::Value>) -> KeySet {
    let mut set = KeySet::new();
    for jwk in keys.into_iter().filter_map(|value| serde_json::from_value::<Jwk>(value).ok()) {
        let algorithms = algorithms(&jwk);
        if let (false, Ok(key)) = (algorithms.is_empty(), DecodingKey::from_jwk(&jwk)) {
            let id = jwk.common.key_id.unwrap_or_default();
            set.entry(id).or_default().push(VerifyingKey { key, algorithms });
        }
    }
    set
}

/// What a key may verify: nothing if it is for something else.
fn algorithms(jwk: &Jwk) -> Vec<Algorithm> {
    let common = &jwk.common;
    let for_signatures = common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|may| may.contains(&KeyOperations::Verify));
    let family = |family: AlgorithmFamily| ALGORITHMS.into_iter().filter(move |a| a.family() == family).collect();
    let by_kind: Vec<Algorithm> = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => family(AlgorithmFamily::Rsa),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
        _ => Vec::new(),
    };
    match common.key_algorithm {
        _ if !for_signatures => Vec::new(),
        None => by_kind,
        Some(only) => by_kind.into_iter().filter(|&a| Algorithm::try_from(only).is_ok_and(|only| only == a)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_keys_for_signatures_are_taken_and_each_for_its_own_algorithms() {
        let ec = |more: serde_json::Value| {
            let mut key = json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "k"});
            key.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            key
        };
        let may = |key: serde_json::Value| usable(vec![key]).remove("k").map(|keys| keys[0].algorithms.clone());
        assert_eq!(may(ec(json!({}))), Some(vec![Algorithm::ES256]));
        assert_eq!(may(ec(json!({"use": "sig", "alg": "ES256"}))), Some(vec![Algorithm::ES256]));
        assert_eq!(may(ec(json!({"use": "enc"}))), None);
        assert_eq!(may(ec(json!({"key_ops": ["sign"]}))), None);
        assert_eq!(may(ec(json!({"alg": "ES384"}))), None);
        assert_eq!(may(ec(json!({"crv": "P-521"}))), None);
        assert_eq!(may(json!({"kty": "oct", "k": "c2VjcmV0", "kid": "k"})), None, "a secret is no public key");
        assert_eq!(may(json!({"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256"})), None);
        let rsa = json!({"kty": "RSA", "n": "AAAA", "e": "AQAB", "kid": "k"});
        assert_eq!(may(rsa).map(|algorithms| algorithms.len()), Some(6));
        // One key of a new kind does not spoil the others.
        assert_eq!(usable(vec![json!({"kty": "AKP", "kid": "n"}), json!(7), ec(json!({}))]).len(), 1);
    }
}

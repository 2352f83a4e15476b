//! ServiceAccount tokens signed by the local cluster's own key, to differ from a real one in nothing but their time.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// A token with the claims of `original`, made anew, which expires in so many seconds from now.
pub fn like(original: &str, expires_in: i64) -> String {
    let mut parts = original.split('.');
    let (header, claims) = (parts.next().expect("a header"), parts.next().expect("claims"));
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).expect("base64")).expect("JSON");
    let now = jiff::Timestamp::now().as_second();
    claims["exp"] = (now + expires_in).into();
    for past in ["iat", "nbf"] {
        claims[past] = (now - 120).into();
    }
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(sign(signed.as_bytes())))
}

fn sign(text: &[u8]) -> Vec<u8> {
    let kubeconfig = std::env::var("KUBECONFIG").expect("run sets it");
    let key = Path::new(&kubeconfig).parent().expect("the cluster's state").join("pki/service-accounts.key");
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key);
    let mut openssl = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("openssl");
    openssl.stdin.take().expect("piped").write_all(text).expect("openssl reads");
    let signed = openssl.wait_with_output().expect("openssl ends");
    assert!(signed.status.success(), "{:?}", signed.status);
    signed.stdout
}

//! HTTP clients that trust the system's roots, or Mozilla's where there are none: our image holds one file, and agents'
//! images often none of these. The variables SSL_CERT_FILE and SSL_CERT_DIR name others.

use std::sync::LazyLock;

use rustls::{ClientConfig, RootCertStore};

/// A builder for clients; it is complete but for what is special about them. The process must have installed a rustls
/// provider before.
pub fn http() -> reqwest::ClientBuilder {
    static TLS: LazyLock<ClientConfig> =
        LazyLock::new(|| ClientConfig::builder().with_root_certificates(roots()).with_no_client_auth());
    reqwest::Client::builder().tls_backend_preconfigured(TLS.clone())
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Files that are no certificates are not ours to judge; without any that is, Mozilla's count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

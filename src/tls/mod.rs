//! TLS: HTTP clients, and the certificates of ports.
//!
//! A client trusts the certificates of the system, or Mozilla's where the system has none: Lastword's image holds one file,
//! and agents' images often have no certificates. The variables SSL_CERT_FILE and SSL_CERT_DIR name others. A client that
//! is given authorities trusts these alone.

mod named;
mod pem;
mod renewed;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use reqwest::ClientBuilder;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use self::pem::Authorities;
use self::renewed::renewed;
pub use self::renewed::{Renewed, never_renewed};

/// A port that speaks HTTP/1.1 alone, and one that speaks HTTP/2 too.
pub const HTTP1: &[&str] = &["http/1.1"];
pub const HTTP2: &[&str] = &["h2", "http/1.1"];

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct TlsError {
    file: PathBuf,
    why: String,
}

/// A builder for HTTP clients that trust the system's certificates. The process must have installed a rustls provider
/// before.
pub fn http() -> ClientBuilder {
    static TLS: LazyLock<ClientConfig> = LazyLock::new(|| trusting(roots()));
    preconfigured(TLS.clone())
}

/// A builder for HTTP clients that trust these authorities alone.
pub fn http_trusting(authorities: &Authorities) -> ClientBuilder {
    preconfigured(trusting(authorities.roots()))
}

/// The configuration of a port that shows a certificate: PEM files with the certificate and its chain, and with its key.
/// When the files change, the configuration does. `speaks`: what the port speaks, the best first, by the names of ALPN.
///
/// # Errors
/// If a file cannot be read or does not hold what it should, or if the key belongs to another certificate.
pub fn server(
    certificate: &Path,
    key: &Path,
    speaks: &'static [&'static str],
) -> Result<Renewed<Arc<ServerConfig>>, TlsError> {
    renewed([certificate, key], |[certificate, key]| {
        let (chain, private) = (certificate.certificates()?, key.private_key()?);
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, private).map_err(
            |error| match error {
                rustls::Error::InvalidCertificate(_) => certificate.wrong(error.to_string()),
                rustls::Error::InconsistentKeys(_) => {
                    key.wrong(format!("is not the key of the certificate in {certificate}"))
                }
                _ => key.wrong(format!("holds no key that can be used: {error}")),
            },
        )?;
        config.alpn_protocols = speaks.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    })
}

/// An HTTP client for servers whose certificate is for `name`, whatever address they are reached by; without a `name`, for
/// the address, as usual. It trusts `authorities`, a PEM file, or else what the system trusts. When the file changes, the
/// client is made again. `finish` makes the client of its builder.
///
/// # Errors
/// If the file cannot be read or holds no certificates.
pub fn client(
    authorities: Option<&Path>,
    name: Option<&ServerName<'static>>,
    finish: fn(ClientBuilder) -> Result<reqwest::Client, reqwest::Error>,
) -> Result<Renewed<reqwest::Client>, TlsError> {
    let name = name.cloned();
    let make = move |roots: RootCertStore| {
        let config = match &name {
            Some(name) => named::trusting(roots, name.clone()).map_err(|e| e.to_string())?,
            None => trusting(roots),
        };
        finish(preconfigured(config)).map_err(|e| e.to_string())
    };
    match authorities {
        Some(file) => renewed([file], move |[file]| make(file.authorities()?.roots()).map_err(|e| file.wrong(e))),
        None => {
            make(roots()).map(never_renewed).map_err(|why| TlsError { file: "the system's certificates".into(), why })
        }
    }
}

/// The authorities in a PEM file. When the file changes, they do.
///
/// # Errors
/// If the file cannot be read or holds no certificates.
pub fn authorities(file: &Path) -> Result<Renewed<Authorities>, TlsError> {
    renewed([file], |[file]| file.authorities())
}

fn preconfigured(config: ClientConfig) -> ClientBuilder {
    reqwest::Client::builder().tls_backend_preconfigured(config)
}

fn trusting(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Files of the system that hold no certificates are skipped. Where none holds any, Mozilla's are used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

#[cfg(test)]
mod tests;

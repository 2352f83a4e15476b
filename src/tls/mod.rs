//! TLS: HTTP clients, and what the worker port shows.
//!
//! Clients trust the system's roots, or Mozilla's where there are none: our image holds one file, and agents' images often
//! none of these. The variables SSL_CERT_FILE and SSL_CERT_DIR name others. Who is given authorities trusts these alone.

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

/// A file that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct TlsError {
    file: PathBuf,
    why: String,
}

/// A builder for clients; it is complete but for what is special about them. The process must have installed a rustls
/// provider before.
pub fn http() -> ClientBuilder {
    static TLS: LazyLock<ClientConfig> = LazyLock::new(|| trusting(roots()));
    preconfigured(TLS.clone())
}

/// The same, for clients that trust these authorities alone.
pub fn http_trusting(authorities: &Authorities) -> ClientBuilder {
    preconfigured(trusting(authorities.roots()))
}

/// What a port shows: a certificate with its chain, and its key. PEM files, renewed when they are.
///
/// # Errors
/// A file that cannot be read, holds no such thing, or a key of another certificate.
pub fn server(certificate: &Path, key: &Path) -> Result<Renewed<Arc<ServerConfig>>, TlsError> {
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
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    })
}

/// A client for servers that show the certificate of `name`, whatever their addresses; without one, of their addresses.
/// They are held against `authorities`, a PEM file that is renewed, or what the system trusts. `finish` makes the client.
///
/// # Errors
/// A file that cannot be read, or holds no authorities.
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

/// The authorities in a PEM file, renewed when it is.
///
/// # Errors
/// If it cannot be read, or holds none.
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
    // Files that are no certificates are not ours to judge; without any that is, Mozilla's count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

#[cfg(test)]
mod tests;

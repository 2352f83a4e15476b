//! Reads PEM files, and says what is wrong with them.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// The longest file that is read, in bytes. Authorities go into an annotation of each worker pod. Kubernetes allows 256
/// KiB for all annotations of an object, which those of the Agent's template share; this takes half at the most.
const MAX_FILE: u64 = 128 * 1024;
/// Characters of base64 in a line of PEM (RFC 7468).
const LINE: usize = 64;

/// A PEM file's path and content, kept so that a later reading can be compared with it.
#[derive(PartialEq, Eq)]
pub(super) struct Pem {
    path: PathBuf,
    /// The file's content, or why it cannot be read.
    content: Result<Vec<u8>, String>,
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Pem {
    pub(super) fn read(path: &Path) -> Pem {
        Pem { path: path.to_owned(), content: read(path) }
    }

    /// An error that says what is wrong with the file.
    pub(super) fn wrong(&self, why: impl Into<String>) -> TlsError {
        TlsError { file: self.path.clone(), why: why.into() }
    }

    fn content(&self) -> Result<&[u8], TlsError> {
        self.content.as_deref().map_err(|why| self.wrong(why))
    }

    fn malformed(&self, error: Error) -> TlsError {
        self.wrong(format!("is malformed: {error}"))
    }

    /// All certificates in the file, of which there must be one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.content()?).collect();
        match found {
            Ok(found) if found.is_empty() => Err(self.wrong("holds no certificate (PEM)")),
            Ok(found) => Ok(found),
            Err(error) => Err(self.malformed(error)),
        }
    }

    pub(super) fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.content()?).map_err(|error| match error {
            Error::NoItemsFound => self.wrong("holds no private key (PEM, without a password)"),
            error => self.malformed(error),
        })
    }

    pub(super) fn authorities(&self) -> Result<Authorities, TlsError> {
        let certificates = self.certificates()?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| self.wrong(error.to_string()))?;
        }
        Ok(Authorities { certificates, roots })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if content.len() as u64 > MAX_FILE {
        return Err(format!("holds more than {} KiB", MAX_FILE / 1024));
    }
    Ok(content)
}

/// Certificates of certificate authorities. They are public.
#[derive(Debug, Clone)]
pub struct Authorities {
    certificates: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
}

impl Authorities {
    /// Reads a PEM file once.
    ///
    /// # Errors
    /// If the file cannot be read or holds no certificates.
    pub fn read(file: &Path) -> Result<Self, TlsError> {
        Pem::read(file).authorities()
    }

    /// Reads PEM text. `name` says where it is from.
    ///
    /// # Errors
    /// If the text holds no certificates.
    pub fn parse(name: &str, pem: Vec<u8>) -> Result<Self, TlsError> {
        Pem { path: name.into(), content: Ok(pem) }.authorities()
    }

    pub(super) fn roots(&self) -> RootCertStore {
        self.roots.clone()
    }

    /// The certificates as PEM, without anything else that their file may hold.
    pub fn pem(&self) -> String {
        let mut text = String::new();
        for certificate in &self.certificates {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            let encoded = STANDARD.encode(certificate);
            let mut rest = encoded.as_str();
            while !rest.is_empty() {
                let (line, more) = rest.split_at(rest.len().min(LINE));
                text.push_str(line);
                text.push('\n');
                rest = more;
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
        text
    }
}

//! Verifies the certificate of another gateway replica. Replicas are reached by pod address, which no certificate
//! names, so one name is checked that the certificates of all replicas have.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The configuration of a client that verifies certificates as usual, except that they must be for `name` rather than for
/// the host in the URL.
pub(super) fn trusting(
    roots: RootCertStore,
    name: ServerName<'static>,
) -> Result<ClientConfig, impl std::error::Error> {
    WebPkiServerVerifier::builder(roots.into()).build().map(|verifier| {
        ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(FixedNameVerifier { verifier, name }))
            .with_no_client_auth()
    })
}

#[derive(Debug)]
struct FixedNameVerifier {
    verifier: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for FixedNameVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier.verify_server_cert(certificate, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

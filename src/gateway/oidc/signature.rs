//! Verifies the signatures of tokens by `ring`, which is in the program for TLS anyway. `jsonwebtoken` comes with two other
//! implementations, either of which would add some ten crates, one of them an RSA with a known side channel
//! (RUSTSEC-2023-0071).

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::signature as verify;

/// Makes `jsonwebtoken` verify by `ring`, in this whole process.
pub(super) fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        verifier_factory,
        key_utils: KeyUtils::new_unimplemented(),
    };
    // A second gateway in one process finds it installed.
    let _ = PROVIDER.install_default();
}

fn verifier_factory(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if key.family() != algorithm.family() || !super::token::ALGORITHMS.contains(algorithm) {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(ByRing { algorithm: *algorithm, key: key.clone() }))
}

struct ByRing {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for ByRing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for ByRing {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let rsa = match self.algorithm {
            Algorithm::RS256 => &verify::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::RS384 => &verify::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::RS512 => &verify::RSA_PKCS1_2048_8192_SHA512,
            Algorithm::PS256 => &verify::RSA_PSS_2048_8192_SHA256,
            Algorithm::PS384 => &verify::RSA_PSS_2048_8192_SHA384,
            Algorithm::PS512 => &verify::RSA_PSS_2048_8192_SHA512,
            Algorithm::ES256 => return self.by_bytes(&verify::ECDSA_P256_SHA256_FIXED, message, signature),
            Algorithm::ES384 => return self.by_bytes(&verify::ECDSA_P384_SHA384_FIXED, message, signature),
            Algorithm::EdDSA => return self.by_bytes(&verify::ED25519, message, signature),
            // Shared secrets, and what may come.
            _ => return Err(signature::Error::new()),
        };
        let DecodingKeyKind::RsaModulusExponent { n, e } = self.key.kind() else { return Err(signature::Error::new()) };
        let key = verify::RsaPublicKeyComponents { n, e };
        key.verify(rsa, message, signature).map_err(|_| signature::Error::new())
    }
}

impl ByRing {
    fn by_bytes(
        &self,
        algorithm: &'static dyn verify::VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), signature::Error> {
        let key = self.key.try_get_as_bytes().map_err(|_| signature::Error::new())?;
        verify::UnparsedPublicKey::new(algorithm, key).verify(message, signature).map_err(|_| signature::Error::new())
    }
}

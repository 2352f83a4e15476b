//! Secrets that Lastword makes and that mean nothing by themselves: `PREFIX<64 hex digits><8 hex digits>`. The table keeps only the
//! SHA-256 of one.
//!
//! As with an API key ([`keys`](super::keys)), 256 random bits need no slow hash, and the checksum, which is no secret, tells
//! noise from what may be one without asking the database.

use sha2::{Digest, Sha256};

use crate::turn::keys::{hex, unhex};

/// A secret. It has no `Debug`: nothing may log it.
pub(super) struct OpaqueSecret([u8; 32]);

impl OpaqueSecret {
    /// A new random one.
    pub fn generate() -> Self {
        OpaqueSecret(rand::random())
    }

    /// The text that its holder keeps.
    pub fn reveal(&self, prefix: &str) -> String {
        format!("{prefix}{}{}", hex(&self.0), hex(&self.checksum(prefix)))
    }

    /// Takes exactly the form that [`OpaqueSecret::reveal`] writes.
    pub fn read(prefix: &str, text: &str) -> Option<Self> {
        let (secret, checksum) = text.strip_prefix(prefix)?.split_at_checked(64)?;
        let secret = OpaqueSecret(unhex(secret)?);
        (unhex(checksum) == Some(secret.checksum(prefix))).then_some(secret)
    }

    /// What the table keeps of it.
    pub fn hash(&self) -> Vec<u8> {
        Sha256::digest(self.0).to_vec()
    }

    fn checksum(&self, prefix: &str) -> [u8; 4] {
        let digest = Sha256::new().chain_update(prefix).chain_update(self.0).finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_back_under_its_own_prefix_alone() {
        let secret = OpaqueSecret::generate();
        let text = secret.reveal("lwt_");
        assert_eq!(OpaqueSecret::read("lwt_", &text).map(|s| s.hash()), Some(secret.hash()));
        let swapped = text.replace("lwt_", "lws_");
        for (prefix, wrong) in [("lws_", swapped.as_str()), ("lwt_", &text[..75]), ("lwt_", "lwt_"), ("lwt_", "")] {
            assert!(OpaqueSecret::read(prefix, wrong).is_none(), "{wrong}");
        }
    }
}

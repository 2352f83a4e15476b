//! Secrets on one machine: files in a directory as Kubernetes would mount it (`DIR/NAME/KEY`), and variables of ours.

use std::path::PathBuf;

use futures::future::BoxFuture;

use crate::crd::SecretKeyRef;
use crate::secrets::{MAX_SECRET_BYTES, SecretError, Secrets};

/// Where `dev` finds Secrets. Namespaces do not matter here: there is one person.
#[derive(Debug, Clone, Default)]
pub struct LocalSecrets {
    /// Looked in first.
    pub directory: Option<PathBuf>,
}

impl LocalSecrets {
    /// Reads a key: the file `DIR/NAME/KEY`, without the newline at its end; else the variable, e.g. OPENAI_API_KEY for
    /// the name `openai` and the key `api-key`.
    pub fn read(&self, secret: &SecretKeyRef) -> Result<Option<String>, std::io::Error> {
        if let Some(directory) = self.directory.as_ref().filter(|_| is_plain(&secret.name) && is_plain(&secret.key)) {
            let path = directory.join(&secret.name).join(&secret.key);
            match std::fs::metadata(&path) {
                Ok(file) if file.len() > MAX_SECRET_BYTES as u64 => {
                    return Err(std::io::Error::other(format!("larger than {MAX_SECRET_BYTES} bytes")));
                }
                Ok(_) => return Ok(Some(std::fs::read_to_string(path)?.trim_end_matches(['\r', '\n']).to_string())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(std::env::var(variable(secret)).ok())
    }
}

impl Secrets for LocalSecrets {
    fn get<'a>(&'a self, _: &'a str, secret: &'a SecretKeyRef) -> BoxFuture<'a, Result<Option<String>, SecretError>> {
        let read = self.read(secret).map_err(|e| SecretError { name: secret.name.clone(), cause: e.to_string() });
        Box::pin(std::future::ready(read))
    }
}

/// The variable that stands for a Secret's key.
fn variable(secret: &SecretKeyRef) -> String {
    format!("{}_{}", secret.name, secret.key).to_uppercase().replace(['-', '.'], "_")
}

/// One name within a directory: no way out of it.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_first_and_no_name_leads_out_of_the_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("secrets");
        std::fs::create_dir_all(directory.join("hook")).expect("made");
        std::fs::write(directory.join("hook/url"), "https://x/\n").expect("written");
        std::fs::write(root.path().join("outside"), "no").expect("written");
        let secrets = LocalSecrets { directory: Some(directory) };
        let read = |name: &str, key: &str| {
            secrets.read(&SecretKeyRef { name: name.into(), key: key.into() }).expect("readable")
        };
        assert_eq!(read("hook", "url").as_deref(), Some("https://x/"));
        assert_eq!(read("hook", "absent"), None);
        for (name, key) in [("..", "outside"), ("hook", "../../outside"), ("hook/..", "../outside"), ("", "hook")] {
            assert_eq!(read(name, key), None, "{name} {key}");
        }
        let key = SecretKeyRef { name: "openai".into(), key: "api-key".into() };
        assert_eq!(variable(&key), "OPENAI_API_KEY");
    }
}

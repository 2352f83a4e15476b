//! Secrets on one machine: files in a directory, laid out as Kubernetes mounts Secrets (`DIR/NAME/KEY`), or else variables of
//! this process's environment.

use std::path::PathBuf;

use futures::future::BoxFuture;

use crate::crd::SecretKeyRef;
use crate::secrets::{MAX_SECRET_BYTES, SecretError, Secrets};

/// Finds Secrets for `lastword dev`. Namespaces are ignored: everything on one machine belongs to one person.
#[derive(Debug, Clone, Default)]
pub struct LocalSecrets {
    /// Looked in before the environment.
    pub directory: Option<PathBuf>,
}

impl LocalSecrets {
    /// Reads the value of a Secret's key: the file `DIR/NAME/KEY`, without newlines at its end; if there is none, the variable
    /// `NAME_KEY` in upper case, for example `OPENAI_API_KEY` for the name `openai` and the key `api-key`.
    ///
    /// # Errors
    /// Those of reading the file, and that it is larger than [`MAX_SECRET_BYTES`].
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
        let failed =
            |e: std::io::Error| SecretError { name: secret.name.clone(), cause: e.to_string(), passing: false };
        let read = self.read(secret).map_err(failed);
        Box::pin(std::future::ready(read))
    }
}

/// The name of the variable that holds a Secret's key.
fn variable(secret: &SecretKeyRef) -> String {
    format!("{}_{}", secret.name, secret.key).to_uppercase().replace(['-', '.'], "_")
}

/// Whether this is the name of one entry of a directory, and so leads to nothing outside of it.
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

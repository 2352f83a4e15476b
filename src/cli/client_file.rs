//! The user's own file with a gateway and the key for it: `$XDG_CONFIG_HOME/lastword/client.env`, by default below
//! `~/.config`. Clients (`chat`, `turns`) read it, wherever they run; `lastword init` and `lastword keys create --save` write
//! it. Nobody else may read it or write it.
//!
//! The two belong together, as in a context of a kubeconfig: the key is sent to no other gateway than the file's.

use std::path::{Path, PathBuf};

use url::Url;

use super::env_file::parse_env_file;
use super::error::ClientError;
use crate::private::{self, Others, PrivateError};

const GATEWAY: &str = "LASTWORD_GATEWAY_URL";
const KEY: &str = "LASTWORD_API_KEY";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedGateway {
    pub gateway: Url,
    pub api_key: Option<String>,
}

/// Where the file is; `None` for a user without a home.
pub fn path() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    Some(config.or_else(|| Some(home()?.join(".config")))?.join("lastword/client.env"))
}

/// Reads the file; `None` if there is none.
///
/// # Errors
/// If others may read or write it, or if it does not name a gateway.
pub fn read(file: &Path) -> Result<Option<SavedGateway>, ClientError> {
    let wrong = |what: String| ClientError::Invalid(format!("{}: {what}", file.display()));
    let Some(text) = private::read(file, Others::Nothing).map_err(|error| ClientError::Invalid(error.to_string()))?
    else {
        return Ok(None);
    };
    let pairs = parse_env_file(&text).map_err(|(line, what)| wrong(format!("line {line}: {what}")))?;
    if let Some((name, _)) = pairs.iter().find(|(name, _)| name != GATEWAY && name != KEY) {
        return Err(wrong(format!("it holds {GATEWAY} and {KEY} alone, not {name}")));
    }
    let value = |name: &str| pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
    let gateway = value(GATEWAY).ok_or_else(|| wrong(format!("it lacks {GATEWAY}, which the key is for")))?;
    let gateway = gateway.parse().map_err(|error| wrong(format!("{GATEWAY} is no URL: {error}")))?;
    Ok(Some(SavedGateway { gateway, api_key: value(KEY).filter(|key| !key.is_empty()) }))
}

/// Writes the file, and makes its directory.
///
/// # Errors
/// If it cannot be written; then an old one is as it was.
pub fn write(file: &Path, saved: &SavedGateway) -> Result<(), PrivateError> {
    if let Some(directory) = file.parent() {
        private::directory(directory, Others::MayRead)?;
    }
    let key = saved.api_key.as_ref().map(|key| format!("{KEY}={key}\n")).unwrap_or_default();
    private::write(file, &format!("{GATEWAY}={}\n{key}", saved.gateway))
}

impl SavedGateway {
    /// The key, if it is for this gateway.
    pub fn key_for(&self, gateway: &Url) -> Option<String> {
        let place = |url: &Url| (url.origin(), url.path().trim_end_matches('/').to_owned());
        self.api_key.clone().filter(|_| place(&self.gateway) == place(gateway))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_reads_back_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("lastword/client.env");
        assert_eq!(read(&file).unwrap(), None);
        for api_key in [None, Some("lwk_x".to_owned())] {
            let saved = SavedGateway { gateway: "https://h/p".parse().unwrap(), api_key };
            write(&file, &saved).unwrap();
            assert_eq!(read(&file).unwrap(), Some(saved));
        }
        let permissions = std::fs::metadata(&file).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn the_key_is_for_its_gateway_alone() {
        let saved = SavedGateway { gateway: "https://h/p".parse().unwrap(), api_key: Some("k".into()) };
        for (gateway, is) in [
            ("https://h/p", true),
            ("https://h:443/p/", true),
            ("http://h/p", false),
            ("https://h:8443/p", false),
            ("https://other/p", false),
            ("https://h/q", false),
        ] {
            assert_eq!(saved.key_for(&gateway.parse().unwrap()).is_some(), is, "{gateway}");
        }
    }

    #[test]
    fn a_key_without_its_gateway_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("client.env");
        for text in
            ["LASTWORD_API_KEY=k\n", "LASTWORD_GATEWAY_URL=nowhere\n", "LASTWORD_GATEWAY_URL=http://h\nPATH=/x\n"]
        {
            private::write(&file, text).unwrap();
            assert!(read(&file).is_err(), "{text}");
        }
    }
}

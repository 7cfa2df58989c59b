//! The hub's settings from the environment, in the variables of its other tools.

use crate::files;
use std::path::PathBuf;
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";

#[derive(Clone)]
pub struct Settings {
    /// Without a final `/`.
    pub endpoint: String,
    /// The directory with `models--ORG--NAME` and the like.
    pub cache: PathBuf,
    pub token: Option<String>,
    pub offline: bool,
    /// Wait before a retry; doubles with each failed attempt.
    pub retry_wait: Duration,
}

impl Settings {
    /// From `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN` or the file that `hf auth login` writes, and
    /// `HF_HUB_OFFLINE`.
    pub fn from_env() -> Settings {
        Self::from(|name| std::env::var(name).ok(), dirs::home_dir())
    }

    pub(super) fn from(get: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Settings {
        let variable = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let hub_home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
            cache.unwrap_or_default().join("huggingface")
        });
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
        let token = variable("HF_TOKEN").or_else(|| {
            let text = files::read_text(&token_file, files::CONFIGURATION).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        });
        let yes = |text: String| ["1", "on", "yes", "true"].contains(&text.to_lowercase().as_str());
        Settings {
            endpoint: variable("HF_ENDPOINT").unwrap_or(ENDPOINT.into()).trim_end_matches('/').to_owned(),
            cache: path("HF_HUB_CACHE").or(path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hub_home.join("hub")),
            token,
            offline: variable("HF_HUB_OFFLINE").is_some_and(yes),
            retry_wait: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], home: &str) -> Settings {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Settings::from(get, Some(home.into()))
    }

    #[test]
    fn variables_are_those_of_the_other_tools() {
        let plain = settings(&[], "/home/u");
        assert_eq!(plain.cache, PathBuf::from("/home/u/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (ENDPOINT, None, false));
        let set =
            [("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "True"), ("HF_TOKEN", " t\n"), ("HF_HOME", "/h")];
        let set = settings(&set, "/home/u");
        assert_eq!((set.endpoint.as_str(), set.token.as_deref(), set.offline), ("http://mirror", Some("t"), true));
        assert_eq!(set.cache, PathBuf::from("/h/hub"));
        let cache = settings(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HF_HUB_OFFLINE", "0")], "/home/u");
        assert_eq!((cache.cache, cache.offline), (PathBuf::from("/c"), false));
        assert_eq!(settings(&[("XDG_CACHE_HOME", "/x")], "/home/u").cache, PathBuf::from("/x/huggingface/hub"));
    }

    #[test]
    fn the_token_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)], "/home/u").token.as_deref(), Some("secret"));
    }
}

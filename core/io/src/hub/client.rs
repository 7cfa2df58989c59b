//! Requests to the hub, and the meaning of its refusals.

use super::{Kind, Repo, Settings};
use serde::Deserialize;
use sparta_model::method::options::nearest;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

/// Size limit of a listing, in bytes.
const LISTING: u64 = 64 << 20;
/// The most redirects within the hub, which come from renamed repositories.
const REDIRECTS: usize = 5;

/// Why a request failed.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// No answer: a cached copy may be used.
    Unreachable(String),
    /// A request to come back later, with the delay if stated: a cached copy may be used.
    Busy(String, Option<Duration>),
    /// A permanent refusal.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Unreachable(text) | Failure::Busy(text, _) | Failure::Refused(text)) = self;
        f.write_str(text)
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Failure>;

pub(super) struct Client {
    pub endpoint: String,
    pub retry_wait: Duration,
    token: Option<String>,
    agent: Agent,
}

/// The files of a repository at a commit.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
    /// Sizes of the files, if the hub states them.
    pub sizes: BTreeMap<String, u64>,
}

/// The hub's description of a file, before it is downloaded.
pub(super) struct Metadata {
    /// The name of the blob: SHA-256 of a large file, git's SHA-1 of a small one.
    pub etag: String,
    pub size: Option<u64>,
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct SearchHit {
    id: String,
}

impl Client {
    pub fn new(settings: &Settings) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("sparta/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Client {
            endpoint: settings.endpoint.clone(),
            retry_wait: settings.retry_wait,
            token: settings.token.clone(),
            agent: config.into(),
        }
    }

    /// The commit of a revision, and its files.
    pub fn listing(&self, repo: &Repo) -> Outcome<Listing> {
        let revision = repo.revision.replace('/', "%2F");
        let url = format!("{}/api/{}/{}/revision/{revision}?blobs=true", self.endpoint, repo.kind.plural(), repo.id);
        let response = self.get(&url, None)?;
        if !response.status().is_success() {
            return Err(self.refusal(repo, None, response));
        }
        let not_understood =
            |what: String| Failure::Refused(format!("{url}: not an answer from the hub: {what}; check HF_ENDPOINT"));
        let body = response.into_body().into_with_config().limit(LISTING).read_to_vec();
        let body = body.map_err(|e| Failure::Unreachable(format!("{url}: {e}")))?;
        let info: RepoInfo = serde_json::from_slice(&body).map_err(|e| not_understood(e.to_string()))?;
        let commit = info.sha.filter(|sha| super::is_commit(sha));
        let commit = commit.ok_or_else(|| not_understood("it names no commit".into()))?;
        let sizes = info.siblings.iter().filter_map(|file| Some((file.rfilename.clone(), file.size?))).collect();
        Ok(Listing { commit, files: info.siblings.into_iter().map(|file| file.rfilename).collect(), sizes })
    }

    pub fn file_url(&self, repo: &Repo, commit: &str, name: &str) -> String {
        let prefix = if repo.kind == Kind::Dataset { "datasets/" } else { "" };
        format!("{}/{prefix}{}/resolve/{commit}/{}", self.endpoint, repo.id, escaped(name))
    }

    /// Hash and size of a file. A redirect to its bytes is not followed, as the hub itself states the hash.
    pub fn metadata(&self, repo: &Repo, url: &str, name: &str) -> Outcome<Metadata> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let request = self.agent.head(&url).header("Accept-Encoding", "identity");
            let response = self.authorised(request, &url).call().map_err(|e| unreachable(&url, &e))?;
            log("HEAD", &url, &response);
            let headers = response.headers();
            if response.status().is_redirection()
                && let Some(path) = text(headers, "location").filter(|location| location.starts_with('/'))
            {
                url = resolved(&url, path);
                continue;
            }
            if !response.status().is_success() && !response.status().is_redirection() {
                return Err(self.refusal(repo, Some(name), response));
            }
            let etag = text(headers, "x-linked-etag").or(text(headers, "etag")).map(plain_etag).unwrap_or_default();
            if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                return Err(Failure::Refused(format!(
                    "{url}: the answer has no usable ETag ({etag:?}); check HF_ENDPOINT"
                )));
            }
            // The length of a redirect's own body is irrelevant.
            let length = || text(headers, "content-length").filter(|_| response.status().is_success());
            let size = text(headers, "x-linked-size").or_else(length).and_then(|size| size.parse().ok());
            return Ok(Metadata { etag, size });
        }
        Err(Failure::Refused(format!("{url}: more than {REDIRECTS} redirects")))
    }

    /// A GET that follows redirects; the token is sent only to the hub. `from`: the first byte wanted.
    pub fn get(&self, url: &str, from: Option<u64>) -> Outcome<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let mut request = self.authorised(self.agent.get(&url), &url).header("Accept-Encoding", "identity");
            if let Some(from) = from {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| unreachable(&url, &e))?;
            log("GET", &url, &response);
            match text(response.headers(), "location").filter(|_| response.status().is_redirection()) {
                Some(location) => url = resolved(&url, location),
                None => return Ok(response),
            }
        }
        Err(Failure::Refused(format!("{url}: more than {REDIRECTS} redirects")))
    }

    /// Adds the token, if the request goes to the hub itself: same scheme, host and port.
    fn authorised<B>(&self, request: ureq::RequestBuilder<B>, url: &str) -> ureq::RequestBuilder<B> {
        let hub = origin(&self.endpoint).is_some_and(|hub| origin(url) == Some(hub));
        match self.token.as_ref().filter(|_| hub) {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// The meaning of a refusal, and what to do about it.
    pub fn refusal(&self, repo: &Repo, file: Option<&str>, response: Response<Body>) -> Failure {
        let status = response.status();
        let code = text(response.headers(), "x-error-code").unwrap_or_default().to_owned();
        let said = text(response.headers(), "x-error-message").map(|text| format!(" ({text})")).unwrap_or_default();
        let Repo { kind, id, revision } = repo;
        let (noun, endpoint) = (kind.noun(), &self.endpoint);
        let page = format!("{endpoint}/{}{id}", if *kind == Kind::Dataset { "datasets/" } else { "" });
        let what = file.map_or(format!("{noun} {id}"), |file| format!("{file} of {noun} {id}"));
        let tokens = format!("make a token with read access at {endpoint}/settings/tokens and set HF_TOKEN to it");
        let gated = code == "GatedRepo" || said.to_lowercase().contains("gated");
        Failure::Refused(match status {
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let wait = text(response.headers(), "retry-after").and_then(|text| text.trim().parse().ok());
                let after = wait.map(|seconds| format!(" in {seconds} s")).unwrap_or(" later".into());
                let reason = format!("{what}: the hub answered {status}{said}; try again{after}");
                return Failure::Busy(reason, wait.map(Duration::from_secs));
            }
            _ if gated && self.token.is_none() => {
                format!("{what} is gated{said}: log in at {page} and accept its conditions; then {tokens}")
            }
            _ if gated => format!(
                "{what} is gated{said}, and the account of your token has no access: accept its conditions at {page} \
                 with that account; a fine-grained token needs the permission for gated repositories"
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
                if code == "RepoNotFound" || (code.is_empty() && file.is_none()) =>
            {
                let hint = match self.similar(repo) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "check the name.".into(),
                };
                let private = match &self.token {
                    None => format!("If it is private, {tokens}"),
                    Some(_) => "If it is private, the account of your token may not see it".into(),
                };
                format!("there is no {noun} {id} at {endpoint}, nor a directory of that name: {hint} {private}")
            }
            StatusCode::UNAUTHORIZED if self.token.is_some() => {
                format!("{what}: the hub does not accept your token{said}; {tokens}, or unset it")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!("{what}: no access{said}; {tokens}"),
            StatusCode::NOT_FOUND if code == "RevisionNotFound" => {
                format!("{noun} {id} has no revision {revision}: see the branches and tags at {page}/tree/main")
            }
            StatusCode::NOT_FOUND => format!("{what}: not found at revision {revision}; see {page}/tree/{revision}"),
            _ => format!("{what}: the hub answered {status}{said}"),
        })
    }

    /// A repository with a similar name, if the hub's search finds one.
    fn similar(&self, repo: &Repo) -> Option<String> {
        let (_, name) = repo.id.split_once('/')?;
        let url = format!("{}/api/{}?search={}&limit=20", self.endpoint, repo.kind.plural(), escaped(name));
        let body = self.get(&url, None).ok()?.into_body().into_with_config().limit(LISTING).read_to_vec().ok()?;
        let hits: Vec<SearchHit> = serde_json::from_slice(&body).ok()?;
        nearest(&repo.id, hits.iter().map(|hit| hit.id.as_str())).map(str::to_owned)
    }
}

/// The query of a URL is not logged, as it may be a signature.
fn log(method: &str, url: &str, response: &Response<Body>) {
    tracing::debug!("{method} {}: {}", url.split('?').next().unwrap_or_default(), response.status());
}

pub(super) fn unreachable(url: &str, error: &ureq::Error) -> Failure {
    Failure::Unreachable(format!("{url}: {error}; check the connection and HF_ENDPOINT"))
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `W/"abc"` and `"abc"` are `abc`.
fn plain_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_lowercase(), port))
}

/// The target of a redirect from `url`.
fn resolved(url: &str, location: &str) -> String {
    let scheme = url.find("://").map_or(0, |at| at + 3);
    let host = url[scheme..].find('/').map_or(url, |end| &url[..scheme + end]);
    match location {
        absolute if absolute.contains("://") => absolute.to_owned(),
        other if other.starts_with("//") => format!("{}{}", &url[..scheme.saturating_sub(2)], other),
        path if path.starts_with('/') => format!("{host}{path}"),
        relative => format!("{}/{relative}", url.rsplit_once('/').map_or(url, |(folder, _)| folder)),
    }
}

/// Percent-encodes a path, except `/`.
fn escaped(path: &str) -> String {
    let byte = |b: u8| match b {
        b if b.is_ascii_alphanumeric() || b"-_.~/".contains(&b) => (b as char).to_string(),
        b => format!("%{b:02X}"),
    };
    path.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(a).is_some() && origin(a) == origin(b);
        assert!(same("https://hub.example", "https://HUB.example:443/a?b"));
        for other in
            ["http://hub.example", "https://hub.example:8443", "https://hub.example.evil", "https://hub.example@evil"]
        {
            assert!(!same("https://hub.example", other), "{other}");
        }
    }

    #[test]
    fn redirects_are_resolved() {
        let from = |location: &str| resolved("https://h:1/a/b?c", location);
        assert_eq!(from("http://x/y"), "http://x/y");
        assert_eq!(from("//x/y"), "https://x/y");
        assert_eq!(from("/y"), "https://h:1/y");
        assert_eq!(from("y"), "https://h:1/a/y");
    }
}

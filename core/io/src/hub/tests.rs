//! Tests against a local server that behaves like the hub.

use super::*;
use crate::hash::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ID: &str = "org/small";

/// The server's files and misbehaviour, and the requests it received.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// The token required for access.
    token: Option<String>,
    gated: bool,
    /// Number of bytes after which a connection is cut, and how often.
    cut: Option<(usize, usize)>,
    /// How often wrong bytes are sent.
    corrupt: usize,
    no_ranges: bool,
    /// How often a listing is postponed, and by how many seconds.
    busy: usize,
    retry_after: u64,
    /// Bytes sent beyond the stated size.
    longer: usize,
    requests: Vec<String>,
}

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(state: State) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Server { endpoint, state }
    }

    fn hub(&self, cache: &TempDir) -> Hub {
        self.hub_with(cache, |_| {})
    }

    fn hub_with(&self, cache: &TempDir, change: impl Fn(&mut Settings)) -> Hub {
        let mut settings = Settings {
            endpoint: self.endpoint.clone(),
            cache: cache.path().to_owned(),
            token: None,
            offline: false,
            retry_wait: Duration::ZERO,
        };
        change(&mut settings);
        Hub::new(settings)
    }

    fn requests(&self, part: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|line| line.contains(part)).count()
    }
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    token: Option<String>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let mut request = Request { method: words.next()?.into(), path: words.next()?.into(), range: None, token: None };
    for line in lines {
        let line = line.ok().filter(|line| !line.is_empty());
        let Some(line) = line else { break };
        let (name, value) = line.split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => request.range = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Some(request)
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let Some(request) = read_request(&stream) else { return };
    let mut state = state.lock().unwrap();
    let range = request.range.map(|n| format!(" from {n}")).unwrap_or_default();
    state.requests.push(format!("{} {}{range}", request.method, request.path));
    let head = |status: &str, headers: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n")
    };
    let mut answer = |status: &str, headers: &str, body: &str| {
        let _ = stream.write_all(format!("{}{body}", head(status, headers, body.len())).as_bytes());
    };
    if let Some(path) = request.path.strip_prefix("/cdn/") {
        // The token must not be sent to the place of the bytes.
        assert_eq!(request.token, None);
        let name = path.split('?').next().unwrap();
        let body = state.files[name].clone();
        return send(stream, &mut state, &request, body);
    }
    if request.path.contains("?search=") {
        return answer("200 OK", "", r#"[{"id": "org/small"}, {"id": "else/thing"}]"#);
    }
    if !request.path.contains(ID) {
        return answer("401 Unauthorized", "x-error-code: RepoNotFound\r\n", "no");
    }
    if let Some(revision) = request.path.split_once("/revision/").map(|(_, revision)| revision) {
        let revision = revision.trim_end_matches("?blobs=true");
        if revision != "main" && revision != COMMIT && revision != "refs%2Fpr%2F1" {
            return answer("404 Not Found", "x-error-code: RevisionNotFound\r\n", "{}");
        }
        if state.busy > 0 {
            state.busy -= 1;
            return answer("429 Too Many Requests", &format!("retry-after: {}\r\n", state.retry_after), "no");
        }
        let named = |(name, bytes): (&String, &Vec<u8>)| serde_json::json!({"rfilename": name, "size": bytes.len()});
        let names: Vec<_> = state.files.iter().map(named).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": names}).to_string();
        return answer("200 OK", "content-type: application/json\r\n", &body);
    }
    if state.gated && (state.token.is_none() || request.token != state.token) {
        let status = if request.token.is_none() { "401 Unauthorized" } else { "403 Forbidden" };
        return answer(status, "x-error-code: GatedRepo\r\nx-error-message: Access is restricted.\r\n", "no");
    }
    let name = request.path.split_once(&format!("/resolve/{COMMIT}/")).unwrap().1;
    let Some(body) = state.files.get(name).cloned() else {
        return answer("404 Not Found", "x-error-code: EntryNotFound\r\n", "no");
    };
    if name.ends_with(".safetensors") || name.ends_with(".parquet") {
        // Large files are on another host: here another name of the same machine.
        let port = stream.local_addr().unwrap().port();
        let etag = hex(&Sha256::digest(&body));
        let headers = format!(
            "location: http://localhost:{port}/cdn/{name}?signed\r\nx-repo-commit: {COMMIT}\r\nx-linked-size: {}\r\n\
             x-linked-etag: \"{etag}\"\r\netag: \"something else\"\r\n",
            body.len()
        );
        let text = head("302 Found", &headers, 0);
        let _ = stream.write_all(text.as_bytes());
        return;
    }
    let etag = hex(&Sha1::new_with_prefix(format!("blob {}\0", body.len())).chain_update(&body).finalize());
    let headers = format!("etag: W/\"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n");
    let _ = stream.write_all(head("200 OK", &headers, body.len()).as_bytes());
    if request.method == "GET" {
        let _ = stream.write_all(&body);
    }
}

fn send(mut stream: TcpStream, state: &mut State, request: &Request, mut body: Vec<u8>) {
    if state.corrupt > 0 {
        state.corrupt -= 1;
        body[0] ^= 1;
    }
    let total = body.len();
    let from = request.range.filter(|_| !state.no_ranges);
    let (status, range, rest) = match from {
        Some(from) if from >= total => ("416 Range Not Satisfiable", String::new(), &[][..]),
        Some(from) => {
            ("206 Partial Content", format!("content-range: bytes {from}-{}/{total}\r\n", total - 1), &body[from..])
        }
        None => ("200 OK", String::new(), &body[..]),
    };
    let length = rest.len() + state.longer;
    let head = format!("HTTP/1.1 {status}\r\n{range}content-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    let sent = match &mut state.cut {
        Some((bytes, times)) if *times > 0 => {
            *times -= 1;
            rest.len().min(*bytes)
        }
        _ => rest.len(),
    };
    let _ = stream.write_all(&rest[..sent]);
    let _ = stream.write_all(&vec![0; state.longer]);
}

/// A safetensors file of 3,000,000 bytes.
fn weights() -> Vec<u8> {
    let (total, header) = (3_000_000, 120);
    let n = total - header - 8;
    let text = format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{n}],\"data_offsets\":[0,{n}]}}}}");
    let mut bytes = (header as u64).to_le_bytes().to_vec();
    bytes.extend(format!("{text:<header$}").into_bytes());
    bytes.extend((0..n as u32).map(|i| (i.wrapping_mul(i) >> 7) as u8));
    bytes
}

fn model() -> BTreeMap<String, Vec<u8>> {
    let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    BTreeMap::from([
        file("config.json", b"{}"),
        file("tokenizer.json", b"{\"a\": 1}"),
        file("README.md", b"not wanted"),
        file("model.safetensors", &weights()),
    ])
}

fn repo() -> Repo {
    Repo::parse(Kind::Model, Path::new(ID), None).unwrap().unwrap()
}

fn get(hub: &Hub, repo: &Repo) -> Result<PathBuf> {
    hub.get(repo, &Files::Model, &mut |_| {})
}

fn message(hub: &Hub, repo: &Repo) -> String {
    get(hub, repo).unwrap_err().to_string()
}

#[test]
fn names_are_distinguished_from_paths() {
    let parse = |text: &str| Repo::parse(Kind::Model, Path::new(text), None).unwrap();
    assert_eq!(parse("google/gemma-2b").unwrap().revision, "main");
    assert_eq!(parse("google/gemma-2b@refs/pr/1").unwrap().revision, "refs/pr/1");
    for path in ["models/a/b", "./a", "../a", "/a/b", "a", "a/", "~/x", "a\\b/c", "a b/c", "src/hub"] {
        assert_eq!(parse(path), None, "{path}");
    }
    let both = Repo::parse(Kind::Model, Path::new("a/b@x"), Some("y")).unwrap_err().to_string();
    assert!(both.contains("revision x") && both.contains("--revision names y"), "{both}");
    assert!(Repo::parse(Kind::Model, Path::new("a/b"), Some("../../x")).is_err());
}

#[test]
fn a_model_lands_in_the_layout_of_the_shared_cache_and_is_not_asked_for_twice() {
    let (server, cache) = (Server::start(State { files: model(), ..State::default() }), tempfile::tempdir().unwrap());
    let hub = server.hub(&cache);
    let mut last = None;
    let dir = hub
        .get(&repo(), &Files::Model, &mut |event| {
            if let Event::File { name: "model.safetensors", done, total } = event {
                last = Some((done, total));
            }
        })
        .unwrap();
    assert_eq!(last, Some((3_000_000, 3_000_000)));
    let root = cache.path().join("models--org--small");
    assert_eq!(dir, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights());
    assert!(!dir.join("README.md").exists());
    let blob = root.join("blobs").join(hex(&Sha256::digest(weights())));
    assert_eq!(fs::canonicalize(dir.join("model.safetensors")).unwrap(), fs::canonicalize(blob).unwrap());
    #[cfg(unix)]
    assert!(fs::read_link(dir.join("config.json")).unwrap().starts_with("../../blobs"));
    assert_eq!(fs::read_dir(root.join("blobs")).unwrap().count(), 3);

    let before = server.requests("/resolve/");
    get(&hub, &repo()).unwrap();
    assert_eq!((server.requests("/resolve/"), server.requests("/api/")), (before, 2));
    // A commit never changes, so nothing is requested; nor in offline mode.
    let pinned = Repo { revision: COMMIT.into(), ..repo() };
    assert_eq!(get(&hub, &pinned).unwrap(), dir);
    assert_eq!(get(&server.hub_with(&cache, |s| s.offline = true), &repo()).unwrap(), dir);
    assert_eq!(server.requests("/api/"), 2);
}

#[test]
fn an_interrupted_download_continues_where_it_stopped() {
    let cut = Some((1_000_000, 1));
    let server = Server::start(State { files: model(), cut, ..State::default() });
    let cache = tempfile::tempdir().unwrap();
    let dir = get(&server.hub(&cache), &repo()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights());
    assert_eq!(server.requests("GET /cdn/model.safetensors?signed from "), 1);

    // A connection that always breaks: received data are kept, and a later run needs only the rest.
    let server = Server::start(State { files: model(), cut: Some((0, 99)), ..State::default() });
    let cache = tempfile::tempdir().unwrap();
    let etag = hex(&Sha256::digest(weights()));
    let part = cache.path().join(format!("models--org--small/blobs/{etag}.incomplete"));
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &weights()[..2_000_000]).unwrap();
    let text = message(&server.hub(&cache), &repo());
    assert!(text.contains("model.safetensors"), "{text}");
    assert_eq!(fs::metadata(&part).unwrap().len(), 2_000_000);
    assert!(!cache.path().join("models--org--small/refs/main").exists());
    server.state.lock().unwrap().cut = None;
    let dir = get(&server.hub(&cache), &repo()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights());
    let (all, rest) = ("GET /cdn/model.safetensors?signed", "GET /cdn/model.safetensors?signed from 2000000");
    assert!(server.requests(all) > 1 && !part.exists());
    assert_eq!(server.requests(all), server.requests(rest));
}

#[test]
fn a_download_without_ranges_begins_again() {
    let state = State { files: model(), cut: Some((1_000_000, 1)), no_ranges: true, ..State::default() };
    let (server, cache) = (Server::start(state), tempfile::tempdir().unwrap());
    let dir = get(&server.hub(&cache), &repo()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_wrong_hash_is_never_given_a_name() {
    let server = Server::start(State { files: model(), corrupt: 9, ..State::default() });
    let cache = tempfile::tempdir().unwrap();
    let text = message(&server.hub(&cache), &repo());
    assert!(text.contains("model.safetensors") && text.contains("does not have the hash"), "{text}");
    let blobs = cache.path().join("models--org--small/blobs");
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 2);
    // Data left by an earlier attempt may be wrong: the file is fetched again.
    server.state.lock().unwrap().corrupt = 0;
    let etag = hex(&Sha256::digest(weights()));
    fs::write(blobs.join(format!("{etag}.incomplete")), vec![7; 1_500_000]).unwrap();
    let dir = get(&server.hub(&cache), &repo()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn gated_repositories_say_what_to_do() {
    let state = State { files: model(), gated: true, token: Some("good".into()), ..State::default() };
    let (server, cache) = (Server::start(state), tempfile::tempdir().unwrap());
    let anonymous = message(&server.hub(&cache), &repo());
    for part in ["config.json of model org/small is gated", "accept its conditions", "HF_TOKEN", "/settings/tokens"] {
        assert!(anonymous.contains(part), "{part}: {anonymous}");
    }
    let refused = message(&server.hub_with(&cache, |s| s.token = Some("bad".into())), &repo());
    assert!(refused.contains("the account of your token has no access"), "{refused}");
    get(&server.hub_with(&cache, |s| s.token = Some("good".into())), &repo()).unwrap();
}

#[test]
fn missing_models_and_files_are_reported_with_advice() {
    let (server, cache) = (Server::start(State { files: model(), ..State::default() }), tempfile::tempdir().unwrap());
    let hub = server.hub(&cache);
    let typo = message(&hub, &Repo { id: "org/smal".into(), ..repo() });
    for part in ["there is no model org/smal", "nor a directory of that name", "did you mean org/small?", "HF_TOKEN"] {
        assert!(typo.contains(part), "{part}: {typo}");
    }
    let revision = message(&hub, &Repo { revision: "v9".into(), ..repo() });
    assert!(revision.contains("has no revision v9"), "{revision}");
    server.state.lock().unwrap().files.remove("tokenizer.json");
    let file = message(&hub, &repo());
    assert!(file.contains("there is no tokenizer.json"), "{file}");
}

#[test]
fn without_a_connection_the_cached_copy_serves() {
    let (server, cache) = (Server::start(State { files: model(), ..State::default() }), tempfile::tempdir().unwrap());
    // A port without a listener.
    let gone = |s: &mut Settings| s.endpoint = "http://127.0.0.1:9".into();
    let text = message(&server.hub_with(&cache, gone), &repo());
    assert!(text.contains("check the connection and HF_ENDPOINT"), "{text}");
    let offline = message(&server.hub_with(&cache, |s| s.offline = true), &repo());
    assert!(offline.contains("HF_HUB_OFFLINE") && offline.contains("org/small at revision main"), "{offline}");
    let dir = get(&server.hub(&cache), &repo()).unwrap();
    let mut said = String::new();
    let cached = server.hub_with(&cache, gone).get(&repo(), &Files::Model, &mut |event| {
        if let Event::Message(text) = event {
            said = text.to_owned();
        }
    });
    assert_eq!(cached.unwrap(), dir);
    assert!(said.contains("using the cached copy"), "{said}");
}

#[test]
fn truncated_files_in_the_cache_are_fetched_again() {
    let (server, cache) = (Server::start(State { files: model(), ..State::default() }), tempfile::tempdir().unwrap());
    let hub = server.hub(&cache);
    let dir = get(&hub, &repo()).unwrap();
    let pinned = Repo { revision: COMMIT.into(), ..repo() };
    for (name, repo) in [("model.safetensors", repo()), ("config.json", repo()), ("model.safetensors", pinned)] {
        let blob = fs::canonicalize(dir.join(name)).unwrap();
        File::options().write(true).open(blob).unwrap().set_len(1).unwrap();
        assert_eq!(get(&hub, &repo).unwrap(), dir);
        assert_eq!(fs::read(dir.join(name)).unwrap(), model()[name], "{name}");
    }
    assert_eq!(server.requests("GET /cdn/model.safetensors?signed from 1"), 2);
}

#[test]
fn a_busy_hub_is_asked_again_when_it_says() {
    let state = State { files: model(), busy: 2, ..State::default() };
    let (server, cache) = (Server::start(state), tempfile::tempdir().unwrap());
    get(&server.hub(&cache), &repo()).unwrap();
    assert_eq!(server.requests("/api/"), 3);
    let state = State { files: model(), busy: 1, retry_after: 3600, ..State::default() };
    let text = message(&Server::start(state).hub(&tempfile::tempdir().unwrap()), &repo());
    assert!(text.contains("try again in 3600 s"), "{text}");
}

#[test]
fn a_body_that_is_too_long_is_cut_off() {
    let state = State { files: model(), longer: 1 << 20, ..State::default() };
    let (server, cache) = (Server::start(state), tempfile::tempdir().unwrap());
    let dir = get(&server.hub(&cache), &repo()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights());
}

/// The other host is this machine by another name, or another port.
#[test]
fn the_token_goes_only_to_the_hub() {
    let state = State { files: model(), gated: true, token: Some("good".into()), ..State::default() };
    let (server, cache) = (Server::start(state), tempfile::tempdir().unwrap());
    // The server refuses a token at the place of the bytes.
    get(&server.hub_with(&cache, |s| s.token = Some("good".into())), &repo()).unwrap();
    assert!(server.requests("GET /cdn/") > 0);
}

#[test]
fn shards_are_those_of_the_index() {
    let mut files = model();
    files.remove("model.safetensors");
    let index = serde_json::json!({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}).to_string();
    files.insert("model.safetensors.index.json".into(), index.into_bytes());
    for name in ["x-1.safetensors", "x-2.safetensors", "consolidated.safetensors"] {
        files.insert(name.into(), name.as_bytes().to_vec());
    }
    let (server, cache) = (Server::start(State { files, ..State::default() }), tempfile::tempdir().unwrap());
    let pull = Repo { revision: "refs/pr/1".into(), ..repo() };
    let dir = get(&server.hub(&cache), &pull).unwrap();
    assert_eq!(fs::read(dir.join("x-2.safetensors")).unwrap(), b"x-2.safetensors");
    assert!(!dir.join("consolidated.safetensors").exists());
    assert!(cache.path().join("models--org--small/refs/refs/pr/1").is_file());

    let evil = serde_json::json!({"weight_map": {"a": "../../x.safetensors"}}).to_string();
    server.state.lock().unwrap().files.insert("model.safetensors.index.json".into(), evil.into_bytes());
    let text = message(&server.hub(&tempfile::tempdir().unwrap()), &repo());
    assert!(text.contains("in the same directory"), "{text}");
}

#[test]
fn data_sets_give_the_files_of_a_task() {
    let names = [
        "sst2/train-00000-of-00001.parquet",
        "sst2/validation-00000-of-00001.parquet",
        "qqp/train-00000-of-00001.parquet",
    ];
    let files = names.iter().map(|name| (name.to_string(), name.as_bytes().to_vec())).collect();
    let (server, cache) = (Server::start(State { files, ..State::default() }), tempfile::tempdir().unwrap());
    let repo = Repo { kind: Kind::Dataset, ..repo() };
    let task = Files::Task("sst2".into());
    let dir = server.hub(&cache).get(&repo, &task, &mut |_| {}).unwrap();
    assert!(dir.starts_with(cache.path().join("datasets--org--small")));
    assert_eq!(fs::read(dir.join(names[1])).unwrap(), names[1].as_bytes());
    assert!(!dir.join("qqp").exists());
    assert_eq!(server.requests("HEAD /datasets/org/small/resolve/"), 2);
    let offline = server.hub_with(&cache, |s| s.offline = true);
    assert_eq!(offline.get(&repo, &task, &mut |_| {}).unwrap(), dir);
    assert!(offline.get(&repo, &Files::Task("qqp".into()), &mut |_| {}).is_err());
}

#[test]
fn concurrent_downloads_share_the_work() {
    let server = Server::start(State { files: model(), cut: Some((500_000, 3)), ..State::default() });
    let cache = tempfile::tempdir().unwrap();
    let dirs: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| get(&server.hub(&cache), &repo()).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(dirs.iter().all(|dir| fs::read(dir.join("model.safetensors")).unwrap() == weights()));
    assert_eq!(server.requests("GET /cdn/"), 4, "one download with three continuations");
}

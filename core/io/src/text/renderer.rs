//! Renders chat templates in a child process, as a template of a few bytes can build values of any size and nest as
//! deeply as it is long. The child has a large stack, limited memory and a deadline per request, so the worst a
//! template can cause is an error.
//!
//! The protocol is a line of JSON each way: a [`Request`], and `{"Ok": TEXT}` or `{"Err": MESSAGE}`.

use super::Message;
use super::jinja::Jinja;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The only argument of a renderer process.
pub const RENDERER: &str = "render-chat-template";

/// Address space for a renderer's stack; unused pages cost nothing. A template of 256 KiB can nest this deeply, with up
/// to 2 KiB of stack per level.
const STACK: usize = 1 << 30;

/// The time limit of a request; published templates need microseconds.
const DEADLINE: Duration = Duration::from_secs(10);

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Makes `program` render templates; it must call [`serve`] when its only argument is [`RENDERER`].
///
/// Without this call they are rendered in this process, on the caller's stack and without a memory limit, which is fine
/// for trusted templates.
pub fn render_apart(program: PathBuf) {
    // A second call has no effect.
    let _ = PROGRAM.set(program);
}

#[derive(Serialize, Deserialize)]
enum Request {
    Compile { template: String, tokens: BTreeMap<String, String>, now: i64 },
    Render { turns: Vec<Turn>, add_generation_prompt: bool },
}

#[derive(Serialize, Deserialize)]
struct Turn {
    role: String,
    content: String,
}

type Answer = Result<String, String>;

/// A compiled template.
#[derive(Debug)]
pub(super) enum Renderer {
    Here(Box<Jinja>),
    Apart(Mutex<Process>),
}

impl Renderer {
    /// Errors: a template that cannot be parsed; a process that cannot be started.
    pub fn new(template: &str, tokens: BTreeMap<String, String>, now: i64) -> Result<Renderer, String> {
        match PROGRAM.get() {
            None => Ok(Renderer::Here(Box::new(Jinja::new(template, tokens, now)?))),
            Some(program) => {
                let mut process = Process::start(program)
                    .map_err(|e| format!("cannot be read: no process to render it could be started: {e}"))?;
                process.ask(&Request::Compile { template: template.to_owned(), tokens, now })?;
                Ok(Renderer::Apart(Mutex::new(process)))
            }
        }
    }

    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Answer {
        let process = match self {
            Renderer::Here(jinja) => return jinja.render(messages, add_generation_prompt),
            Renderer::Apart(process) => process,
        };
        let turn = |m: &Message| Turn { role: m.role.to_owned(), content: m.content.to_owned() };
        let request = Request::Render { turns: messages.iter().map(turn).collect(), add_generation_prompt };
        process.lock().unwrap_or_else(PoisonError::into_inner).ask(&request)
    }
}

#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(program: &PathBuf) -> io::Result<Process> {
        let piped = || Stdio::piped();
        let mut child =
            Command::new(program).arg(RENDERER).stdin(piped()).stdout(piped()).stderr(Stdio::null()).spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(answers)) => Ok(Process { child, requests, answers: BufReader::new(answers) }),
            _ => Err(io::Error::other("it has no pipes")),
        }
    }

    fn ask(&mut self, request: &Request) -> Answer {
        let mut line = serde_json::to_string(request).map_err(|e| format!("cannot be passed to its renderer: {e}"))?;
        line.push('\n');
        let mut answer = String::new();
        // Fails or reads nothing if the process has ended.
        let _ = self.requests.write_all(line.as_bytes()).and_then(|()| self.answers.read_line(&mut answer));
        serde_json::from_str(&answer).unwrap_or_else(|_| {
            Err("takes more than 256 MiB of memory, or nests too deeply; it does not belong to this model".into())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // If it has already ended, this only reaps it.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Runs a renderer process: answers each line of `input` on `output` until the input ends. A request that takes too
/// long is answered with an error and ends the process.
///
/// Errors: no memory for the stack; pipes that break.
pub fn serve(input: impl BufRead + Send, output: impl Write + Send + 'static) -> io::Result<()> {
    let output = Arc::new(Mutex::new(output));
    let begun: Arc<Mutex<Option<Instant>>> = Arc::default();
    let watched = (begun.clone(), output.clone());
    std::thread::Builder::new().spawn(move || end_at_deadline(&watched.0, &watched.1))?;
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().stack_size(STACK);
        let worker = worker.spawn_scoped(scope, || answer_all(input, &output, &begun))?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the renderer panicked")))
    })
}

fn answer_all(input: impl BufRead, output: &Mutex<impl Write>, begun: &Mutex<Option<Instant>>) -> io::Result<()> {
    let mut jinja = None;
    for line in input.lines() {
        let line = line?;
        *lock(begun) = Some(Instant::now());
        let answer = answer(&line, &mut jinja);
        let mut output = lock(output);
        *lock(begun) = None;
        respond(&mut *output, &answer)?;
    }
    // Dropped here on the large stack, as it may nest as deeply as the template.
    drop(jinja);
    Ok(())
}

fn answer(line: &str, jinja: &mut Option<Jinja>) -> Answer {
    match (serde_json::from_str(line).map_err(|e| format!("cannot be passed to its renderer: {e}"))?, &jinja) {
        (Request::Compile { template, tokens, now }, _) => {
            *jinja = Some(Jinja::new(&template, tokens, now)?);
            Ok(String::new())
        }
        (Request::Render { turns, add_generation_prompt }, Some(jinja)) => {
            let messages: Vec<Message> =
                turns.iter().map(|turn| Message { role: &turn.role, content: &turn.content }).collect();
            jinja.render(&messages, add_generation_prompt)
        }
        (Request::Render { .. }, None) => Err("was not given".into()),
    }
}

fn respond(output: &mut impl Write, answer: &Answer) -> io::Result<()> {
    serde_json::to_writer(&mut *output, answer)?;
    output.write_all(b"\n")?;
    output.flush()
}

fn end_at_deadline(begun: &Mutex<Option<Instant>>, output: &Mutex<impl Write>) {
    loop {
        std::thread::sleep(DEADLINE / 50);
        let late = || lock(begun).is_some_and(|begun| begun.elapsed() > DEADLINE);
        if late() {
            // The lock keeps this from interleaving with an answer being written.
            let mut output = lock(output);
            if late() {
                let seconds = DEADLINE.as_secs();
                let _ = respond(
                    &mut *output,
                    &Err(format!("runs longer than {seconds} s; it does not belong to this model")),
                );
                std::process::abort();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_answered_in_order() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                lock(&self.0).write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let compile = |template: &str| Request::Compile { template: template.into(), tokens: BTreeMap::new(), now: 0 };
        let render = |text: &str| Request::Render {
            turns: vec![Turn { role: "user".into(), content: text.into() }],
            add_generation_prompt: true,
        };
        let requests =
            [render("a"), compile("{% if %}"), compile("<{{ messages[0].content }}>"), render("a\nb"), render("c")];
        let input: Vec<String> = requests.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        let output = Shared::default();
        serve(input.join("\n").as_bytes(), output.clone()).unwrap();
        let text = String::from_utf8(lock(&output.0).clone()).unwrap();
        let answers: Vec<Answer> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(answers[0].as_ref().unwrap_err().contains("was not given"));
        assert!(answers[1].as_ref().unwrap_err().contains("is not understood"));
        assert_eq!(answers[2..], [Ok(String::new()), Ok("<a\nb>".into()), Ok("<c>".into())]);
    }
}

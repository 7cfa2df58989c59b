//! Where chat templates are rendered: in a process of their own, as a template of a few bytes can build values of any size
//! and nest as deeply as it is long. There the stack is large, the memory limited, and a request has a deadline; whatever
//! a template does, the worst is an error.
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

/// The only argument of a renderer's process.
pub const RENDERER: &str = "render-chat-template";

/// Address space for the stack of a renderer, of which pages that are not used cost nothing. A template of 256 KiB nests
/// that deeply, with up to 2 KiB of stack a level.
const STACK: usize = 1 << 30;

/// What a request may take; published templates need microseconds.
const DEADLINE: Duration = Duration::from_secs(10);

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// From now on templates are rendered by `program`, which calls [`serve`] when its only argument is [`RENDERER`].
///
/// Without this call they are rendered in this process, on the caller's stack and without a limit of memory: right for
/// templates that are trusted.
pub fn render_apart(program: PathBuf) {
    // Said twice, the first program stays.
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
    /// Errors: a template that is not understood; a process that cannot be started.
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
        let mut line = serde_json::to_string(request).map_err(|e| format!("cannot be asked for: {e}"))?;
        line.push('\n');
        let mut answer = String::new();
        // A process that has ended takes no request and gives no answer.
        let _ = self.requests.write_all(line.as_bytes()).and_then(|()| self.answers.read_line(&mut answer));
        serde_json::from_str(&answer).unwrap_or_else(|_| {
            Err("takes more than 256 MiB of memory, or nests too deeply; it is not one for this model".into())
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is only reaped.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The part of a renderer's process: answers each line of `input` on `output` until the input ends. A request that takes
/// too long is answered with an error and ends the process.
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
    // What is dropped may nest as deeply as what was parsed: this is still the large stack.
    drop(jinja);
    Ok(())
}

fn answer(line: &str, jinja: &mut Option<Jinja>) -> Answer {
    match (serde_json::from_str(line).map_err(|e| format!("cannot be asked for: {e}"))?, &jinja) {
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
            // Nothing is written beside an answer that is under way.
            let mut output = lock(output);
            if late() {
                let seconds = DEADLINE.as_secs();
                let _ =
                    respond(&mut *output, &Err(format!("runs longer than {seconds} s; it is not one for this model")));
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

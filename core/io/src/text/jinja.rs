//! Jinja for chat templates: rendered as in transformers, with limited fuel and bounded output.
//!
//! The engine has no hooks to limit the memory of one instruction or the depth of nesting, so the process that renders
//! untrusted templates is limited instead ([`super::renderer`]).

use super::Message;
use chrono::{DateTime, Local};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, State, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// The most instructions of a rendering; the longest published templates need some hundreds per turn.
const FUEL: u64 = 50_000;
const TURNS: usize = 16;
/// The deepest nesting of macros and blocks.
const RECURSION: usize = 64;
/// Size limit of a template in bytes; the longest published ones have about 20,000.
const LARGEST: usize = 1 << 18;
/// The deepest nesting of lists in a printed value.
const DEPTH: usize = 64;
/// The most spaces per level of JSON.
const INDENT: usize = 64;
/// Size limit of a rendered conversation in bytes, well above the longest line of data.
const LONGEST: usize = 1 << 24;
const NAME: &str = "chat_template";

/// A parsed template.
#[derive(Debug)]
pub struct Jinja {
    environment: Environment<'static>,
    /// `bos_token` and other special tokens.
    tokens: BTreeMap<String, String>,
}

impl Jinja {
    /// `now` is the time for `strftime_now`, in seconds since 1970.
    ///
    /// Errors: a template that is too long or cannot be parsed.
    pub fn new(template: &str, tokens: BTreeMap<String, String>, now: i64) -> Result<Jinja, String> {
        if template.len() > LARGEST {
            return Err(format!("has {} bytes, more than {LARGEST}", template.len()));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(python_method);
        environment.set_formatter(|out, _, value| Ok(python(out, value, false, 0)?));
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", |value: Value| text(&value));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        let template = without_continued_lines(&without_generation_marks(template));
        environment.add_template_owned(NAME, template).map_err(|e| format!("is not understood: {e}"))?;
        Ok(Jinja { environment, tokens })
    }

    /// Renders the conversation; with `add_generation_prompt`, as the model expects it before its answer.
    ///
    /// Errors: anything the template refuses; a template that runs too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let tokens = Value::from_serialize(&self.tokens);
        let input = context! {
            messages => messages, add_generation_prompt => add_generation_prompt, tools => (), documents => (), ..tokens
        };
        let mut text = Bounded(Vec::new());
        let mut environment = Cow::Borrowed(&self.environment);
        if messages.len() > TURNS {
            environment.to_mut().set_fuel(Some(FUEL * messages.len().div_ceil(TURNS) as u64));
        }
        let template = environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render_captured_to(input, &mut text).map(drop));
        rendered.map_err(|e| {
            let line = e.line().map(|line| format!(" in line {line}")).unwrap_or_default();
            let what = match (e.kind(), e.detail()) {
                (ErrorKind::WriteFailure, _) => {
                    format!("writes more than {LONGEST} bytes or {DEPTH} levels; it does not belong to this model")
                }
                (ErrorKind::OutOfFuel, _) => "runs too long; it does not belong to this model".to_owned(),
                (_, Some(detail)) => detail.to_owned(),
                _ => e.to_string(),
            };
            format!("fails{line}: {what}")
        })?;
        String::from_utf8(text.0).map_err(|e| format!("writes {e}"))
    }
}

/// Output of at most [`LONGEST`] bytes.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > LONGEST.saturating_sub(self.0.len()) {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        std::io::Write::write_all(self, text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Removes the tags that mark the assistant's text, which only matter to other trainers; keeps their effect on white
/// space.
fn without_generation_marks(template: &str) -> String {
    if !template.contains("generation") {
        return template.to_owned();
    }
    let mark = |word: &str| regex::Regex::new(&format!(r"\{{%(?<a>[-+]?)\s*{word}\s*(?<b>[-+]?)%\}}"));
    match (mark("generation"), mark("endgeneration")) {
        (Ok(start), Ok(end)) => {
            let template = start.replace_all(template, "{%$a if true $b%}");
            end.replace_all(&template, "{%$a endif $b%}").into_owned()
        }
        _ => template.to_owned(),
    }
}

/// A backslash at the end of a line in a string literal joins the lines, as in Python.
fn without_continued_lines(template: &str) -> String {
    match regex::Regex::new(r"(?s)\{[%{].*?[%}]\}") {
        Ok(tag) => tag.replace_all(template, |tag: &regex::Captures| tag[0].replace("\\\n", "")).into_owned(),
        Err(_) => template.to_owned(),
    }
}

/// Methods of Python's values: those of minijinja-contrib, and some more for strings.
fn python_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let (Some(text), Some(part)) = (value.as_str(), args.first().and_then(Value::as_str)) else {
        return unknown_method_callback(state, value, method, args);
    };
    match (method, args.len()) {
        ("removeprefix", 1) => Ok(text.strip_prefix(part).unwrap_or(text).into()),
        ("removesuffix", 1) => Ok(text.strip_suffix(part).unwrap_or(text).into()),
        ("partition", 1) if !part.is_empty() => {
            let (before, after) = text.split_once(part).unwrap_or((text, ""));
            let found = if before.len() < text.len() { part } else { "" };
            Ok(Value::from_serialize([before, found, after]))
        }
        ("rpartition", 1) if !part.is_empty() => {
            let (before, after) = text.rsplit_once(part).unwrap_or(("", text));
            let found = if after.len() < text.len() { part } else { "" };
            Ok(Value::from_serialize([before, found, after]))
        }
        ("rsplit", 1 | 2) if !part.is_empty() => {
            let most = args.get(1).and_then(|n| usize::try_from(n.clone()).ok()).unwrap_or(usize::MAX - 1);
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), part).collect();
            parts.reverse();
            Ok(Value::from_serialize(parts))
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn raise_exception(message: &str) -> Result<Value, minijinja::Error> {
    Err(invalid(message.to_owned()))
}

fn invalid(message: String) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message)
}

fn strftime(now: i64, format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    let local = DateTime::from_timestamp(now, 0).map(|time| time.with_timezone(&Local));
    match local.map(|local| write!(text, "{}", local.format(format))) {
        Some(Ok(())) => Ok(text),
        _ => Err(invalid(format!("not a date format: {format:?}"))),
    }
}

/// `json.dumps` as in transformers' templates: escapes only what JSON requires.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort: Option<bool> = kwargs.get("sort_keys")?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    if indent.is_some_and(|indent| indent > INDENT) {
        return Err(invalid(format!("tojson: an indent of more than {INDENT}")));
    }
    let mut out = String::new();
    let layout = Layout { indent, sort: sort.unwrap_or(false), ascii: ascii.unwrap_or(false) };
    json(&mut out, value, &layout, 0)?;
    Ok(out)
}

struct Layout {
    indent: Option<usize>,
    sort: bool,
    ascii: bool,
}

fn json(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), minijinja::Error> {
    if depth > DEPTH || out.len() > LONGEST {
        return Err(invalid(format!("tojson: more than {DEPTH} levels, or {LONGEST} bytes")));
    }
    let quoted = |text: &str| json_string(text, layout.ascii);
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = layout.indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent * depth));
        }
    };
    let comma = |out: &mut String, i: usize| match (i, layout.indent) {
        (0, _) => {}
        (_, None) => out.push_str(", "),
        (_, Some(_)) => out.push(','),
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                comma(out, i);
                line(out, depth + 1);
                let _ = write!(out, "{}: ", quoted(&text(key)?));
                json(out, &value.get_item(key)?, layout, depth + 1)?;
            }
            if !keys.is_empty() {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut count = 0;
            for item in value.try_iter()? {
                comma(out, count);
                line(out, depth + 1);
                json(out, &item, layout, depth + 1)?;
                count += 1;
            }
            if count > 0 {
                line(out, depth);
            }
            out.push(']');
        }
        kind => {
            return Err(invalid(format!("{kind} cannot be written as JSON")));
        }
    }
    Ok(())
}

fn json_string(text: &str, ascii: bool) -> String {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    if !ascii {
        return quoted;
    }
    let mut out = String::new();
    for c in quoted.chars() {
        match c {
            c if c.is_ascii() => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

fn text(value: &Value) -> Result<String, minijinja::Error> {
    let mut out = Bounded(Vec::new());
    python(&mut out, value, false, 0)?;
    String::from_utf8(out.0).map_err(|e| invalid(e.to_string()))
}

/// Formats a value like Python's `str`, or `repr`. Errors: more than [`DEPTH`] levels.
fn python(out: &mut dyn Write, value: &Value, repr: bool, depth: usize) -> fmt::Result {
    if depth > DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String if repr => python_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.write_char('{')?;
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                python(out, &key, true, depth + 1)?;
                out.write_str(": ")?;
                python(out, &value.get_item(&key).unwrap_or_default(), true, depth + 1)?;
            }
            out.write_char('}')
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                python(out, &item, true, depth + 1)?;
            }
            out.write_char(']')
        }
        _ => write!(out, "{value}"),
    }
}

fn python_string(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if c != ' ' && (c.is_control() || c.is_whitespace()) && (c as u32) < 0x100 => {
                write!(out, "\\x{:02x}", c as u32)?
            }
            c if c != ' ' && c.is_whitespace() => write!(out, "\\u{:04x}", c as u32)?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

#[cfg(test)]
mod tests {
    use super::super::chat_template::template_of;
    use super::super::special::SpecialTokens;
    use super::*;
    use serde::Deserialize;

    /// Rendered by transformers: see testdata/make_chat_cases.py.
    #[derive(Deserialize)]
    struct Case {
        name: String,
        template: Option<String>,
        messages: Vec<BTreeMap<String, String>>,
        tokens: BTreeMap<String, String>,
        expected: Option<String>,
        error: Option<String>,
    }

    fn cases() -> Vec<Case> {
        serde_json::from_str(include_str!("testdata/chat_cases.json")).unwrap()
    }

    fn new(template: &str) -> Jinja {
        Jinja::new(template, BTreeMap::new(), 0).unwrap()
    }

    /// The difference from the expected result, if any.
    fn check(case: &Case, template: &Jinja) -> Option<String> {
        let message = |m: &'_ BTreeMap<String, String>| (m["role"].clone(), m["content"].clone());
        let owned: Vec<_> = case.messages.iter().map(message).collect();
        let messages: Vec<_> = owned.iter().map(|(role, content)| Message { role, content }).collect();
        match (template.render(&messages, true), &case.expected, &case.error) {
            (Ok(text), Some(expected), _) if text == *expected => None,
            (Err(e), None, Some(error)) if e.to_string().contains(error) => None,
            (got, expected, error) => {
                Some(format!("{}:\n  got      {got:?}\n  expected {expected:?} {error:?}", case.name))
            }
        }
    }

    #[test]
    fn a_long_conversation_has_fuel_for_each_turn() {
        let template = "{% for m in messages %}{% for i in range(200) %}{{ m.content }}{% endfor %}{% endfor %}";
        let messages = [Message { role: "user", content: "a" }; 100];
        assert_eq!(new(template).render(&messages, false).unwrap().len(), 20_000);
    }

    #[test]
    fn published_templates_are_rendered_as_by_transformers() {
        let (mut checked, mut wrong) = (0, Vec::new());
        for case in cases() {
            let Some(template) = &case.template else { continue };
            checked += 1;
            match Jinja::new(template, case.tokens.clone(), 0) {
                Ok(template) => wrong.extend(check(&case, &template)),
                Err(error) => wrong.push(format!("{}: {error}", case.name)),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(checked, 103);
    }

    #[test]
    fn templates_of_real_tokenizers_are_rendered_as_by_transformers() {
        let Some(root) = sparta_test_data::find("data/tokenizers") else { return };
        for case in cases().iter().filter(|case| case.template.is_none()) {
            let dir = root.join(&case.name);
            let tokens = SpecialTokens::open(&dir).unwrap().named;
            for (key, token) in &case.tokens {
                assert_eq!(tokens.get(key), Some(token), "{}", case.name);
            }
            let template = template_of(&dir).unwrap().unwrap().1;
            assert_eq!(check(case, &Jinja::new(&template, tokens, 0).unwrap()), None);
        }
    }

    #[test]
    fn untrusted_templates_are_limited() {
        let error = |template: &str| {
            let text = new(template).render(&[], true).unwrap_err();
            assert!(text.starts_with("fails"), "{text}");
            text
        };
        let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        assert!(error(endless).contains("runs too long"));
        error("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}");
        error("{% include '/etc/passwd' %}");
        error("{{ 'a' * 1000000000000 }}");
        assert!(error("x\n{{ raise_exception('no ' + 'system') }}").contains("in line 2: no system"));
        error("{{ messages.__class__.__mro__ }}");
        error("{{ strftime_now('%Q') }}");
        error("{{ messages | tojson(indent=1000000000000) }}");
        let nested = |end: &str| {
            let deeper = "{% set n.l = [n.l] %}";
            format!("{{% set n = namespace(l=[]) %}}{{% for i in range(5000) %}}{deeper}{{% endfor %}}{end}")
        };
        assert_eq!(new(&nested("")).render(&[], true).unwrap(), "");
        for end in ["{{ n.l }}", "{{ n.l | tojson }}", "{{ n.l | string }}", "{{ n.l | tojson(indent=2) }}"] {
            error(&nested(end));
        }
    }

    #[test]
    fn the_date_is_the_one_given() {
        let template = Jinja::new("{{ strftime_now('%d %b %Y') }}", BTreeMap::new(), 1_700_000_000).unwrap();
        // 14 or 15 November 2023, by the time zone.
        assert!(template.render(&[], true).unwrap().ends_with(" Nov 2023"));
    }
}

//! TensorBoard's event files: its record format, with the few fields of `Event` that scalars, text and hyper-parameters
//! need.
//!
//! A record is the length, 8 bytes, its masked CRC-32C, the message, and the message's masked CRC-32C, all
//! little-endian (tensorflow/core/lib/io/record_writer.h); the messages are protocol buffers
//! (tensorboard/compat/proto/event.proto).

use serde_json::{Map, Value};
use sparta_core::job::{EvalReport, StepReport};
use sparta_core::report::LogLine;
use sparta_core::{Error, Result, files};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file `events.out.tfevents.*` in a run's directory, made from the lines of its `metrics.jsonl`. Each event is on disk
/// when the call returns.
pub struct EventFile {
    path: PathBuf,
    file: File,
    metrics: PathBuf,
    /// Bytes of the metrics that have been read.
    read: u64,
    /// Whether it holds nothing but the version.
    fresh: bool,
}

impl EventFile {
    /// Creates the file for all metrics of a run.
    ///
    /// Errors: a directory without `config.json`; a file that cannot be written.
    pub fn create(directory: &Path) -> Result<EventFile> {
        let name = format!("events.out.tfevents.{:.0}.sparta.{}", now().floor(), std::process::id());
        let path = directory.join(name);
        let file = File::create(&path).map_err(Error::io(&path))?;
        let metrics = directory.join("metrics.jsonl");
        let mut events = EventFile { path, file, metrics, read: 0, fresh: true };
        events.write(&event(now(), 0, |event| bytes_field(event, 3, b"brain.Event:2")))?;
        events.describe(directory)?;
        Ok(events)
    }

    /// Creates the file for the last line of the metrics and those to come: earlier ones were logged before the run was
    /// resumed, and are in another file.
    ///
    /// Errors: those of [`EventFile::create`]; metrics that cannot be read.
    pub fn continued(directory: &Path) -> Result<EventFile> {
        let mut events = EventFile::create(directory)?;
        let text = files::read_text(&events.metrics, files::LOG).map_err(Error::io(&events.metrics))?;
        let lines = text.trim_end_matches('\n');
        events.read = lines.rfind('\n').map_or(0, |at| at as u64 + 1);
        Ok(events)
    }

    /// Writes the metrics that were logged since the last call.
    ///
    /// Errors: a file that cannot be read or written; a line that no run has logged.
    pub fn follow(&mut self) -> Result<()> {
        let mut text = String::new();
        let mut metrics = File::open(&self.metrics).map_err(Error::io(&self.metrics))?;
        let read = metrics.seek(SeekFrom::Start(self.read)).and_then(|_| metrics.read_to_string(&mut text));
        read.map_err(Error::io(&self.metrics))?;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            self.read += line.len() as u64;
            let line: LogLine = serde_json::from_str(line)
                .map_err(|e| Error::Usage(format!("{}: {e} in {}", self.metrics.display(), line.trim_end())))?;
            match line {
                LogLine::Step(report) => self.step(&report)?,
                LogLine::Eval(report) => self.eval(&report)?,
                LogLine::Other => {}
            }
        }
        Ok(())
    }

    /// Writes the speed, which is not among the metrics.
    pub fn speed(&mut self, report: &StepReport) -> Result<()> {
        self.scalars(report.step, report.step, &[("train/tokens_per_second", report.tokens_per_second)])
    }

    /// Writes the run's configuration, as hyper-parameters and as a readable table.
    fn describe(&mut self, directory: &Path) -> Result<()> {
        let path = directory.join("config.json");
        let text = files::read_text(&path, files::CONFIGURATION).map_err(Error::io(&path))?;
        let config: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::Usage(format!("{}: not a configuration: {e}", path.display())))?;
        let options = config.iter().flat_map(|(name, value)| match value {
            Value::Object(of_method) => of_method.clone().into_iter().collect(),
            value => vec![(name.clone(), value.clone())],
        });
        let options: Vec<(String, Value)> =
            options.filter(|(_, value)| !value.is_null() && !value.is_array()).collect();
        let row = |(name, value): &(String, Value)| format!("| {name} | {} |\n", plain(value).replace('|', "\\|"));
        let table = format!("| option | value |\n|---|---|\n{}", options.iter().map(row).collect::<String>());
        self.summary(0, &tensor("configuration", "text", &[], table.as_bytes()))?;
        self.summary(0, &tensor("_hparams_/session_start_info", "hparams", &hyper_parameters(&options), b""))
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        let scalars = [("train/loss", report.loss), ("train/lr", report.lr), ("train/grad_norm", report.grad_norm)];
        self.scalars(report.step, report.step, &scalars)
    }

    fn eval(&mut self, report: &EvalReport) -> Result<()> {
        let scores = report.metrics.scores.iter().map(|(name, value)| (format!("{}/{name}", report.split), *value));
        let scores: Vec<(String, f64)> =
            scores.chain([(format!("{}/loss", report.split), report.metrics.loss)]).collect();
        let scalars: Vec<(&str, f64)> = scores.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        // The step before is in the earlier file, along with its evaluation, if any.
        self.scalars(report.step, report.step + 1, &scalars)
    }

    /// Writes scalars. After a resume, readers drop everything from step `start` on in earlier files.
    fn scalars(&mut self, step: usize, start: usize, scalars: &[(&str, f64)]) -> Result<()> {
        if std::mem::take(&mut self.fresh) {
            self.write(&event(now(), start, |event| bytes_field(event, 7, &session_start())))?;
        }
        self.summary(step, &summary(scalars))
    }

    fn summary(&mut self, step: usize, summary: &[u8]) -> Result<()> {
        self.write(&event(now(), step, |event| bytes_field(event, 5, summary)))
    }

    fn write(&mut self, message: &[u8]) -> Result<()> {
        self.file.write_all(&record(message)).map_err(Error::io(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat()
}

/// A CRC of data that contains CRCs is weak, so TensorBoard stores them rotated and offset.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// `Event { wall_time = 1, step = 2, .. }`.
fn event(wall_time: f64, step: usize, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = vec![(1 << 3) | 1];
    message.extend(wall_time.to_le_bytes());
    message.push(2 << 3);
    varint(&mut message, step as u64);
    what(&mut message);
    message
}

/// `SessionLog { status = 1: START }`.
fn session_start() -> Vec<u8> {
    vec![1 << 3, 1]
}

/// `Summary { value = 1: [Value { tag = 1, simple_value = 2 }] }`.
fn summary(scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut message = Vec::new();
        bytes_field(&mut message, 1, tag.as_bytes());
        message.push((2 << 3) | 5);
        message.extend((*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &message);
    }
    summary
}

/// `Summary { value = 1: [Value { tag = 1, tensor = 8, metadata = 9 }] }` for a TensorBoard plugin, with its own data:
/// `TensorProto { dtype = 1: STRING, tensor_shape = 2, string_val = 8 }`,
/// `SummaryMetadata { plugin_data = 1: { plugin_name = 1, content = 2 } }`.
fn tensor(tag: &str, plugin: &str, content: &[u8], text: &[u8]) -> Vec<u8> {
    let (mut plugin_data, mut metadata, mut tensor, mut value) = (vec![], vec![], vec![], vec![]);
    bytes_field(&mut plugin_data, 1, plugin.as_bytes());
    bytes_field(&mut plugin_data, 2, content);
    bytes_field(&mut metadata, 1, &plugin_data);
    tensor.extend([1 << 3, 7]);
    bytes_field(&mut tensor, 2, &[]);
    bytes_field(&mut tensor, 8, text);
    bytes_field(&mut value, 1, tag.as_bytes());
    bytes_field(&mut value, 8, &tensor);
    bytes_field(&mut value, 9, &metadata);
    let mut summary = Vec::new();
    bytes_field(&mut summary, 1, &value);
    summary
}

/// `HParamsPluginData { session_start_info = 3: { hparams = 1: map<string, google.protobuf.Value> } }`.
fn hyper_parameters(options: &[(String, Value)]) -> Vec<u8> {
    let mut session = Vec::new();
    for (name, value) in options {
        let (mut entry, mut message) = (vec![], vec![]);
        match value {
            Value::Number(number) => {
                message.push((2 << 3) | 1);
                message.extend(number.as_f64().unwrap_or(f64::NAN).to_le_bytes());
            }
            Value::Bool(on) => message.extend([4 << 3, u8::from(*on)]),
            other => bytes_field(&mut message, 3, plain(other).as_bytes()),
        }
        bytes_field(&mut entry, 1, name.as_bytes());
        bytes_field(&mut entry, 2, &message);
        bytes_field(&mut session, 1, &entry);
    }
    let mut data = Vec::new();
    bytes_field(&mut data, 3, &session);
    data
}

/// The value as text, without quotation marks.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn bytes_field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push((number << 3) | 2);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Made by `tensorboard.summary.writer.record_writer.RecordWriter`, tensorboard 2.
    const REFERENCE: &str = "1800000000000000a37f4b2209000000000000f83f10ac022a0a0a080a0178150000803f5760e791";

    #[test]
    fn records_are_those_of_the_reference() {
        let written = record(&event(1.5, 300, |event| bytes_field(event, 5, &summary(&[("x", 1.0)]))));
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, REFERENCE);
    }

    #[test]
    fn a_resumed_run_adds_a_file_that_starts_at_its_first_step() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), r#"{"lr": 1e-3, "method_options": {"density": 0.5}}"#).unwrap();
        let line = |step| {
            let fields = r#""total_steps": 9, "epoch": 0, "loss": 0.5, "lr": 1e-3, "grad_norm": 1.0, "tokens": 3"#;
            format!("{{\"kind\": \"step\", \"step\": {step}, {fields}}}\n")
        };
        fs::write(directory.path().join("metrics.jsonl"), line(6) + &line(7)).unwrap();
        let mut events = EventFile::continued(directory.path()).unwrap();
        let empty = fs::metadata(&events.path).unwrap().len();
        events.follow().unwrap();
        let written = fs::read(&events.path).unwrap();
        // Length and checksum, time, step 7, session log with status START.
        let start = &written[empty as usize + 12..][9..];
        assert_eq!(start[..6], [0x10, 7, 0x3a, 2, 0x08, 1]);
    }
}

//! `sparta-cli adapter merge`, `export`, `info` and `diff`.

use crate::args::{DeviceArgs, SavedType};
use crate::output::{self, Output, bytes, table};
use crate::{devices, hub};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use sparta_core::adapter::{
    self, AppliedAdapter, Difference, ExportFormat, Info, LayerDifference, MergeDtype, MergeRequest,
};
use sparta_core::job::thousands;
use sparta_core::plugin::PluginSet;
use sparta_core::train::Session;
use sparta_core::{Error, Result};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum AdapterCommand {
    /// Merge the adapter into the base model, write the full model, and verify that both agree
    Merge(MergeArgs),
    /// Write the adapter in another format
    Export(ExportArgs),
    /// Describe an adapter: method, base model, norms per layer
    Info(InfoArgs),
    /// Compare two adapters of one base model: shared weights, norms, angle
    Diff(DiffArgs),
}

impl AdapterCommand {
    /// The adapters that the command reads.
    pub fn adapters(&self) -> Vec<&Path> {
        match self {
            AdapterCommand::Merge(args) => vec![&args.adapter],
            AdapterCommand::Export(args) => vec![&args.adapter],
            AdapterCommand::Info(args) => vec![&args.adapter],
            AdapterCommand::Diff(args) => vec![&args.a, &args.b],
        }
    }
}

#[derive(Args)]
pub struct MergeArgs {
    /// Run directory, or an adapter of any format
    #[arg(value_name = "RUN")]
    adapter: PathBuf,
    /// New directory for the model, in the Hugging Face layout; or a GGUF file, whose name ends with .gguf
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights: keep is the base model's own, as floats if it is quantized; for GGUF files also q8_0,
    /// and own, the base model's own blocks
    #[arg(long, value_name = "TYPE", default_value = "keep")]
    dtype: DtypeArg,
    /// Largest weight file, for example 500MB or 2GiB
    #[arg(long, value_name = "SIZE", default_value = "2GB", value_parser = size)]
    pub shard_size: u64,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    Keep,
    F32,
    Bf16,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    Own,
}

impl From<DtypeArg> for MergeDtype {
    fn from(dtype: DtypeArg) -> MergeDtype {
        match dtype {
            DtypeArg::Keep => MergeDtype::Keep,
            DtypeArg::F32 => MergeDtype::To(SavedType::F32.into()),
            DtypeArg::Bf16 => MergeDtype::To(SavedType::Bf16.into()),
            DtypeArg::F16 => MergeDtype::To(SavedType::F16.into()),
            DtypeArg::Q8_0 => MergeDtype::Q8_0,
            DtypeArg::Own => MergeDtype::Own,
        }
    }
}

#[derive(Args)]
pub struct ExportArgs {
    /// Run directory, or an adapter of any format
    #[arg(value_name = "RUN")]
    adapter: PathBuf,
    /// peft: a PEFT directory (LoRA, or Super-Tuning for single elements); sparse-deltas: sparse_deltas.safetensors
    /// with indices; patch: the new bf16 values where they differ, for TRL and vLLM; gguf: a LoRA file for llama.cpp;
    /// with-indices: our own format with the indices stored, which are otherwise drawn from the seed
    #[arg(long, value_name = "NAME")]
    format: FormatArg,
    /// New directory for the adapter; with gguf, the new file
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print one JSON object as the last line on stdout, and everything else on stderr
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    Peft,
    SparseDeltas,
    Patch,
    Gguf,
    WithIndices,
}

#[derive(Args)]
pub struct InfoArgs {
    /// Run directory, or an adapter of any format
    #[arg(value_name = "RUN")]
    adapter: PathBuf,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Args)]
pub struct DiffArgs {
    /// Run directory, or an adapter of any format
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another adapter of the same base model
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(command: AdapterCommand, plugins: &PluginSet) -> Result<()> {
    match command {
        AdapterCommand::Merge(args) => merge(args, plugins),
        AdapterCommand::Export(args) => export(args, plugins),
        AdapterCommand::Info(args) => info(args, plugins),
        AdapterCommand::Diff(args) => diff(args, plugins),
    }
}

/// Opens an adapter on its base model, and reports plugins that differ from those it was made with.
fn open(adapter: &Path, model: Option<PathBuf>, plugins: &PluginSet) -> Result<AppliedAdapter> {
    let applied = AppliedAdapter::open(adapter, hub::optional_model(model)?.as_deref(), plugins)?;
    applied.recorded.accepted.iter().for_each(output::warn);
    Ok(applied)
}

fn merge(args: MergeArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let applied = open(&args.adapter, args.model, plugins)?;
    let device = devices::open(&args.device.device, plugins)?;
    let request = MergeRequest { out: args.out, dtype: args.dtype.into(), shard_bytes: args.shard_size };
    let merged = adapter::merge(&applied, &request, device)?;
    output.say(format!("checked    {}", merged.check))?;
    let files = if merged.files == 1 { "1 file".to_owned() } else { format!("{} files", merged.files) };
    output.say(format!("saved      {} ({}, {files})", merged.out.display(), bytes(merged.bytes)))?;
    if let Some(note) = &merged.note {
        output.say(format!("note       {note}"))?;
    }
    output.result(&merged)
}

#[derive(Serialize)]
struct Exported<'a> {
    out: &'a Path,
}

fn export(args: ExportArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.json);
    let format = match args.format {
        FormatArg::Peft => ExportFormat::Peft,
        FormatArg::SparseDeltas => ExportFormat::SparseDeltas,
        FormatArg::Patch => ExportFormat::Patch,
        FormatArg::Gguf => ExportFormat::Gguf,
        FormatArg::WithIndices => ExportFormat::WithIndices,
    };
    let applied = open(&args.adapter, args.model, plugins)?;
    adapter::export(&applied, format, &args.out)?.iter().for_each(output::warn);
    output.say(format!("saved      {}", args.out.display()))?;
    output.result(&Exported { out: &args.out })
}

/// The adapter on a device, if its changes can only be computed there.
fn session(applied: &AppliedAdapter, device: &str, plugins: &PluginSet) -> Result<Option<Session>> {
    if !adapter::needs_device(applied) {
        return Ok(None);
    }
    Ok(Some(applied.session(devices::open(device, plugins)?, 1, 1)?))
}

fn info(args: InfoArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let applied = open(&args.adapter, args.model, plugins)?;
    let info = adapter::info(&applied, session(&applied, &args.device.device, plugins)?)?;
    output.say(describe(&info))?;
    output.result(&info)
}

fn describe(info: &Info) -> String {
    let options: Vec<String> = info.options.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let heads: Vec<String> =
        info.heads.iter().map(|(name, labels)| format!("{name} ({})", labels.join(", "))).collect();
    let base = info.base.as_deref().map(|hash| format!(", fingerprint {:.16}", hash)).unwrap_or_default();
    let mut lines = vec![
        format!("adapter    {} (format {})", info.adapter.display(), info.format),
        format!("method     {} {}  {}", info.method, info.method_version, options.join("  ")).trim_end().to_owned(),
        format!("base       {}{base}", info.model.display()),
        format!("heads      {}", heads.join("; ")),
        format!(
            "trained    {} ({:.4} % of the model) + {} in the head",
            thousands(info.trained_in_body),
            100.0 * info.density,
            thousands(info.trained_in_head)
        ),
        format!(
            "visible    {:.1} % of the changed weights differ from the base model as stored, {:.1} % in bf16",
            100.0 * info.differs_as_stored,
            100.0 * info.differs_in_bf16
        ),
    ];
    let row = |l: &adapter::LayerInfo| vec![l.layer.clone(), thousands(l.changed), format!("{:.4e}", l.norm)];
    let rows: Vec<Vec<String>> = info.layers.iter().map(row).collect();
    if !rows.is_empty() {
        lines.push(format!("\n{}", table(&["LAYER", "CHANGED", "NORM"], &rows)));
    }
    lines.join("\n")
}

fn diff(args: DiffArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let open = |path: &Path| -> Result<(AppliedAdapter, Option<Session>)> {
        let applied = self::open(path, args.model.clone(), plugins)?;
        let session = session(&applied, &args.device.device, plugins)?;
        Ok((applied, session))
    };
    let ((a, session_a), (b, session_b)) = (open(&args.a)?, open(&args.b)?);
    let difference = adapter::difference((&a, session_a), (&b, session_b))?;
    output.say(compare(&difference))?;
    output.result(&difference)
}

fn compare(difference: &Difference) -> String {
    let row = |d: &LayerDifference| {
        let cosine = d.cosine.map_or("-".into(), |c| format!("{c:.4}"));
        let counts = [d.changed_a, d.changed_b, d.both].map(thousands);
        let norms = [d.norm_a, d.norm_b, d.norm_difference].map(|x| format!("{x:.4e}"));
        [vec![d.layer.clone()], counts.to_vec(), norms.to_vec(), vec![cosine]].concat()
    };
    let rows: Vec<Vec<String>> = difference.layers.iter().chain([&difference.total]).map(row).collect();
    let header = ["LAYER", "CHANGED A", "CHANGED B", "BOTH", "NORM A", "NORM B", "NORM A - B", "COSINE"];
    format!("A {}\nB {}\n\n{}", difference.a.display(), difference.b.display(), table(&header, &rows))
}

/// Bytes: `2GB` is 2e9, `2GiB` 2^31.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        _ => return Err("expected a size such as 500MB or 2GiB".into()),
    };
    let bytes = number.parse::<f64>().map(|n| n * factor).unwrap_or(0.0);
    if bytes >= 1.0 {
        Ok(bytes as u64)
    } else {
        Err("expected a size of at least 1 byte, such as 500MB or 2GiB".into())
    }
}

/// The error for an option that the strategy does not use.
pub fn unused(option: &str, strategy: &str) -> Error {
    Error::Usage(format!("{option} has no effect on the strategy {strategy}; leave it out"))
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(["2GB", "1.5 kb", "1GiB", "17"].map(|text| size(text).unwrap()), [2_000_000_000, 1500, 1 << 30, 17]);
        for bad in ["", "GB", "2 parsecs", "-1GB", "0"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}

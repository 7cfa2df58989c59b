//! `sparta-cli report`.

use crate::output::Output;
use crate::tensorboard::EventFile;
use clap::Args;
use serde::Serialize;
use sparta_core::{Result, report};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ReportArgs {
    /// Run directories; several are compared
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// File to write [default: report.html, in the directory of a single run, else in the current directory]
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Also write TensorBoard event files into the run directories
    #[arg(long)]
    tensorboard: bool,
    /// Print one JSON object as the last line on stdout, and everything else on stderr
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Written<'a> {
    runs: &'a [PathBuf],
    out: &'a Path,
}

pub fn report(args: ReportArgs) -> Result<()> {
    let output = Output::new(args.json);
    let default = || match &args.runs[..] {
        [run] => run.join(report::FILE),
        _ => PathBuf::from(report::FILE),
    };
    let out = args.out.clone().unwrap_or_else(default);
    report::write(&args.runs, &out)?;
    output.say(format!("report     {}", out.display()))?;
    for run in args.runs.iter().filter(|_| args.tensorboard) {
        EventFile::create(run)?.follow()?;
        output.say(format!("events     {}", run.display()))?;
    }
    output.result(&Written { runs: &args.runs, out: &out })
}

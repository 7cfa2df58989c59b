//! `sparta-cli rank`.

use crate::hub;
use crate::output::Output;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use sparta_core::analysis::rank::{self, Precision, RankReport};
use sparta_core::weights::Weights;
use sparta_core::{Error, Result};
use std::path::PathBuf;

#[derive(Args)]
pub struct RankArgs {
    /// Model before training: a directory or ORG/NAME
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// Model after training: a directory or ORG/NAME of the whole model, not an adapter
    #[arg(value_name = "TUNED")]
    tuned: PathBuf,
    /// eps of this type: singular values up to sigma_max * max(rows, columns) * eps count as zero
    #[arg(long, value_name = "NAME", default_value = "f32")]
    precision: PrecisionArg,
    /// Plot the singular values of every matrix
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print one JSON object as the last line on stdout, and everything else on stderr
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// 2^-23, as in numpy, torch and the paper's tables
    F32,
    /// That of the stored type: f32 2^-23, f16 2^-10, bf16 2^-7, which gives every bf16 matrix with a side of 128 or
    /// more rank 0
    Stored,
}

pub fn rank(args: RankArgs) -> Result<()> {
    let output = Output::new(args.json);
    let open = |model| Weights::open(hub::model(model, None)?);
    let (base, tuned) = (open(args.base)?, open(args.tuned)?);
    let precision = match args.precision {
        PrecisionArg::F32 => Precision::F32,
        PrecisionArg::Stored => Precision::Stored,
    };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} {eta} left");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or(ProgressStyle::default_bar()));
    let report: RankReport = rank::ranks(&base, &tuned, precision, |done, total, name| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(name.to_owned());
    })?;
    bar.finish_and_clear();
    output.say(&report)?;
    if let Some(path) = &args.plot {
        std::fs::write(path, report.plot()?).map_err(Error::io(path))?;
        output.say(format!("plot       {}", path.display()))?;
    }
    output.result(&report)
}

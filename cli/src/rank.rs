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
    /// Model directory or ORG/NAME before the training
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// Model directory or ORG/NAME after it: the whole model, not an adapter
    #[arg(value_name = "TUNED")]
    tuned: PathBuf,
    /// Singular values up to sigma_max * max(rows, columns) * eps count as zero; whose eps
    #[arg(long, value_name = "NAME", default_value = "f32")]
    precision: PrecisionArg,
    /// Draw the singular values of every matrix
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print one JSON object as the last line on stdout, and text for people on stderr
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// 2^-23: numpy and torch compute ranks in f32 at least, and so are the paper's tables
    F32,
    /// That of the type in which the weights are stored: f32 2^-23, f16 2^-10, bf16 2^-7, with which every bf16 matrix of
    /// a side of 128 or more has rank 0
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

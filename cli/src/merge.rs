//! `sparta-cli merge-adapters`.

use crate::adapter::{size, unused};
use crate::args::DeviceArgs;
use crate::output::{self, Output, bytes, table};
use crate::{devices, infer};
use clap::{Args, ValueEnum};
use serde::Serialize;
use sparta_core::adapter::{self, Combination, CombineRequest, Conflict, Strategy};
use sparta_core::job::config::at_least;
use sparta_core::job::thousands;
use sparta_core::plugin::PluginSet;
use sparta_core::run::EvalRequest;
use sparta_core::weights::Weights;
use sparta_core::{Error, Result, decoder};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct MergeAdaptersArgs {
    /// Run directories or adapters of any format, of one base model; for soup also full classifiers
    #[arg(value_name = "RUN", num_args = 2.., required = true)]
    adapters: Vec<PathBuf>,
    /// New directory for the result
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How changes of the same weight are combined
    #[arg(long, value_name = "NAME", default_value = "sum")]
    strategy: StrategyArg,
    /// Weight of each adapter, separated by commas [default: 1 each]
    #[arg(long, value_name = "X,Y,...", value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f64>,
    /// ties: share of each adapter's changes to keep, largest first [default: 0.2]
    #[arg(long, value_name = "X")]
    keep: Option<f64>,
    /// dare: probability with which a change is dropped [default: 0.5]
    #[arg(long, value_name = "P")]
    drop: Option<f64>,
    /// dare: seed of the draw [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// fisher: dev examples of each adapter's own data [default: 64]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    examples: Option<usize>,
    /// soup of full models: size limit of a weight file [default: 2GB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shard_size: Option<u64>,
    /// Base model [default: the one trained on]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StrategyArg {
    /// Sum of the changes
    Sum,
    /// Weighted sum of the changes
    Weighted,
    /// Trim, elect sign, merge (Yadav et al. 2023)
    Ties,
    /// Drop and rescale, then sum (Yu et al. 2024)
    Dare,
    /// Mean of the models (Wortsman et al. 2022)
    Soup,
    /// Mean weighted by the Fisher information (Matena and Raffel 2022)
    Fisher,
}

impl MergeAdaptersArgs {
    pub fn adapters(&self) -> Vec<&Path> {
        self.adapters.iter().map(PathBuf::as_path).collect()
    }

    fn strategy(&self) -> Result<Strategy> {
        let name = self.strategy.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let belongs = |option: &str, given: bool, to: &[StrategyArg]| match given && !to.contains(&self.strategy) {
            true => Err(unused(option, &name)),
            false => Ok(()),
        };
        use StrategyArg::*;
        belongs("--weights", !self.weights.is_empty(), &[Weighted, Ties, Dare, Soup, Fisher])?;
        belongs("--keep", self.keep.is_some(), &[Ties])?;
        belongs("--drop", self.drop.is_some(), &[Dare])?;
        belongs("--seed", self.seed.is_some(), &[Dare])?;
        belongs("--examples", self.examples.is_some(), &[Fisher])?;
        belongs("--shard-size", self.shard_size.is_some(), &[Soup])?;
        let weights = match self.weights.is_empty() {
            true => vec![1.0; self.adapters.len()],
            false => self.weights.clone(),
        };
        let strategy = match self.strategy {
            Sum => Strategy::Sum,
            Weighted if self.weights.is_empty() => {
                return Err(Error::Usage("--strategy weighted needs --weights, one for each adapter".into()));
            }
            Weighted => Strategy::Weighted { weights },
            Ties => Strategy::Ties { weights, keep: self.keep.unwrap_or(0.2) },
            Dare => Strategy::Dare { weights, drop: self.drop.unwrap_or(0.5), seed: self.seed.unwrap_or(0) },
            Soup => Strategy::Soup { weights },
            Fisher => Strategy::Fisher { weights, examples: self.examples.unwrap_or(64) },
        };
        strategy.check(self.adapters.len())?;
        Ok(strategy)
    }
}

pub fn merge_adapters(args: MergeAdaptersArgs, plugins: &PluginSet) -> Result<()> {
    let output = Output::new(args.device.json);
    let strategy = args.strategy()?;
    let full = args.adapters.iter().filter(|path| decoder::is_model(path) && has_weights(path)).count();
    if full > 0 {
        return average(&args, &strategy, full, output);
    }
    if args.shard_size.is_some() {
        return Err(Error::Usage("--shard-size is for full models; combined adapters are one file".into()));
    }
    let mut opened = Vec::new();
    let mut examples = Vec::new();
    for path in &args.adapters {
        let adapted = infer::open(path, args.model.clone(), plugins)?;
        if let Strategy::Fisher { examples: count, .. } = &strategy {
            let (split, max_examples) = ("dev".to_owned(), Some(*count));
            let request =
                EvalRequest { split, head: None, task: None, data: None, task_options: BTreeMap::new(), max_examples };
            examples.push(adapted.examples(&request, plugins)?);
        }
        opened.push(adapted.into_applied());
    }
    let request = CombineRequest { adapters: &opened, strategy, out: &args.out, examples };
    let combined = adapter::combine(&request, &|| devices::open(&args.device.device, plugins))?;
    combined.notes.iter().for_each(output::warn);
    output.say(describe(&combined))?;
    output.result(&combined)
}

fn has_weights(dir: &Path) -> bool {
    Weights::find(dir).is_ok_and(|weights| !weights.is_absent())
}

#[derive(Serialize)]
struct Averaged<'a> {
    out: &'a Path,
    models: &'a [PathBuf],
    bytes: u64,
}

fn average(args: &MergeAdaptersArgs, strategy: &Strategy, full: usize, output: Output) -> Result<()> {
    let Strategy::Soup { weights } = strategy else {
        return Err(Error::Usage(
            "full models can only be averaged, with --strategy soup; other strategies need adapters".into(),
        ));
    };
    if full < args.adapters.len() {
        return Err(Error::Usage("some are full models and some adapters; merge the adapters first".into()));
    }
    if args.model.is_some() {
        return Err(Error::Usage("--model is the base model of adapters; full models have none".into()));
    }
    let shard_bytes = args.shard_size.unwrap_or(2_000_000_000);
    let (_, total) = adapter::average_models(&args.adapters, weights, &args.out, shard_bytes)?;
    output.say(format!("saved      {} (mean of {full} models, {})", args.out.display(), bytes(total)))?;
    output.result(&Averaged { out: &args.out, models: &args.adapters, bytes: total })
}

fn describe(combined: &Combination) -> String {
    let row = |c: &Conflict| {
        let share =
            |part: f64, whole: f64| if whole > 0.0 { format!("{:.2} %", 100.0 * part / whole) } else { "-".into() };
        let counts = [c.changed_a, c.changed_b, c.both].map(thousands);
        let names = [&c.a, &c.b].map(|path| path.display().to_string());
        let shares = [
            share(c.both as f64, c.changed_a.min(c.changed_b) as f64),
            share(c.opposite as f64, c.both as f64),
            share(c.norm_a_shared.powi(2), c.norm_a.powi(2)),
            share(c.norm_b_shared.powi(2), c.norm_b.powi(2)),
        ];
        [names.to_vec(), counts.to_vec(), shares.to_vec()].concat()
    };
    let rows: Vec<Vec<String>> = combined.conflicts.iter().map(row).collect();
    let header = ["A", "B", "CHANGED A", "CHANGED B", "BOTH", "OF SMALLER", "OPPOSITE", "SQUARES OF A", "SQUARES OF B"];
    format!(
        "{}\n\nheads      {}\nchanged    {} weights of the body\nsaved      {}",
        table(&header, &rows),
        combined.heads.join(", "),
        thousands(combined.changed),
        combined.out.display()
    )
}

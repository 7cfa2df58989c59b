//! Memory of fine-tuning: the paper's arithmetic (section 5), and the whole plan of a model of which only `config.json`
//! is there.

use crate::data::batch::padded_rows;
use crate::method::Adaptation;
use crate::method::options::{self, Given};
use crate::model::{Decoder, HeadKind};
use crate::plugin::PluginSet;
use crate::run::{self, EVAL_EXAMPLES, TrainablePlan, megabytes, thousands};
use crate::tensors::MemoryKind;
use crate::train::{HeadInit, Limits, Optimizer, Recompute, Setup, Size, layout};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{DType, DeviceInfo};
use sparta_plugin::method::{Options, Role};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Sparsities of the paper's Table 1; 0 stands for full fine-tuning.
const SPARSITIES: [f64; 6] = [0.0, 0.5, 0.8, 0.9, 0.95, 0.99];

/// The paper's count of bits in training with Adam, all values in bf16: parameters, gradients and two moments for full
/// fine-tuning; parameters, and for each trained one delta, gradient, two moments and two 16-bit indices for SpaRTA
/// (equation 1). Activations are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PaperMemory {
    /// P: parameters of the model without a head.
    pub parameters: u64,
    /// k: trained ones among them.
    pub trained: u64,
    /// Bytes of full fine-tuning, 64 P bits.
    pub full: u64,
    /// Bytes of SpaRTA with so many trained parameters, 16 P + 96 k bits.
    pub sparse: u64,
    /// Bytes of the stored adapter, 48 k bits.
    pub adapter: u64,
    /// Table 1 for this P.
    pub table: Vec<PaperRow>,
}

/// One column of the paper's Table 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PaperRow {
    /// 1 - k / P; 0 is full fine-tuning.
    pub sparsity: f64,
    pub bits_per_parameter: f64,
    /// 10^9 bytes, for P parameters.
    pub gigabytes: f64,
}

impl PaperMemory {
    pub fn new(parameters: u64, trained: u64) -> PaperMemory {
        let row = |&sparsity: &f64| {
            let bits_per_parameter = bits(sparsity);
            PaperRow { sparsity, bits_per_parameter, gigabytes: bits_per_parameter * parameters as f64 / 8e9 }
        };
        PaperMemory {
            parameters,
            trained,
            full: 8 * parameters,
            sparse: 2 * parameters + 12 * trained,
            adapter: 6 * trained,
            table: SPARSITIES.iter().map(row).collect(),
        }
    }

    /// Whether SpaRTA could train as many parameters at all: not none of them and not all.
    pub fn is_sparse(&self) -> bool {
        self.trained > 0 && self.trained < self.parameters
    }
}

/// Bits per parameter at a sparsity, 0 meaning full fine-tuning.
fn bits(sparsity: f64) -> f64 {
    if sparsity == 0.0 { 64.0 } else { 16.0 + 96.0 * (1.0 - sparsity) }
}

impl fmt::Display for PaperMemory {
    /// The lines of Table 1: for this model and, as the paper counts, for a whole number of 10^9 parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, title: &str, cells: Vec<String>| {
            let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>7}")).collect();
            write!(f, "\n  {title:<34}{}", cells.join(""))
        };
        let row = |scale: f64, digits: usize| {
            self.table.iter().map(|row| format!("{:.digits$}", row.bits_per_parameter * scale)).collect()
        };
        write!(f, "paper      full fine-tuning 64 P bits, SpaRTA 16 P + 96 k bits (equation 1, Table 1)")?;
        let sparsity = |row: &PaperRow| format!("{} %", (100.0 * row.sparsity).round());
        line(f, "sparsity, 0 % is full fine-tuning", self.table.iter().map(sparsity).collect())?;
        line(f, "bits per parameter", row(1.0, 2))?;
        let parameters = self.parameters as f64;
        line(f, &format!("GB for P = {}", thousands(self.parameters)), row(parameters / 8e9, 1))?;
        let billions = (parameters / 1e9).floor();
        if billions >= 1.0 {
            line(f, &format!("GB for P = {billions:.0}e9, as in Table 1"), row(billions / 8.0, 1))?;
        }
        if self.is_sparse() {
            let [full, sparse, adapter] = [self.full, self.sparse, self.adapter].map(|bytes| bytes as f64 / 1e9);
            let k = thousands(self.trained);
            write!(f, "\n  with k = {k}: {sparse:.2} GB, full fine-tuning {full:.2} GB, adapter {adapter:.3} GB")?;
        }
        Ok(())
    }
}

/// What the memory of a run depends on.
#[derive(Clone, Debug)]
pub struct MemoryRequest {
    /// A model directory, or a `config.json`.
    pub model: PathBuf,
    pub method: String,
    pub method_options: Options,
    pub classes: usize,
    /// Examples per optimizer step.
    pub batch_size: usize,
    pub micro_batch_tokens: usize,
    /// Tokens of the longest example; `None`: a batch fills one micro-batch.
    pub max_length: Option<usize>,
    pub dropout: f64,
    pub recompute: Recompute,
}

/// The memory of a run, from the architecture alone.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    pub model: PathBuf,
    pub family: String,
    /// The type of the weights that `config.json` states, f32 where it is silent.
    pub dtype: DType,
    /// Scalars of the model, the classification head included.
    pub parameters: u64,
    pub method: String,
    pub options: Options,
    /// For sparse methods the expected numbers.
    pub trainable: TrainablePlan,
    /// Tokens of a micro-batch.
    pub rows: usize,
    pub batch_size: usize,
    pub micro_batches: bool,
    pub recompute: bool,
    pub device: DeviceInfo,
    /// Bytes on the device by kind.
    pub memory: BTreeMap<MemoryKind, u64>,
    pub paper: PaperMemory,
}

/// Plans the memory of fine-tuning a model, without its weights, tokenizer or data. Nothing is drawn or allocated: index
/// sets have their expected sizes.
///
/// Errors: an unreadable or unsupported configuration; whatever the method refuses.
pub fn plan(request: &MemoryRequest, plugins: &PluginSet, device: &DeviceInfo) -> Result<MemoryPlan> {
    let decoder = if request.model.is_dir() { Decoder::open(&request.model)? } else { Decoder::read(&request.model)? };
    let method = plugins.method(&request.method)?;
    let given = request.method_options.iter().map(|(name, value)| (name.clone(), Given::Typed(value.clone())));
    let options = options::check(method.info(), &given.collect())?;
    let head = HeadKind::Classification { classes: request.classes };
    let mut parameters = decoder.parameters(head);
    // A new head is trained, and kept in f32.
    parameters.iter_mut().filter(|p| p.role == Role::Head).for_each(|p| p.dtype = DType::F32);
    let adaptation = Adaptation::expected(method.clone(), parameters, options)?;
    let limits = limits(request, &decoder, &adaptation)?;
    let mut setup = Setup {
        head_init: HeadInit::Normal { std: run::default_head_std(decoder.hidden_size) },
        decoder,
        adaptation,
        head,
        optimizer: Optimizer { max_grad_norm: Some(1.0), ..Optimizer::default() },
        dropout: request.dropout as f32,
        recompute: false,
        seed: 0,
        limits,
    };
    let (memory, _) = layout::fit_memory(&mut setup, request.recompute, device)?;
    let trainable = run::trainable(&setup.adaptation);
    let body = run::body_size(&setup.adaptation);
    Ok(MemoryPlan {
        model: request.model.clone(),
        family: setup.decoder.family.model_type().to_owned(),
        dtype: setup.decoder.dtype.unwrap_or(DType::F32),
        parameters: setup.adaptation.parameters.iter().map(|p| p.numel()).sum(),
        method: setup.adaptation.info.name.clone(),
        options: setup.adaptation.options.clone(),
        paper: PaperMemory::new(body, trainable.body),
        trainable,
        rows: setup.limits.train.map_or(0, |size| size.rows),
        batch_size: request.batch_size,
        micro_batches: setup.limits.micro_batches,
        recompute: setup.recompute,
        device: device.clone(),
        memory,
    })
}

fn limits(request: &MemoryRequest, decoder: &Decoder, adaptation: &Adaptation) -> Result<Limits> {
    let &MemoryRequest { batch_size: batch, micro_batch_tokens: budget, dropout, .. } = request;
    if batch == 0 || budget == 0 {
        return Err(Error::Usage("the batch size and the tokens of a micro-batch must be at least 1".into()));
    }
    let longest = request.max_length.unwrap_or(budget).min(decoder.max_position_embeddings).max(1);
    let tokens = request.max_length.map_or(budget, |_| batch.saturating_mul(longest));
    let head_features = adaptation.head_only() && dropout == 0.0;
    Ok(Limits {
        train: Some(Size { rows: padded_rows(tokens.min(budget.max(longest))), examples: batch }),
        micro_batches: tokens > budget && !head_features,
        evaluate: layout::size_of(budget.max(longest), EVAL_EXAMPLES),
        positions: longest,
        head_features,
        batch,
    })
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<String> = self.options.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let (family, parameters) = (&self.family, thousands(self.parameters));
        writeln!(f, "model      {} ({family}, {parameters} parameters, {})", self.model.display(), self.dtype)?;
        writeln!(f, "method     {}  {}", self.method, options.join(", "))?;
        let TrainablePlan { body, head, density, .. } = self.trainable;
        let (body, percent) = (thousands(body), 100.0 * density);
        writeln!(f, "trainable  {body} in the body ({percent:.4} % of the model) + {} in the head", thousands(head))?;
        let split = if self.micro_batches { " and more micro-batches for the rest of them" } else { "" };
        writeln!(f, "batch      {} tokens of {} examples{split}", thousands(self.rows as u64), self.batch_size)?;
        writeln!(f, "device     {} ({})", self.device.name, self.device.id)?;
        let total: u64 = self.memory.values().sum();
        let recompute = if self.recompute { ", layers computed again in the backward pass" } else { "" };
        let per_parameter = |bytes: u64| 8.0 * bytes as f64 / self.parameters as f64;
        let (size, bits) = (megabytes(total), per_parameter(total));
        writeln!(f, "memory     {size} on the device, {bits:.2} bits per parameter{recompute}")?;
        for kind in MemoryKind::ALL {
            let Some(&bytes) = self.memory.get(&kind).filter(|&&bytes| bytes > 0) else { continue };
            writeln!(f, "  {:<24}{:>14}{:>8.2}", kind.title(), megabytes(bytes), per_parameter(bytes))?;
        }
        write!(f, "{}", self.paper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table 1 of the paper, at its whole numbers of parameters, in GB with one digit.
    #[test]
    fn the_papers_table_1() {
        for (parameters, expected) in [
            (2_000_000_000, ["16.0", "16.0", "8.8", "6.4", "5.2", "4.2"]),
            (7_000_000_000, ["56.0", "56.0", "30.8", "22.4", "18.2", "14.8"]),
        ] {
            let table = PaperMemory::new(parameters, 0).table;
            assert_eq!(table.iter().map(|row| format!("{:.1}", row.gigabytes)).collect::<Vec<_>>(), expected);
        }
    }

    /// The savings that section 5 states, and the limit of 50 %.
    #[test]
    fn the_papers_savings() {
        let saved = |sparsity| 1.0 - bits(sparsity) / bits(0.0);
        for (sparsity, expected) in [(0.5, 0.0), (0.8, 0.45), (0.9, 0.6), (0.95, 0.675), (0.99, 0.735)] {
            assert!((saved(sparsity) - expected).abs() < 1e-12, "{sparsity}");
        }
        assert!(saved(0.49) < 0.0 && saved(0.51) > 0.0);
        // More memory on disk than the model: 60, 30, 15 and 3 % (in bytes of 2 P).
        let more = |k: u64| PaperMemory::new(1000, k).adapter as f64 / 2000.0;
        assert_eq!([200, 100, 50, 10].map(more), [0.6, 0.3, 0.15, 0.03]);
    }

    #[test]
    fn the_real_count_and_the_papers_stand_side_by_side() {
        let text = PaperMemory::new(2_506_172_416, 125_308_620).to_string();
        let cells = |start: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
            line.split_whitespace().rev().take(6).map(str::to_owned).collect::<Vec<_>>().into_iter().rev().collect()
        };
        assert_eq!(cells("GB for P = 2e9"), ["16.0", "16.0", "8.8", "6.4", "5.2", "4.2"]);
        assert_eq!(cells("GB for P = 2,506,172,416"), ["20.0", "20.0", "11.0", "8.0", "6.5", "5.3"]);
        assert_eq!(cells("bits per"), ["64.00", "64.00", "35.20", "25.60", "20.80", "16.96"]);
        assert!(text.contains("with k = 125,308,620: 6.52 GB, full fine-tuning 20.05 GB, adapter 0.752 GB"), "{text}");
    }
}

//! The paper's arithmetic of memory (section 5).

use super::thousands;
use serde::{Deserialize, Serialize};
use std::fmt;

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
    /// Bytes of SpaRTA with this many trained parameters, 16 P + 96 k bits.
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

    /// Whether SpaRTA could train this many parameters: more than none, fewer than all.
    pub fn is_sparse(&self) -> bool {
        self.trained > 0 && self.trained < self.parameters
    }
}

/// Bits per parameter at a sparsity, 0 meaning full fine-tuning.
fn bits(sparsity: f64) -> f64 {
    if sparsity == 0.0 { 64.0 } else { 16.0 + 96.0 * (1.0 - sparsity) }
}

impl fmt::Display for PaperMemory {
    /// The lines of Table 1: for this model and, as in the paper, for a whole number of 10^9 parameters.
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

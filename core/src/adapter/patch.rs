//! Sparse patches of a checkpoint, as TRL writes them for vLLM, which applies them in place: for each tensor
//! `<name>.val`, the new bf16 values, and `<name>.idx`, their flat positions as gaps, u16 if all of them fit, else u32.
//! Four bytes for each element that differs from the base model.

use super::Head;
use super::merge::{find, with_deltas};
use crate::method::{Adaptation, TrainMode};
use crate::model::to_f32;
use crate::weights::{Dtype, OutTensor, Weights, save};
use crate::{Error, Result, files};
use half::bf16;
use sparta_plugin::method::Parameter;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

pub const VALUES: &str = "patch.safetensors";

/// The contents of a patch.
pub struct Patch<'a> {
    pub adaptation: &'a Adaptation,
    pub values: &'a BTreeMap<String, Vec<f32>>,
    /// The base model's, for the names of the tensors.
    pub weights: &'a Weights,
    pub head: &'a Head,
}

impl Patch<'_> {
    /// Errors: layers changed as a whole through added tensors; no difference in bf16.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (mut tensors, mut changed, mut total) = (Vec::new(), 0, 0);
        for (parameter, part) in self.adaptation.parameters.iter().zip(&self.adaptation.modes) {
            let (positions, values) = match part {
                TrainMode::Frozen => continue,
                TrainMode::Reparam(_) => {
                    return Err(Error::Usage(format!(
                        "{} is changed through added tensors, but a patch holds single elements; merge the adapter instead",
                        parameter.name
                    )));
                }
                _ => self.changes(parameter, part)?,
            };
            if positions.is_empty() {
                continue;
            }
            (changed, total) = (changed + positions.len() as u64, total + parameter.numel());
            let name = self.weights.stored_name(&parameter.name).unwrap_or(&parameter.name);
            tensors.push(tensor(
                format!("{name}.val"),
                Dtype::BF16,
                values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ));
            tensors.push(gaps(format!("{name}.idx"), &positions));
        }
        if tensors.is_empty() {
            return Err(Error::Usage(
                "in bf16 no weight differs from the base model: there is nothing to patch".into(),
            ));
        }
        files::create_dirs(dir).map_err(Error::io(dir))?;
        save(&dir.join(VALUES), &tensors, &self.metadata(tensors.len() / 2, changed, total)?)
    }

    /// Ascending positions and new values of the elements that differ in bf16; all elements of a tensor that the base
    /// lacks.
    fn changes(&self, parameter: &Parameter, part: &TrainMode) -> Result<(Vec<u32>, Vec<bf16>)> {
        let name = &parameter.name;
        let missing = || Error::Weights(format!("{name} is missing"));
        let base = self.weights.get(name).and_then(|view| view.to_f32());
        let new = match part {
            TrainMode::Sparse(set) => {
                let (dtype, bytes) = with_deltas(self.weights, self.values, parameter, set, None)?;
                Cow::Owned(to_f32(dtype, &bytes).ok_or_else(missing)?)
            }
            _ => Cow::Borrowed(find(self.values, name)?),
        };
        if u32::try_from(new.len()).is_err() {
            return Err(Error::Usage(format!("{name} has more elements than a patch can address")));
        }
        let new = new.iter().map(|x| bf16::from_f32(*x)).enumerate();
        let differs = |&(i, x): &(usize, bf16)| base.as_ref().is_none_or(|base| bf16::from_f32(base[i]) != x);
        Ok(new.filter(differs).map(|(i, x)| (i as u32, x)).unzip())
    }

    /// The header that TRL reads, with the names of the classes for other readers.
    fn metadata(&self, tensors: usize, changed: u64, total: u64) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::from([
            ("format", "sparse_weight_patch".to_owned()),
            ("version", "1".to_owned()),
            ("sparse", "True".to_owned()),
            ("model_version", "0".to_owned()),
            ("num_changed_params", tensors.to_string()),
            ("total_changed_elements", changed.to_string()),
            ("total_elements", total.to_string()),
            ("sparsity", (1.0 - changed as f64 / total as f64).to_string()),
            ("encoding", "gap_delta".to_owned()),
            ("objective", self.head.objective.clone()),
        ]);
        if !self.head.labels.is_empty() {
            let labels = serde_json::to_string(&self.head.labels).map_err(|e| Error::Weights(e.to_string()))?;
            metadata.insert("labels", labels);
        }
        Ok(metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// The gaps between positions, minus one; the first position counts from -1.
fn gaps(name: String, positions: &[u32]) -> OutTensor<'static> {
    let next = positions.iter().map(|&at| at + 1);
    let gaps: Vec<u32> = positions.iter().zip([0].into_iter().chain(next)).map(|(&at, from)| at - from).collect();
    match gaps.iter().map(|&gap| u16::try_from(gap)).collect::<std::result::Result<Vec<u16>, _>>() {
        Ok(short) => tensor(name, Dtype::U16, short.iter().flat_map(|gap| gap.to_le_bytes()).collect()),
        Err(_) => tensor(name, Dtype::U32, gaps.iter().flat_map(|gap| gap.to_le_bytes()).collect()),
    }
}

fn tensor(name: String, dtype: Dtype, bytes: Vec<u8>) -> OutTensor<'static> {
    let size = dtype.bitsize() / 8;
    OutTensor { name, dtype, shape: vec![bytes.len() / size], bytes: Cow::Owned(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_as_wide_as_the_widest() {
        let short = gaps("a.idx".into(), &[0, 1, 5, 65_541]);
        assert_eq!(
            (short.dtype, short.shape, &short.bytes[..]),
            (Dtype::U16, vec![4], &[0, 0, 0, 0, 3, 0, 255, 255][..])
        );
        let long = gaps("a.idx".into(), &[3, 65_540]);
        assert_eq!((long.dtype, &long.bytes[..]), (Dtype::U32, &[3, 0, 0, 0, 0, 0, 1, 0][..]));
    }
}

//! Single elements of linear layers: Super-Tuning, which we read and write, and SHiRA, which we read. Both add values
//! to the weight at flat positions, or at rows and columns; anything else that was trained is stored as whole modules.

use super::{PREFIX, PeftType, module, named, names, of_text, targets, task_type, write_files};
use crate::adapter::Head;
use crate::adapter::merge::{find, with_deltas};
use crate::method::{Adaptation, IndexSet, TrainMode};
use crate::model::{Decoder, HEAD, to_f32};
use crate::weights::{Dtype, OutTensor, TensorFile, Weights};
use crate::{Error, Result};
use serde_json::{Value, json};
use sparta_graph::DType;
use sparta_plugin::method::{Parameter, Role};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// Trained values by name, and index sets by parameter.
type Values = (BTreeMap<String, Vec<f32>>, BTreeMap<String, Vec<u32>>);

/// Reads the elements and the whole tensors of a file. Values of repeated positions, as in Super-Tuning's padding, add
/// up.
///
/// Errors: values without positions or the reverse, tensors that the model lacks, low-rank factors.
pub(super) fn read(kind: PeftType, file: &TensorFile, parameters: &[Parameter]) -> Result<Values> {
    let bad = |what: String| Error::Weights(format!("{}: {what}", file.path().display()));
    let (values_end, indices_end) = match kind {
        PeftType::Shira => (".shira_weight", ".shira_indices"),
        _ => (".supertuning_values", ".supertuning_indices"),
    };
    let (mut values, mut indices) = (BTreeMap::new(), BTreeMap::new());
    for (key, name) in names(file)? {
        if let Some(module) = name.strip_suffix(values_end) {
            let parameter = format!("{}.weight", of_text(module));
            let shape = parameters.iter().find(|p| p.name == parameter).map(|p| &*p.shape);
            let Some(&[rows, columns]) = shape else {
                return Err(bad(format!("`{key}`: the model has no matrix {parameter}")));
            };
            let positions = format!("{PREFIX}{module}{indices_end}");
            if file.get(&positions).is_none() {
                return Err(bad(format!("`{key}` has no `{positions}`: save it with its positions")));
            }
            let (position_shape, positions) = integers(file, &positions)?;
            let deltas = file.floats(key)?.1;
            let elements = match position_shape[..] {
                [n] if n == deltas.len() => positions.into_iter().map(|at| flat(0, at, 1, rows * columns)).collect(),
                [2, n] if n == deltas.len() => {
                    let (row, column) = positions.split_at(n);
                    row.iter().zip(column).map(|(&row, &column)| flat(row, column, rows, columns)).collect()
                }
                _ => None,
            };
            let elements: Vec<u32> = elements.ok_or_else(|| {
                bad(format!(
                    "`{key}` has {} values, its positions have the shape {position_shape:?} or lie outside of \
                     [{rows}, {columns}]",
                    deltas.len()
                ))
            })?;
            let (set, deltas) = sums(elements, deltas);
            if !set.is_empty() {
                values.insert(format!("delta.{parameter}"), deltas);
                indices.insert(parameter, set);
            }
        } else if let Some(module) = name.strip_suffix(indices_end) {
            if file.get(&format!("{PREFIX}{module}{values_end}")).is_none() {
                return Err(bad(format!("`{key}` has no values")));
            }
        } else if name.contains(".supertuning_") || name.contains(".shira_") {
            return Err(bad(format!("`{key}`: only values and their positions are supported")));
        } else {
            values.insert(of_text(name), file.floats(key)?.1);
        }
    }
    Ok((values, indices))
}

/// Positions, which PEFT saves as floats on Windows.
fn integers(file: &TensorFile, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
    match file.get(name).map(|view| view.dtype) {
        Some(Dtype::F32) => file.floats(name).map(|(shape, x)| (shape, x.into_iter().map(|x| x as i64).collect())),
        _ => file.integers(name),
    }
}

/// The flat position of an element of a matrix; `None` outside of it.
fn flat(row: i64, column: i64, rows: usize, columns: usize) -> Option<u32> {
    let row = usize::try_from(row).ok().filter(|&row| row < rows)?;
    let column = usize::try_from(column).ok().filter(|&column| column < columns)?;
    u32::try_from(row * columns + column).ok()
}

/// Ascending positions with the sums of their values, without sums of 0.
fn sums(positions: Vec<u32>, values: Vec<f32>) -> (Vec<u32>, Vec<f32>) {
    let mut pairs: Vec<(u32, f32)> = positions.into_iter().zip(values).collect();
    pairs.sort_by_key(|(at, _)| *at);
    pairs.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
    pairs.into_iter().filter(|(_, value)| *value != 0.0).unzip()
}

/// An adapter of single elements, to be written as Super-Tuning.
pub struct SparseExport<'a> {
    pub adaptation: &'a Adaptation,
    pub values: &'a BTreeMap<String, Vec<f32>>,
    pub weights: &'a Weights,
    pub head: &'a Head,
    pub model: &'a Path,
    pub decoder: &'a Decoder,
}

/// The elements of one linear layer.
struct Layer<'a> {
    parameter: &'a Parameter,
    positions: &'a [u32],
    changes: Vec<f32>,
}

impl SparseExport<'_> {
    /// Writes a directory that `peft.PeftModel.from_pretrained` loads. The changes are those from the base's values to
    /// `round(w0 + delta)`, so the model is the one that was trained and that merging gives.
    ///
    /// Errors: changes that the format cannot hold.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (mut layers, mut whole) = (Vec::new(), Vec::new());
        for (parameter, part) in self.adaptation.parameters.iter().zip(&self.adaptation.modes) {
            match part {
                TrainMode::Frozen => {}
                TrainMode::Sparse(set) if parameter.role.is_projection() => {
                    let changes = self.changes(parameter, set)?;
                    layers.push(Layer { parameter, positions: &set.indices, changes });
                }
                TrainMode::Sparse(set) if set.indices.is_empty() => {}
                TrainMode::Sparse(set) if parameter.role == Role::Norm => {
                    whole.push((parameter, self.merged(parameter, set)?))
                }
                TrainMode::Dense if matches!(parameter.role, Role::Norm | Role::Head) => {
                    whole.push((parameter, find(self.values, &parameter.name)?.to_vec()));
                }
                _ => {
                    return Err(Error::Usage(format!(
                        "{} is changed, but PEFT's Super-Tuning holds only single elements of linear layers, whole norms and the \
                         head: train without it, as sparta does with --targets, write a merged model with `adapter merge`, or use \
                         --format sparse-deltas",
                        parameter.name
                    )));
                }
            }
        }
        if layers.is_empty() {
            return Err(Error::Usage(
                "no elements of linear layers are changed; PEFT has no adapter without any".into(),
            ));
        }
        let sparsity = sparsity(&layers);
        let mut tensors = Vec::new();
        for layer in &layers {
            tensors.extend(self.tensors(layer, room(layer.parameter.numel(), sparsity))?);
        }
        for (parameter, values) in &whole {
            tensors.push(OutTensor {
                name: named(self.decoder, &parameter.name),
                dtype: Dtype::F32,
                shape: parameter.shape.clone(),
                bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
            });
        }
        let others = whole.iter().filter(|(parameter, _)| parameter.name != HEAD);
        let mut saved: Vec<String> = others.map(|(p, _)| named(self.decoder, module(&p.name))).collect();
        if !self.head.labels.is_empty() {
            saved.extend(["classifier".to_owned(), "score".to_owned()]);
        }
        let targets = targets(self.decoder, layers.iter().map(|layer| &*layer.parameter.name));
        write_files(dir, self.head, tensors, &self.config(sparsity, targets, saved))
    }

    /// Positions and values of a layer, in as many slots as PEFT expects; unused slots add 0 to the first element.
    fn tensors(&self, layer: &Layer, room: usize) -> Result<[OutTensor<'static>; 2]> {
        let name = named(self.decoder, module(&layer.parameter.name));
        let positions = layer.positions.iter().map(|&at| i32::try_from(at)).collect::<std::result::Result<Vec<_>, _>>();
        let mut positions = positions
            .map_err(|_| Error::Usage(format!("{} has more elements than PEFT can address", layer.parameter.name)))?;
        let mut changes = layer.changes.clone();
        positions.resize(room, 0);
        changes.resize(room, 0.0);
        let tensor = |end: &str, dtype, bytes: &[u8]| OutTensor {
            name: format!("{name}.supertuning_{end}"),
            dtype,
            shape: vec![room],
            bytes: Cow::Owned(bytes.to_vec()),
        };
        Ok([
            tensor("indices", Dtype::I32, bytemuck::cast_slice(&positions)),
            tensor("values", Dtype::F32, bytemuck::cast_slice(&changes)),
        ])
    }

    /// A parameter with its changed elements, rounded as in the run.
    fn merged(&self, parameter: &Parameter, set: &IndexSet) -> Result<Vec<f32>> {
        let rounded = self.adaptation.residual.then_some(DType::F32);
        let (dtype, bytes) = with_deltas(self.weights, self.values, parameter, set, rounded)?;
        to_f32(dtype, &bytes).ok_or_else(|| Error::Weights(format!("{} is stored as {dtype}", parameter.name)))
    }

    /// What is added to each chosen element.
    fn changes(&self, parameter: &Parameter, set: &IndexSet) -> Result<Vec<f32>> {
        if set.indices.is_empty() {
            return Ok(Vec::new());
        }
        let merged = self.merged(parameter, set)?;
        let base = self.weights.get(&parameter.name).and_then(|view| view.to_f32());
        let base = base.ok_or_else(|| Error::Weights(format!("{} is missing", parameter.name)))?;
        Ok(set.indices.iter().map(|&at| merged[at as usize] - base[at as usize]).collect())
    }

    /// `adapter_config.json` with the keys of peft 0.21.
    fn config(&self, sparsity: f64, targets: Vec<String>, saved: Vec<String>) -> Value {
        json!({
            "auto_mapping": null,
            "base_model_name_or_path": self.model.display().to_string(),
            "inference_mode": true,
            "init_weights": true,
            "lora_alpha": null,
            "lora_dropout": 0.0,
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "peft_type": "SUPERTUNING",
            "r": null,
            "revision": null,
            "save_precomputed_indices": true,
            "select_top": true,
            "sparsity": sparsity,
            "target_modules": targets,
            "task_type": task_type(self.head),
        })
    }
}

/// The number of slots that PEFT allocates for a tensor, computed in f64 as there.
fn room(numel: u64, sparsity: f64) -> usize {
    (numel as f64 * (1.0 - sparsity)) as usize
}

/// The sparsity, one for all layers, that gives each layer slots for its elements, and at least one.
fn sparsity(layers: &[Layer]) -> f64 {
    // Half an element more, so that rounding loses none.
    let density = |layer: &Layer| (layer.positions.len().max(1) as f64 + 0.5) / layer.parameter.numel() as f64;
    (1.0 - layers.iter().map(density).fold(0.0, f64::max)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_layers_have_room() {
        let parameter = |rows: usize| Parameter {
            name: "w.weight".into(),
            shape: vec![rows, 7],
            dtype: DType::BF16,
            role: Role::QProj,
            layer: Some(0),
        };
        for (rows, counts) in [(3, vec![21, 20]), (1000, vec![7, 0, 350]), (999, vec![6993]), (11, vec![1, 2])] {
            let parameter = parameter(rows);
            let positions: Vec<u32> = (0..7000).collect();
            let layer = |&n: &usize| Layer { parameter: &parameter, positions: &positions[..n], changes: vec![] };
            let layers: Vec<Layer> = counts.iter().map(layer).collect();
            let room = room(parameter.numel(), sparsity(&layers));
            let most = counts.iter().copied().max().unwrap();
            assert!((most..=most + 1).contains(&room) && room <= rows * 7, "{room} places for {most}");
        }
    }

    #[test]
    fn repeated_positions_add_up_and_padding_is_dropped() {
        let (positions, values) = sums(vec![5, 0, 2, 0, 5], vec![1.0, 0.0, 3.0, 0.0, 0.5]);
        assert_eq!((positions, values), (vec![2, 5], vec![3.0, 1.5]));
        assert_eq!(flat(1, 2, 3, 4), Some(6));
        assert_eq!((flat(3, 0, 3, 4), flat(0, 4, 3, 4), flat(-1, 0, 3, 4)), (None, None, None));
    }
}

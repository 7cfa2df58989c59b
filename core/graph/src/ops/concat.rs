use super::*;
use crate::graph::ALIGNMENT;

/// Elements of alignment: [`ALIGNMENT`] in f32.
const UNIT: usize = ALIGNMENT / 4;

/// Joins tensors into one flat tensor. Each begins at a multiple of 64 elements, as does the end; the gaps are zero.
/// The planner places most inputs inside the output, so that only the gaps have to be written.
///
/// Inputs: f32 of any shapes. Output: f32 `[n]`, where n is the sum of their lengths, each rounded up to 64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Concat {}

impl Concat {
    /// The element at which each of tensors of these lengths begins, and the length of all.
    pub fn layout(lengths: impl IntoIterator<Item = usize>) -> (Vec<usize>, usize) {
        let (mut begins, mut end) = (Vec::new(), 0);
        for n in lengths {
            begins.push(end);
            end += n.next_multiple_of(UNIT);
        }
        (begins, end)
    }
}

impl Operation for Concat {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        count(inputs, 1..=usize::MAX)?;
        inputs.iter().try_for_each(|ty| f32s(ty, "an input"))?;
        let (_, length) = Concat::layout(inputs.iter().map(|ty| ty.numel()));
        Ok(vec![TensorType::f32([length])])
    }

    fn joins(&self, inputs: &[&TensorType]) -> Vec<usize> {
        let (begins, _) = Concat::layout(inputs.iter().map(|ty| ty.numel()));
        begins.into_iter().map(|begin| 4 * begin).collect()
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }
}

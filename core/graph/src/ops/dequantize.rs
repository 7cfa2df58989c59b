use super::*;
use crate::Blocks;

/// The values of a matrix `[rows, columns]` that is stored in blocks, rounded to the type `output`.
///
/// Inputs: `blocks` u32 `[words]`, the rows one after the other in whole blocks, little-endian, filled up to a whole word;
/// then, if `overlay`, `index` u32 `[n]` ascending, `base [n]` of any float type and `delta` f32 `[n]`, after which element
/// `index[i]` is `round(base[i] + delta[i])`, as [`Scatter`] writes it; or, if `lookup`, `tokens` u32 `[T]`. Output:
/// `[rows, columns]`, or the rows of the tokens, `[T, columns]`.
///
/// The matrix stands for its blocks: its gradient is that of the first input ([`Operation::decodes`]). A lookup has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dequantize {
    pub blocks: Blocks,
    pub rows: usize,
    pub columns: usize,
    pub output: DType,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlay: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lookup: bool,
}

impl Dequantize {
    /// The whole matrix as it is stored.
    pub fn whole(blocks: Blocks, [rows, columns]: [usize; 2], output: DType) -> Self {
        Dequantize { blocks, rows, columns, output, overlay: false, lookup: false }
    }
}

impl Operation for Dequantize {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = match (self.overlay, self.lookup) {
            (true, true) => return Err("a lookup has no overlay".into()),
            (true, false) => 4,
            (false, lookup) => 1 + usize::from(lookup),
        };
        count(inputs, expected..=expected)?;
        dtype(inputs[0], "blocks", DType::U32)?;
        if !self.output.is_activation() {
            return Err(format!("the output must be f32 or bf16, got {}", self.output));
        }
        let Some(words) = self.blocks.words(self.rows, self.columns) else {
            let (elements, rows, columns) = (self.blocks.elements(), self.rows, self.columns);
            return Err(format!(
                "rows must be whole blocks of {elements} elements of {}, got [{rows}, {columns}]",
                self.blocks
            ));
        };
        shape(inputs[0], "blocks", &[words])?;
        let mut rows = self.rows;
        if self.lookup {
            dtype(inputs[1], "tokens", DType::U32)?;
            rows = vector(inputs[1], "tokens")?;
        }
        if self.overlay {
            dtype(inputs[1], "index", DType::U32)?;
            let n = vector(inputs[1], "index")?;
            floats(inputs[2], "base")?;
            shape(inputs[2], "base", &[n])?;
            f32s(inputs[3], "delta")?;
            shape(inputs[3], "delta", &[n])?;
        }
        Ok(vec![TensorType::new(self.output, [rows, self.columns])])
    }

    fn decodes(&self) -> bool {
        !self.lookup
    }
}

use crate::HEAD;
use serde::{Deserialize, Serialize};
use sparta_graph::Blocks;
use std::fmt;

/// What a model's matrices are rounded to when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantize {
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_k")]
    Q4K,
}

impl Quantize {
    /// By the names that options give them.
    pub const NAMED: &[(&str, Quantize)] = &[("q8_0", Quantize::Q8_0), ("q4_k", Quantize::Q4K)];

    /// The blocks of a weight. `None` for what keeps its type: anything but a matrix, a classification head, rows that
    /// are not whole blocks. With Q4_K embeddings and the vocabulary head are Q8_0, and so are rows that are not a
    /// multiple of 256.
    pub fn of(self, name: &str, shape: &[usize]) -> Option<Blocks> {
        let &[_, columns] = shape else { return None };
        let fits = |blocks: &Blocks| columns > 0 && columns.is_multiple_of(blocks.elements());
        let vocabulary = matches!(name, "model.embed_tokens.weight" | "lm_head.weight");
        let choices = match self {
            _ if name == HEAD => &[][..],
            Quantize::Q4K if !vocabulary => &[Blocks::Q4K, Blocks::Q8_0],
            _ => &[Blocks::Q8_0],
        };
        choices.iter().copied().find(fits)
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Quantize::NAMED.iter().find(|(_, known)| known == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_rounded_to_blocks_that_their_rows_hold() {
        let layer = "model.layers.0.mlp.down_proj.weight";
        for (quantize, name, shape, expected) in [
            (Quantize::Q4K, layer, &[8, 512][..], Some(Blocks::Q4K)),
            (Quantize::Q4K, layer, &[8, 96], Some(Blocks::Q8_0)),
            (Quantize::Q4K, layer, &[8, 80], None),
            (Quantize::Q4K, "model.embed_tokens.weight", &[9, 512], Some(Blocks::Q8_0)),
            (Quantize::Q8_0, layer, &[8, 512], Some(Blocks::Q8_0)),
            (Quantize::Q8_0, "model.norm.weight", &[512], None),
            (Quantize::Q8_0, HEAD, &[2, 512], None),
        ] {
            assert_eq!(quantize.of(name, shape), expected, "{quantize} {name} {shape:?}");
        }
        assert_eq!((Quantize::Q8_0.to_string(), Quantize::Q4K.to_string()), ("q8_0".into(), "q4_k".into()));
    }
}

//! What a model computes for each row of a batch, for comparison with other implementations.

use crate::Result;
use crate::batch::Batch;
use crate::graphs::names;
use crate::session::Session;
use crate::tensors::MemoryKind;
use sparta_graph::DType;

/// Values of every row of a batch.
pub struct Inspected {
    /// Hidden states after the final norm, `[T, hidden]`.
    pub hidden: Vec<f32>,
    /// Vocabulary logits, `[T, vocab]`; none if the objective has a classification head.
    pub logits: Option<Vec<f32>>,
}

impl Session {
    /// The hidden states of all rows of a batch, including padding, and their vocabulary logits.
    pub fn inspect(&mut self, batch: &Batch) -> Result<Inspected> {
        let size = self.size_of(batch)?;
        self.queue_batch(batch)?;
        let graph = self.setup().graphs().inspect(size)?;
        self.reserve_arena(&graph)?;
        let (width, vocabulary) = (self.setup().decoder.hidden_size, self.setup().decoder.vocab_size);
        let vocabulary = (!self.setup().objective.pools()).then_some(vocabulary);
        let mut outputs = vec![(names::STATES, size.rows * width)];
        outputs.extend(vocabulary.map(|vocabulary| (names::VOCABULARY, size.rows * vocabulary)));
        for &(name, len) in &outputs {
            self.tensors().alloc(name, DType::F32, len, MemoryKind::Buffers)?;
        }
        self.run_graph(&graph)?;
        let mut values = Vec::new();
        for (name, len) in outputs {
            values.push(self.tensors().read_f32(name, len)?);
            self.tensors().free(name);
        }
        let logits = if vocabulary.is_some() { values.pop() } else { None };
        Ok(Inspected { hidden: values.pop().unwrap_or_default(), logits })
    }
}

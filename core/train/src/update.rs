//! The end of a step's graph: gradients are joined by bucket, clipped and applied.

use crate::Result;
use crate::buckets::{Bucket, buckets};
use crate::graphs::{Graphs, names, step_numbers, store_joined};
use crate::optimizer::Target;
use sparta_graph::ops::{Add, ClipCoef, Fill, PARTIALS, Scale, ScaleBy, Store, SumOfSquares};
use sparta_graph::{DType, Graph, Value};
use sparta_model::method::AdaptedLayers;

impl Graphs<'_> {
    /// The update from the sums over micro-batches.
    pub(crate) fn update_from_sums(&self, graph: &mut Graph) -> Result<()> {
        graph.set_label("optimizer");
        let buckets = buckets(self.adaptation.trained(), self.optimization);
        let sum = |bucket: &Bucket| graph.external(bucket.gradient_sums(), DType::F32, [bucket.len]);
        let sums: Vec<Value> = buckets.iter().map(sum).collect();
        let loss = graph.external(names::LOSS_SUM, DType::F32, [1]);
        let mut layers = AdaptedLayers::new(self.adaptation, None);
        self.update(graph, &mut layers, &buckets, &sums, loss)
    }

    /// Clips by the global norm, updates each bucket, and writes the new values to the weights that products read.
    pub(crate) fn update(
        &self,
        graph: &mut Graph,
        layers: &mut AdaptedLayers,
        buckets: &[Bucket],
        gradients: &[Value],
        loss: Value,
    ) -> Result<()> {
        let trained: usize = buckets.iter().map(|bucket| bucket.parts.len()).sum();
        let norms = graph.external(names::NORMS, DType::F32, [trained, PARTIALS]);
        for (bucket, &gradient) in buckets.iter().zip(gradients) {
            let parts = graph.external(bucket.table(), DType::U32, [bucket.parts.len(), 2]);
            graph.apply(SumOfSquares { slot: bucket.first }.into(), &[norms, gradient, parts])?;
        }
        let latch = graph.external(names::LATCH, DType::F32, [1]);
        let max_norm = self.optimization.max_grad_norm;
        let clip = graph.one(ClipCoef { max_norm }, &[norms, loss, latch])?;
        let (step, rng) = (step_numbers(graph), graph.external(names::RNG, DType::U32, [4]));
        let optimizer = &self.optimization.optimizer;
        for (bucket, &gradient) in buckets.iter().zip(gradients) {
            let values = graph.external(bucket.values(), DType::F32, [bucket.len]);
            let slots = optimizer.slots().into_iter();
            let slots = slots.map(|slot| graph.external(bucket.slot(slot.name), slot.dtype, [bucket.len])).collect();
            let (lr_factor, weight_decay) = self.optimization.rates(bucket.rates);
            let salt = bucket.number as u32;
            let target = Target { values, gradient, slots, clip, step, rng, weight_decay, lr_factor, salt };
            optimizer.update(graph, &target)?;
        }
        self.update_by_method(graph, layers, latch)?;
        for part in buckets.iter().flat_map(|bucket| &bucket.parts) {
            layers.follow(graph, &part.trained)?;
        }
        store_joined(graph, names::RESULTS, &[loss, clip, step])
    }

    /// Applies the method's update to the optimizer's values, which stay unchanged if the step is not finite: the latch
    /// is then 1 and not 0.
    fn update_by_method(&self, graph: &mut Graph, layers: &mut AdaptedLayers, latch: Value) -> Result<()> {
        let lr = graph.external(names::LR, DType::F32, [1]);
        let changes = layers.updates(graph, lr)?;
        if changes.is_empty() {
            return Ok(());
        }
        let (minus, one) =
            (graph.one(Scale { factor: -1.0 }, &[latch])?, graph.one(Fill { value: 1.0, shape: vec![1] }, &[])?);
        let finite = graph.one(Add {}, &[minus, one])?;
        for (value, new) in changes {
            // One factor is 1 and the other 0, so the sum is exactly one of the two.
            let (new, old) = (graph.one(ScaleBy {}, &[new, finite])?, graph.one(ScaleBy {}, &[value, latch])?);
            let next = graph.one(Add {}, &[new, old])?;
            graph.apply(Store {}.into(), &[value, next])?;
        }
        Ok(())
    }
}

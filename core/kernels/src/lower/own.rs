//! Plugins' own operations, by the kernels that they bring.

use super::{Dispatch, Lowering, Step};
use crate::own::source;
use crate::source::Kernel;
use sparta_graph::Operand;
use sparta_graph::ops::{Launch, OwnOp};

impl Lowering<'_> {
    pub(super) fn own(&mut self, op: &OwnOp) -> Result<(), String> {
        let named = |reason| format!("`{}`: {reason}", op.name);
        let wgsl = op.wgsl.as_ref().ok_or_else(|| named("it has no WGSL kernel".into()))?;
        let operands: Vec<&Operand> = self.call.inputs.iter().chain(&self.call.outputs).collect();
        let ranks: Vec<usize> = operands.iter().map(|operand| operand.ty.shape.len()).collect();
        crate::own::check(op, &ranks)?;
        let first = &self.output(0)?.ty;
        let (launches, groups) = match wgsl.launch {
            Launch::Elements => (first.numel(), first.numel().div_ceil(wgsl.lanes as usize)),
            Launch::Rows => {
                let rows = first.shape.first().copied().unwrap_or(1);
                (rows, rows)
            }
        };
        let sizes = operands.iter().flat_map(|operand| &operand.ty.shape).map(|&n| n as u32);
        let params = std::iter::once(launches as u32).chain(sizes).collect();
        let bindings = operands.iter().map(|operand| self.whole(operand, "an operand").map_err(named));
        let bindings = bindings.collect::<Result<Vec<_>, _>>()?;
        let kernel = Kernel {
            name: "own",
            constants: vec![("LANES", wgsl.lanes)],
            own: Some(source(op, wgsl, &ranks).0.into()),
        };
        if groups > 0 {
            self.steps.push(Step::Dispatch(Dispatch { kernel, params, bindings, rng: None, groups }));
        }
        Ok(())
    }
}

//! Composite ops: their parts one after the other, on ranges of rows of the operands.

use super::{Lowering, Memory, Step, View, lower, row_bytes, view};
use sparta_graph::{Call, Operand, Part, Place, Rows, Slot};

impl Lowering<'_> {
    /// The parts are calls whose operands are numbered; what they bind is then moved to where the rows lie.
    pub(super) fn parts(&mut self) -> Result<(), String> {
        let types: Vec<_> = self.call.inputs.iter().map(|o| &o.ty).collect();
        for part in self.call.op.parts(&types) {
            self.part(&part)?;
        }
        Ok(())
    }

    fn part(&mut self, part: &Part) -> Result<(), String> {
        let mut bases = Vec::new();
        let mut operand = |rows: &Rows| -> Result<Operand, String> {
            let whole = match rows.slot {
                Slot::Input(i) => self.input(i)?,
                Slot::Output(o) => self.output(o)?,
            };
            bases.push(view(whole, rows.rows.start * row_bytes(whole), rows.rows.end * row_bytes(whole)));
            Ok(Operand { place: Place::External(bases.len() - 1), ty: rows.ty(&whole.ty) })
        };
        let call = Call {
            op: part.op.clone(),
            inputs: part.inputs.iter().map(&mut operand).collect::<Result<_, _>>()?,
            outputs: part.outputs.iter().map(&mut operand).collect::<Result<_, _>>()?,
            label: self.call.label.clone(),
        };
        let lowered = lower(&call, self.bounds)?;
        self.scratch = self.scratch.max(lowered.scratch);
        let moved = |view: View| match view.memory {
            Memory::External(i) => View { memory: bases[i].memory, offset: bases[i].offset + view.offset, ..view },
            _ => view,
        };
        self.steps.extend(lowered.steps.into_iter().map(|step| match step {
            Step::Dispatch(mut dispatch) => {
                dispatch.bindings.iter_mut().for_each(|binding| *binding = moved(*binding));
                dispatch.rng = dispatch.rng.map(moved);
                Step::Dispatch(dispatch)
            }
            Step::Copy { from, to } => Step::Copy { from: moved(from), to: moved(to) },
        }));
        Ok(())
    }
}

//! Composite ops: their parts one after the other, on ranges of rows of the operands.

use super::{Lowering, Memory, Step, View, lower, row_bytes, view};
use sparta_graph::{Call, Operand, PartCall, Place, Rows, Slot};

/// The parts of a composite's call, in order, as separate calls; none for any other op. The operands of each are
/// numbered, and the views say where their rows lie ([`View::within`]).
///
/// Errors: an operand is missing.
pub fn parts(call: &Call) -> Result<Vec<(Call, Vec<View>)>, String> {
    let types: Vec<_> = call.inputs.iter().map(|o| &o.ty).collect();
    call.op.parts(&types).iter().map(|part| one(call, part)).collect()
}

fn one(call: &Call, part: &PartCall) -> Result<(Call, Vec<View>), String> {
    let mut views = Vec::new();
    let mut operand = |rows: &Rows| -> Result<Operand, String> {
        let whole = match rows.slot {
            Slot::Input(i) => call.inputs.get(i),
            Slot::Output(o) => call.outputs.get(o),
        };
        let whole = whole.ok_or_else(|| format!("{:?} is missing", rows.slot))?;
        views.push(view(whole, rows.rows.start * row_bytes(whole), rows.rows.end * row_bytes(whole)));
        Ok(Operand { place: Place::External(views.len() - 1), ty: rows.ty(&whole.ty) })
    };
    let part = Call {
        op: part.op.clone(),
        inputs: part.inputs.iter().map(&mut operand).collect::<Result<_, _>>()?,
        outputs: part.outputs.iter().map(&mut operand).collect::<Result<_, _>>()?,
        label: call.label.clone(),
    };
    Ok((part, views))
}

impl View {
    /// The place of a part's view in the composite's operands.
    pub fn within(self, operands: &[View]) -> View {
        match self.memory {
            Memory::External(i) => {
                View { memory: operands[i].memory, offset: operands[i].offset + self.offset, ..self }
            }
            _ => self,
        }
    }
}

impl Lowering<'_> {
    pub(super) fn parts(&mut self) -> Result<(), String> {
        for (part, operands) in parts(self.call)? {
            let lowered = lower(&part, self.bounds)?;
            self.scratch = self.scratch.max(lowered.scratch);
            self.asked.extend(lowered.asked);
            self.questions.extend(lowered.questions);
            self.steps.extend(lowered.steps.into_iter().map(|step| match step {
                Step::Dispatch(mut dispatch) => {
                    dispatch.bindings.iter_mut().for_each(|binding| *binding = binding.within(&operands));
                    dispatch.rng = dispatch.rng.map(|view| view.within(&operands));
                    Step::Dispatch(dispatch)
                }
                Step::Copy { from, to } => Step::Copy { from: from.within(&operands), to: to.within(&operands) },
            }));
        }
        Ok(())
    }
}

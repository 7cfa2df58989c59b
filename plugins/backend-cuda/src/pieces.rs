//! What a call of a plan becomes: pieces of work on views of memory, before addresses are known.

use crate::{KernelText, Product, Threads, overrides, products, writer};
use sparta_graph::plan::ALIGNMENT;
use sparta_graph::{Call, Operand, Place};
use sparta_kernels::{Bounds, Dispatch, Kernel, Memory, Step, View};

/// Blocks in one dimension of a launch.
const MAX_BLOCKS: usize = 65_535;

/// One piece of work for the device.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Launch(Launch),
    /// Copies as many bytes as `to` has.
    Copy {
        from: View,
        to: View,
    },
    Multiply(Multiply),
}

#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub program: Program,
    pub grid: [u32; 3],
    pub threads: Threads,
    pub arguments: Vec<Argument>,
}

/// A kernel's text; equal programs have equal texts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Program {
    /// Translated from WGSL.
    Translated(Kernel),
    /// A kernel in `kernels/`.
    Written(Written),
}

/// The kernels in `kernels/` with their specialization: `tile` is the number of rows read at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Written {
    SampledGather,
    Attention { head_dim: usize, tile: usize },
    AttentionGradQ { head_dim: usize, tile: usize },
    AttentionGradKv { head_dim: usize, tile: usize },
    AttentionGradSum,
}

macro_rules! kernels {
    ($($file:literal),+) => { concat!($(include_str!(concat!("../kernels/", $file))),+) };
}

impl Written {
    /// `shared`: bytes of dynamic shared memory of a block.
    pub fn text(self, shared: u32) -> KernelText {
        let (entry, text) = match self {
            Written::SampledGather => ("sampled_gather", kernels!("sampled_gather.cu")),
            Written::Attention { .. } => ("attention", kernels!("mma.cuh", "attention.cuh", "attention.cu")),
            Written::AttentionGradQ { .. } => {
                let text = kernels!("mma.cuh", "attention.cuh", "attention_grad.cuh", "attention_grad_q.cu");
                ("attention_grad_q", text)
            }
            Written::AttentionGradKv { .. } => {
                let text = kernels!("mma.cuh", "attention.cuh", "attention_grad.cuh", "attention_grad_kv.cu");
                ("attention_grad_kv", text)
            }
            Written::AttentionGradSum => ("attention_grad_sum", kernels!("mma.cuh", "attention_grad_sum.cu")),
        };
        let constants = match self {
            Written::Attention { head_dim, tile }
            | Written::AttentionGradQ { head_dim, tile }
            | Written::AttentionGradKv { head_dim, tile } => {
                format!("#define HEAD_DIM {head_dim}\n#define TILE_ROWS {tile}\n")
            }
            Written::SampledGather | Written::AttentionGradSum => String::new(),
        };
        KernelText { text: constants + text, entry: entry.into(), shared }
    }
}

impl Launch {
    /// Errors: those of the translation.
    pub fn text(&self) -> Result<KernelText, String> {
        match &self.program {
            Program::Translated(kernel) => writer::translate(kernel),
            Program::Written(kernel) => Ok(kernel.text(self.threads.shared)),
        }
    }
}

/// What the choice of pieces depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub bounds: Bounds<'static>,
    /// Major and minor compute capability.
    pub capability: (u32, u32),
    /// Whether the plan lets products round f32 factors to TF32.
    pub tf32: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Words(Vec<u32>),
    Address(View),
}

/// A product of the vendor's library.
#[derive(Clone, Debug)]
pub(crate) struct Multiply {
    pub form: Product,
    pub a: View,
    pub b: View,
    pub c: View,
    pub bias: Option<View>,
    pub residual: Option<View>,
    pub scale: f32,
}

/// Pieces in order of execution, and the bytes of [`Memory::Scratch`] that they share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    pub pieces: Vec<Piece>,
    pub scratch: usize,
}

impl Pieces {
    /// The pieces of a call. `serves` says whether the device's library supports a form of product.
    ///
    /// Errors: those of the lowering.
    pub fn of(
        call: &Call,
        device: &Device,
        serves: &mut dyn FnMut(&Product) -> Result<bool, String>,
    ) -> Result<Pieces, String> {
        let parts = sparta_kernels::parts(call)?;
        if parts.is_empty() {
            if let Some(pieces) = overrides::pieces(call, device)? {
                return Ok(pieces);
            }
            return match products::pieces(call, device, serves)? {
                Some(pieces) => Ok(pieces),
                None => Pieces::lowered(call, device.bounds),
            };
        }
        let mut all = Pieces::default();
        for (part, operands) in parts {
            all.append(Pieces::of(&part, device, serves)?.within(&operands));
        }
        Ok(all)
    }

    /// The translated kernels for a call.
    pub fn lowered(call: &Call, bounds: Bounds) -> Result<Pieces, String> {
        let lowered = sparta_kernels::lower(call, bounds)?;
        Ok(Pieces { pieces: lowered.steps.into_iter().map(Piece::from).collect(), scratch: lowered.scratch })
    }

    /// The same pieces, with views of numbered operands resolved.
    pub fn within(mut self, operands: &[View]) -> Pieces {
        self.pieces.iter_mut().for_each(|piece| piece.each_view(|view| *view = view.within(operands)));
        self
    }

    /// Appends other pieces; both use the same scratch memory, one after the other.
    pub fn append(&mut self, others: Pieces) {
        self.pieces.extend(others.pieces);
        self.scratch = self.scratch.max(others.scratch);
    }
}

impl Piece {
    fn each_view(&mut self, mut change: impl FnMut(&mut View)) {
        match self {
            Piece::Launch(launch) => launch.arguments.iter_mut().for_each(|argument| {
                if let Argument::Address(view) = argument {
                    change(view);
                }
            }),
            Piece::Copy { from, to } => [from, to].into_iter().for_each(change),
            Piece::Multiply(Multiply { a, b, c, bias, residual, .. }) => {
                [a, b, c].into_iter().chain(bias).chain(residual).for_each(change);
            }
        }
    }
}

impl From<Step> for Piece {
    fn from(step: Step) -> Piece {
        match step {
            Step::Copy { from, to } => Piece::Copy { from, to },
            Step::Dispatch(dispatch) => Piece::Launch(dispatch.into()),
        }
    }
}

impl From<Dispatch> for Launch {
    fn from(dispatch: Dispatch) -> Launch {
        let (x, y) = dispatch.grid(MAX_BLOCKS);
        let rng = dispatch.rng.unwrap_or(View { memory: Memory::Unused, offset: 0, bytes: ALIGNMENT });
        let mut arguments = vec![Argument::Words(dispatch.params), Argument::Address(rng)];
        arguments.extend(dispatch.bindings.into_iter().map(Argument::Address));
        let threads = Threads { block: dispatch.kernel.lanes(), shared: 0 };
        Launch { program: Program::Translated(dispatch.kernel), grid: [x, y, 1], threads, arguments }
    }
}

/// Bytes `from .. to` of an operand.
pub(crate) fn bytes_of(operand: &Operand, from: usize, to: usize) -> View {
    let (memory, base) = match operand.place {
        Place::Arena(offset) => (Memory::Arena, offset),
        Place::External(i) => (Memory::External(i), 0),
    };
    View { memory, offset: base + from, bytes: to - from }
}

/// All of an operand.
pub(crate) fn whole(operand: &Operand) -> View {
    bytes_of(operand, 0, operand.ty.bytes())
}

//! One file per op, with the names of the files in the graph crate. `prepare` takes the pointers that a kernel needs
//! from its checked operands; the returned closure does the work.

use crate::bind::{Io, Kernel};
use crate::real::Real;
use sparta_graph::Op;

mod accumulate;
mod adam;
mod adam_bf16;
mod add;
mod attention;
mod attention_cached;
mod attention_grad;
mod binary;
mod binary_cross_entropy;
mod broadcast;
mod cast;
mod column_sum;
mod columns;
mod concat;
mod cross_entropy;
mod dequantize;
mod div;
mod dropout;
mod embed;
mod fill;
mod gated_act;
mod gather;
mod grad_norm;
mod linear;
mod linear_few;
mod map;
mod moved;
mod mul;
mod own;
mod parts;
mod rms_norm;
mod rope;
mod row_sum;
mod sampled_grad;
mod scale;
mod scale_by;
mod scatter;
mod select_rows;
mod sgd;
mod slice;
mod soft_cap;
mod sparse_linear;
mod squared_error;
mod store;
mod store_rows;
mod transpose;

/// Errors: operands that do not fit in ways that the shape rule does not check.
pub fn prepare<T: Real>(op: &Op, io: &Io) -> Result<Kernel, String> {
    match op {
        Op::Embed(op) => embed::prepare::<T>(op, io),
        Op::EmbedGrad(op) => embed::prepare_grad::<T>(op, io),
        Op::RmsNorm(op) => rms_norm::prepare::<T>(op, io),
        Op::RmsNormGrad(op) => rms_norm::prepare_grad::<T>(op, io),
        Op::RmsNormGradW(op) => rms_norm::prepare_grad_w::<T>(op, io),
        Op::Linear(op) => linear::prepare::<T>(op, io),
        Op::ColumnSum(_) => column_sum::prepare::<T>(io),
        Op::SplitColumns(_) => columns::prepare_split(io),
        Op::JoinColumns(_) => columns::prepare_join(io),
        Op::Rope(op) => rope::prepare::<T>(op, io),
        Op::Attention(op) => attention::prepare::<T>(op, io),
        Op::AttentionCached(op) => attention_cached::prepare::<T>(op, io),
        Op::AttentionDelta(op) => attention_grad::prepare_delta::<T>(op, io),
        Op::AttentionGrad(op) => attention_grad::prepare::<T>(op, io),
        Op::GatedAct(op) => gated_act::prepare::<T>(op, io),
        Op::GatedActGrad(op) => gated_act::prepare_grad::<T>(op, io),
        Op::Add(_) => add::prepare::<T>(io),
        Op::Mul(_) => mul::prepare::<T>(io),
        Op::Div(_) => div::prepare::<T>(io),
        Op::Map(op) => map::prepare::<T>(op, io),
        Op::MapGrad(op) => map::prepare_grad::<T>(op, io),
        Op::RowSum(_) => row_sum::prepare::<T>(io),
        Op::Broadcast(op) => broadcast::prepare::<T>(op, io),
        Op::Transpose(_) => transpose::prepare::<T>(io),
        Op::Slice(op) => slice::prepare::<T>(op, io),
        Op::Unslice(op) => slice::prepare_unslice::<T>(op, io),
        Op::Dequantize(op) => dequantize::prepare::<T>(op, io),
        // The same numbers in the same type.
        Op::Detach(_) => cast::prepare::<T>(io),
        Op::Scale(op) => scale::prepare::<T>(op, io),
        Op::ScaleBy(_) => scale_by::prepare::<T>(io),
        Op::Dropout(op) => dropout::prepare::<T>(op, io),
        Op::SelectRows(_) => select_rows::prepare::<T>(io),
        Op::ScatterRows(op) => select_rows::prepare_scatter::<T>(op, io),
        Op::SoftCap(op) => soft_cap::prepare::<T>(op, io),
        Op::SoftCapGrad(op) => soft_cap::prepare_grad::<T>(op, io),
        Op::CrossEntropy(op) => cross_entropy::prepare::<T>(op, io),
        Op::CrossEntropyGrad(op) => cross_entropy::prepare_grad::<T>(op, io),
        Op::LinearCrossEntropy(_) => parts::prepare::<T>(op, io),
        Op::BinaryCrossEntropy(_) => binary_cross_entropy::prepare::<T>(io),
        Op::BinaryCrossEntropyGrad(_) => binary_cross_entropy::prepare_grad::<T>(io),
        Op::SquaredError(_) => squared_error::prepare::<T>(io),
        Op::SquaredErrorGrad(_) => squared_error::prepare_grad::<T>(io),
        Op::SampledGrad(op) => sampled_grad::prepare::<T>(op, io),
        Op::Gather(_) => gather::prepare::<T>(io),
        Op::Scatter(op) => scatter::prepare::<T>(op, io),
        Op::SparseLinear(op) => sparse_linear::prepare::<T>(op, io),
        Op::Concat(_) => concat::prepare::<T>(io),
        Op::Adam(op) => adam::prepare::<T>(op, io),
        Op::AdamBf16(op) => adam_bf16::prepare::<T>(op, io),
        Op::Sgd(op) => sgd::prepare::<T>(op, io),
        Op::SumOfSquares(op) => grad_norm::prepare::<T>(op, io),
        Op::ClipCoef(op) => grad_norm::prepare_clip::<T>(op, io),
        Op::Accumulate(_) => accumulate::prepare::<T>(io),
        Op::Fill(op) => fill::prepare::<T>(op, io),
        Op::Cast(_) => cast::prepare::<T>(io),
        Op::Store(_) => store::prepare::<T>(io),
        Op::StoreRows(_) => store_rows::prepare::<T>(io),
        Op::Own(op) => own::prepare::<T>(op, io),
    }
}

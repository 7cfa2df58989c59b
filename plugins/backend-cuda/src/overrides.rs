//! Uses the kernels in `kernels/` instead of translated ones where tensor cores make them faster.

use crate::pieces::{Argument, Device, Launch, Piece, Pieces, Program, Written, whole};
use crate::{KernelText, Threads};
use sparta_graph::ops::Attention;
use sparta_graph::{Call, DType, Op};
use sparta_kernels::{Memory, Step, View};

/// The first compute capability with tensor cores for bf16.
pub(crate) const TENSOR_CORES: (u32, u32) = (8, 0);

/// The head sizes of the attention kernels.
const HEAD_DIMS: [usize; 3] = [64, 128, 256];
/// Query or key rows of a block.
const OWN: usize = 64;
/// Blocks that keep a large card busy; the heads of a group are divided into as many parts as that takes.
const BUSY: usize = 256;

const FORWARD_THREADS: u32 = 128;
const GRAD_THREADS: u32 = 256;

/// The pieces of a call that has a kernel here; `None` if translated kernels are used.
pub(crate) fn pieces(call: &Call, device: &Device) -> Result<Option<Pieces>, String> {
    let serves = |op: &Attention| {
        let bf16 = call.inputs.first().is_some_and(|q| q.ty.dtype == DType::BF16 && q.ty.numel() > 0);
        bf16 && device.capability >= TENSOR_CORES && HEAD_DIMS.contains(&op.head_dim)
    };
    match &call.op {
        // Scores and sums use tensor cores, with tiles that are read once for 64 rows.
        Op::Attention(op) if serves(op) => attention(op, call, device).map(Some),
        // The same, with the gradients of a group's heads added in registers.
        Op::AttentionGrad(op) if serves(&op.0) => attention_grad(&op.0, call, device),
        _ => Ok(None),
    }
}

/// All kernels written by hand, each with a label, for tables of what a compiler makes of them.
pub fn written() -> Vec<(String, KernelText)> {
    let attention = HEAD_DIMS.into_iter().flat_map(|head_dim| {
        let (keys, shared) = forward_tile(head_dim);
        let (tile, [q_shared, kv_shared]) = grad_tile(head_dim);
        let kernels = [
            ("o", Written::Attention { head_dim, tile: keys }.text(shared)),
            ("dq", Written::AttentionGradQ { head_dim, tile }.text(q_shared)),
            ("dk and dv", Written::AttentionGradKv { head_dim, tile }.text(kv_shared)),
        ];
        kernels.map(|(sum, text)| (format!("attention by hand in bf16, {sum}, heads of {head_dim}"), text))
    });
    let others = [Written::AttentionGradSum, Written::SampledGather].map(|kernel| {
        let text = kernel.text(0);
        (text.entry.clone(), text)
    });
    attention.chain(others).collect()
}

/// The most dynamic shared memory of a block, by compute capability.
fn most_shared((major, minor): (u32, u32)) -> u32 {
    let kib = match (major, minor) {
        (8, 0 | 7) => 163,
        (9 | 10, _) => 227,
        _ => 99,
    };
    kib << 10
}

/// Key rows of a tile of the forward pass, and the shared memory of its tiles, as in `attention.cu`.
fn forward_tile(head_dim: usize) -> (usize, u32) {
    let keys = if head_dim > 128 { 32 } else { 64 };
    (keys, (2 * (OWN + 2 * keys) * (head_dim + 8)) as u32)
}

/// The same for the gradients: `Q_BYTES` and `KV_BYTES` in `attention_grad.cuh`.
fn grad_tile(head_dim: usize) -> (usize, [u32; 2]) {
    let others = if head_dim > 64 { 32 } else { 64 };
    let tiles = 2 * (2 * OWN + 4 * others) * (head_dim + 8);
    // Of one direction, in bytes.
    let exchange = 4 * others / 8 * 32 * 16;
    (others, [(tiles + 2 * exchange) as u32, (tiles + exchange + 2 * others * 16) as u32])
}

/// The parameters, which are those of the translated kernels, and the random key.
fn lowered_arguments(call: &Call, device: &Device) -> Result<Vec<Argument>, String> {
    match sparta_kernels::lower(call, device.bounds)?.steps.into_iter().next() {
        Some(Step::Dispatch(first)) => {
            let rng = first.rng.ok_or("attention lacks its random key")?;
            Ok(vec![Argument::Words(first.params), Argument::Address(rng)])
        }
        _ => Err("attention has no kernel".into()),
    }
}

fn launch(kernel: Written, blocks: usize, threads: Threads, arguments: Vec<Argument>) -> Piece {
    Piece::Launch(Launch { program: Program::Written(kernel), grid: [blocks as u32, 1, 1], threads, arguments })
}

fn addresses<'o>(operands: impl IntoIterator<Item = &'o sparta_graph::Operand>) -> impl Iterator<Item = Argument> {
    operands.into_iter().map(|operand| Argument::Address(whole(operand)))
}

fn attention(op: &Attention, call: &Call, device: &Device) -> Result<Pieces, String> {
    let (keys, shared) = forward_tile(op.head_dim);
    let mut arguments = lowered_arguments(call, device)?;
    arguments.extend(addresses(call.inputs.iter().take(4).chain(&call.outputs)));
    let blocks = rows(call).div_ceil(OWN) * op.heads;
    let kernel = Written::Attention { head_dim: op.head_dim, tile: keys };
    let threads = Threads { block: FORWARD_THREADS, shared };
    Ok(Pieces { pieces: vec![launch(kernel, blocks, threads, arguments)], scratch: 0 })
}

fn rows(call: &Call) -> usize {
    call.inputs.first().and_then(|q| q.ty.shape.first()).copied().unwrap_or(0)
}

/// `None` if a block has too little shared memory.
fn attention_grad(op: &Attention, call: &Call, device: &Device) -> Result<Option<Pieces>, String> {
    let (tile, [q_shared, kv_shared]) = grad_tile(op.head_dim);
    if q_shared.max(kv_shared) > most_shared(device.capability) {
        return Ok(None);
    }
    let [dq, dk, dv] = &call.outputs[..] else { return Err("expected 3 outputs".into()) };
    let (head_dim, blocks) = (op.head_dim, rows(call).div_ceil(OWN));
    let common = lowered_arguments(call, device)?;
    let inputs: Vec<_> = addresses(call.inputs.iter().take(6)).collect();

    let arguments = [&common[..], &inputs, &[Argument::Address(whole(dq))]].concat();
    let threads = Threads { block: GRAD_THREADS, shared: q_shared };
    let mut pieces = vec![launch(Written::AttentionGradQ { head_dim, tile }, blocks * op.heads, threads, arguments)];

    let (group, kv_blocks) = (op.heads / op.kv_heads, blocks * op.kv_heads);
    let divides = |parts: &usize| group.is_multiple_of(*parts);
    let parts = (1..=group).filter(divides).find(|parts| kv_blocks * parts >= BUSY).unwrap_or(group);
    // Sums of each part in f32.
    let bytes = if parts > 1 { 4 * parts * dk.ty.numel() } else { 0 };
    let sums = [0, 1].map(|i| View { memory: Memory::Scratch, offset: i * bytes, bytes });
    let mut arguments = vec![common[0].clone(), Argument::Words(vec![parts as u32]), common[1].clone()];
    arguments.extend(inputs);
    arguments.extend(addresses([dk, dv]));
    arguments.extend(sums.map(Argument::Address));
    let threads = Threads { block: GRAD_THREADS, shared: kv_shared };
    pieces.push(launch(Written::AttentionGradKv { head_dim, tile }, kv_blocks * parts, threads, arguments));

    for (sum, gradient) in sums.into_iter().zip([dk, dv]).filter(|_| parts > 1) {
        let fours = gradient.ty.numel() / 4;
        let mut arguments = vec![Argument::Words(vec![fours as u32]), Argument::Words(vec![parts as u32])];
        arguments.extend([Argument::Address(sum), Argument::Address(whole(gradient))]);
        let threads = Threads { block: GRAD_THREADS, shared: 0 };
        let blocks = fours.div_ceil(GRAD_THREADS as usize);
        pieces.push(launch(Written::AttentionGradSum, blocks, threads, arguments));
    }
    Ok(Some(Pieces { pieces, scratch: 2 * bytes }))
}

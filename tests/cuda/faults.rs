//! Faults planted in the kernels of attention: the suites find each.

use super::machine::{Emulated, Fault, Options};
use sparta_backend_cuda::CudaBackend;
use sparta_suites::conformance::{AREAS, Case, Judged};
use sparta_suites::{Precision, Subject};

const FAULTS: [Fault; 18] = [
    // A tile is overwritten while others read it, or read before it is there.
    ("attention", "        __syncthreads();\n        load_tile<128>(ks", "        load_tile<128>(ks"),
    ("attention", "copies_done();\n        __syncthreads();", "copies_done();"),
    ("attention", "        copies_done();\n        __syncthreads();", "        __syncthreads();"),
    ("attention_grad_q", "copies_done();\n        __syncthreads();", "copies_done();"),
    ("attention_grad_q", "        copies_done();\n        __syncthreads();", "        __syncthreads();"),
    ("attention_grad_kv", "copies_done();\n        __syncthreads();", "copies_done();"),
    ("attention_grad_kv", "        copies_done();\n        __syncthreads();", "        __syncthreads();"),
    // The exchange between two roles.
    ("attention_grad_q", "        __syncthreads();\n#pragma unroll", "#pragma unroll"),
    ("attention_grad_kv", "        __syncthreads();\n        if (role == 1)", "        if (role == 1)"),
    ("attention_grad_q", "(1 - role) * EXCHANGE", "role * EXCHANGE"),
    // More shared memory than the launch gives.
    ("attention", "SHARED_MEMORY(2 * (TQ", "SHARED_MEMORY(2 * (1 + TQ"),
    // Wrong indices, masks, scales and sums.
    ("attention", "ks + (16 * n + lane % 8", "ks + (16 * n + lane % 4"),
    ("attention", "row - key < p.window;\n                s[n][i]", "row - key <= p.window;\n                s[n][i]"),
    ("attention", "sum[r] *= factor[r];", ""),
    ("attention_grad_q", "first_key(p, spans, q0) / OTHER", "first_key(p, spans, q0 + 1) / OTHER + 1"),
    ("attention_grad_kv", "role ? p.scale : 1.0f", "1.0f"),
    ("attention_grad_kv", "(size_t)part * p.rows", "(size_t)0 * p.rows"),
    ("attention_grad_sum", "part = 1; part < parts", "part = 2; part < parts"),
];

/// The smaller cases that tensor cores are used for, over several blocks.
fn cases() -> Vec<Case> {
    let attention = AREAS.iter().find(|area| area.name == "attention").expect("an area of this name");
    let wanted = [
        "head_dim: 64, scale: 0.125, window: Some(50)",
        "head_dim: 128, scale: 0.088388346, window: None, soft_cap: None, dropout: 0.2",
    ];
    let mut cases = (attention.cases)();
    cases.retain(|case| wanted.iter().any(|part| case.name.contains(part)));
    assert_eq!(cases.len(), wanted.len());
    cases
}

#[test]
fn planted_faults_are_found() {
    if super::subject(0, true).is_none() {
        return;
    }
    let judged = Judged::new(&cases(), Precision::Bf16);
    let finds = |order: i32, fault: Option<Fault>| {
        let options = Options { order, products: true, fault };
        let open = || CudaBackend::new(Box::new(Emulated::new(options)));
        let mut subject = Subject::new(format!("{options:?}"), || Ok(Box::new(open()?)));
        !judged.check(&mut subject).failures.is_empty()
    };
    assert!(![1, 2].into_iter().any(|order| finds(order, None)), "without a fault");
    let missed: Vec<Fault> =
        FAULTS.into_iter().filter(|&fault| ![2, 1].into_iter().any(|order| finds(order, Some(fault)))).collect();
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

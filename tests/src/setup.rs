//! Training sessions on small golden models.

use sparta_core::method::Adaptation;
use sparta_core::model::{Decoder, WeightSource};
use sparta_core::train::layout::{plan_memory, size_of};
use sparta_core::train::{HeadInit, Objective, Optimization, Session, SessionLimits, Setup};
use sparta_graph::Backend;
use std::sync::Arc;

/// Steps on batches of up to four examples and 64 tokens, which may be several micro-batches, with clipping at 1.
pub fn setup(decoder: Decoder, adaptation: Adaptation, objective: Arc<dyn Objective>) -> Setup {
    Setup {
        decoder,
        adaptation,
        objective,
        optimization: Optimization { max_grad_norm: Some(1.0), ..Optimization::default() },
        dropout: 0.0,
        seed: 7,
        head_init: HeadInit::Normal { std: 0.02 },
        limits: SessionLimits {
            train: Some(size_of(64, 4)),
            micro_batches: true,
            shared: false,
            evaluate: size_of(64, 4),
            positions: 16,
            head_features: false,
            batch: 4,
            cache: None,
        },
        recompute: false,
    }
}

pub fn open(device: Box<dyn Backend>, weights: &dyn WeightSource, setup: Setup) -> Session {
    let arena = plan_memory(&setup, &device.info()).unwrap_or_else(|e| panic!("the memory plan: {e}")).arena;
    Session::open(device, weights, setup, &arena).unwrap_or_else(|e| panic!("the session: {e}"))
}

//! Every op, forward and backward.
//!
//! The reference is the CPU backend in f64. It is compared with formulas written again here, and its gradients with
//! differences of its forward pass. A backend is compared with the reference, with itself in a second run and, if it
//! works in place, with shared memory. A new op needs a case in one of the areas.
//!
//! In bf16 the same cases run with their inputs rounded; [`narrow`] has the rule by which they are judged.

mod attention;
pub mod case;
mod check;
mod elementwise;
mod inside;
mod linear;
mod losses;
pub mod naive;
mod narrow;
mod norm;
mod optimizer;
mod own;
mod primitives;
mod quantized;
mod rows;
mod sparse;

pub use case::Case;
pub use check::{Judged, Outcome};

/// Cases that belong together.
pub struct Area {
    pub name: &'static str,
    pub cases: fn() -> Vec<Case>,
}

pub const AREAS: [Area; 11] = [
    Area { name: "matrix products", cases: linear::cases },
    Area { name: "norms and rotations", cases: norm::cases },
    Area { name: "attention", cases: attention::cases },
    Area { name: "elementwise ops", cases: elementwise::cases },
    Area { name: "primitives", cases: primitives::cases },
    Area { name: "plugins' own operations", cases: own::cases },
    Area { name: "rows of tables", cases: rows::cases },
    Area { name: "weights in blocks", cases: quantized::cases },
    Area { name: "losses", cases: losses::cases },
    Area { name: "chosen elements", cases: sparse::cases },
    Area { name: "optimizer steps", cases: optimizer::cases },
];

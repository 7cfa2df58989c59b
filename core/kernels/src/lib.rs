//! The WGSL kernels, and the lowering of a plan's calls to their launches. It knows shapes and limits, but no device
//! API: a backend runs the text as it is (WebGPU) or translates it (SPIR-V, MSL, HLSL, CUDA).
//!
//! For each call of a plan a backend asks [`lower`] for [`Step`]s and runs them in order. A step is a copy of bytes or
//! a [`Dispatch`]: a [`Kernel`], whose text is [`Kernel::source`], its parameters, and the byte ranges that it binds:
//!
//! - binding 0 of group 0: the uniform `Params`, [`Dispatch::params`] as consecutive 32-bit words;
//! - bindings 1, 2, ...: storage, [`Dispatch::bindings`] in order. The text declares those as [`READ`] that it only reads; a
//!   backend that may not bind ranges of one buffer as such and as output of the same dispatch replaces this by
//!   [`READ_WRITE`];
//! - binding [`RNG_BINDING`], where [`Dispatch::rng`] is given: the uniform `vec4<u32>` with the random key.
//!
//! The entry point is `main`, launched with [`Dispatch::grid`] workgroups. Each step sees the writes of earlier steps.

mod lower;
mod own;
mod source;

#[cfg(test)]
mod portable;

pub use lower::{
    Bounds, Choosing, Dispatch, Lowered, MatrixUnits, Memory, Question, Step, Trial, View, check, lower, parts,
    sampled_cost,
};
pub use own::check as check_own;
pub use source::{Constants, Kernel, LANES, READ, READ_WRITE, RNG_BINDING, texts, writes};

//! Plans bound to memory: pieces with kernels loaded, products prepared and addresses known.

use crate::pieces::{Argument, Multiply, Piece, Pieces, Program};
use crate::{Arguments, Factors, Failure, KernelId, Machine, Product, ProductId, Threads};
use sparta_graph::Plan;
use sparta_kernels::{Memory, View};
use std::collections::HashMap;

/// The loaded kernels and prepared products of all plans.
#[derive(Default)]
pub(crate) struct Cache {
    kernels: HashMap<Program, KernelId>,
    /// `None`: the library does not support this form.
    products: HashMap<Product, Option<ProductId>>,
}

impl Cache {
    /// Whether the library supports this form, which is then prepared.
    pub fn serves(&mut self, machine: &mut dyn Machine, form: &Product) -> Result<bool, Failure> {
        if let Some(known) = self.products.get(form) {
            return Ok(known.is_some());
        }
        let product = machine.product(form)?;
        self.products.insert(*form, product);
        Ok(product.is_some())
    }

    /// Loads, together, the kernels of these pieces that are not loaded yet.
    pub fn load(&mut self, machine: &mut dyn Machine, pieces: &[Pieces]) -> Result<(), Failure> {
        let (mut missing, mut texts) = (Vec::new(), Vec::new());
        for piece in pieces.iter().flat_map(|pieces| &pieces.pieces) {
            if let Piece::Launch(launch) = piece
                && !self.kernels.contains_key(&launch.program)
                && !missing.contains(&launch.program)
            {
                texts.push(launch.text().map_err(Failure::Other)?);
                missing.push(launch.program.clone());
            }
        }
        self.kernels.extend(missing.into_iter().zip(machine.load(&texts)?));
        Ok(())
    }
}

/// The addresses of a plan's memory.
pub(crate) struct Addresses<'p> {
    pub plan: &'p Plan,
    /// Of each segment.
    pub arena: Vec<u64>,
    /// Of each external tensor.
    pub externals: Vec<u64>,
    pub scratch: u64,
    pub unused: u64,
}

impl Addresses<'_> {
    /// The address of a view; 0 for memory that does not exist, which checked plans do not use.
    fn of(&self, view: &View) -> u64 {
        let (base, offset) = match view.memory {
            Memory::Arena => {
                let (segment, offset) = self.plan.locate(view.offset);
                (self.arena.get(segment), offset)
            }
            Memory::External(i) => (self.externals.get(i), view.offset),
            Memory::Scratch => (Some(&self.scratch), view.offset),
            Memory::Unused => (Some(&self.unused), 0),
        };
        base.map_or(0, |base| base + offset as u64)
    }
}

/// A piece ready to run.
pub(crate) enum Step {
    Launch { kernel: KernelId, grid: [u32; 3], threads: Threads, arguments: Arguments },
    Copy { from: u64, to: u64, bytes: usize },
    Multiply { product: ProductId, factors: Factors },
}

impl Step {
    /// Errors: a kernel that is not loaded, or a product that is not prepared.
    pub fn new(piece: &Piece, addresses: &Addresses, cache: &Cache) -> Result<Step, String> {
        match piece {
            Piece::Copy { from, to } => {
                Ok(Step::Copy { from: addresses.of(from), to: addresses.of(to), bytes: to.bytes })
            }
            Piece::Launch(launch) => {
                let kernel = *cache.kernels.get(&launch.program).ok_or("a kernel is not loaded")?;
                let mut arguments = Arguments::default();
                for argument in &launch.arguments {
                    match argument {
                        Argument::Words(words) => arguments.words(words),
                        Argument::Address(view) => arguments.address(addresses.of(view)),
                    }
                }
                Ok(Step::Launch { kernel, grid: launch.grid, threads: launch.threads, arguments })
            }
            Piece::Multiply(Multiply { form, a, b, c, bias, residual, scale }) => {
                let product = cache.products.get(form).copied().flatten().ok_or("a product is not prepared")?;
                let optional = |view: &Option<View>| view.as_ref().map_or(0, |view| addresses.of(view));
                let [a, b, c] = [a, b, c].map(|view| addresses.of(view));
                let factors = Factors { a, b, c, bias: optional(bias), residual: optional(residual), scale: *scale };
                Ok(Step::Multiply { product, factors })
            }
        }
    }

    pub fn run(&mut self, machine: &mut dyn Machine) -> Result<(), Failure> {
        // SAFETY: the lowering and `products` make arguments that stay within the operands of a call, which lie in
        // buffers whose sizes `prepare` has checked, and within scratch memory as large as they ask for. Kernels
        // compare what comes from data with the operands.
        unsafe {
            match self {
                Step::Launch { kernel, grid, threads, arguments } => {
                    machine.launch(*kernel, *grid, *threads, arguments)
                }
                Step::Copy { from, to, bytes } => machine.copy(*from, *to, *bytes),
                Step::Multiply { product, factors } => machine.multiply(*product, factors),
            }
        }
    }
}

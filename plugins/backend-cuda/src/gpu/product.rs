//! Products from cuBLASLt. It stores matrices by column, so our matrices, stored by row, are transposed for it: it
//! computes `c^T = op(b)^T op(a)^T`.

use super::driver::TO_HAVE_MEMORY;
use super::tune::Tuner;
use super::{CONTEXT, Session};
use crate::libraries::{Part, Search, functions};
use crate::machine::{Factors, Failure, Matrix, Product, ProductId};
use sparta_graph::DType;
use sparta_graph::ops::Layout;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

type Code = c_int;
/// Descriptors, layouts, preferences and the library's handle are all opaque.
type Handle = *mut c_void;

functions! {
    /// The functions of libcublasLt, as declared in `cublasLt.h`. The newest is from CUDA 11.4.
    struct Functions {
        cublasLtGetVersion: fn() -> usize;
        cublasLtGetStatusString: fn(Code) -> *const c_char;
        cublasLtCreate: fn(*mut Handle) -> Code;
        cublasLtDestroy: fn(Handle) -> Code;
        cublasLtMatmulDescCreate: fn(*mut Handle, c_int, c_int) -> Code;
        cublasLtMatmulDescDestroy: fn(Handle) -> Code;
        cublasLtMatmulDescSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Code;
        cublasLtMatrixLayoutCreate: fn(*mut Handle, c_int, u64, u64, i64) -> Code;
        cublasLtMatrixLayoutDestroy: fn(Handle) -> Code;
        cublasLtMatmulPreferenceCreate: fn(*mut Handle) -> Code;
        cublasLtMatmulPreferenceDestroy: fn(Handle) -> Code;
        cublasLtMatmulPreferenceSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Code;
        cublasLtMatmulAlgoGetHeuristic: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int
        ) -> Code;
        cublasLtMatmul: fn(
            Handle, Handle, *const f32, *const c_void, Handle, *const c_void, Handle, *const f32, *const c_void, Handle,
            *mut c_void, Handle, *const Algorithm, *mut c_void, usize, Handle
        ) -> Code;
    }
}

/// `cublasLtMatmulAlgo_t`: opaque, but valid wherever the same version of cuBLASLt runs on the same card.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithm {
    pub data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Code,
    waves: f32,
    reserved: [c_int; 4],
}

const ALLOC_FAILED: Code = 3;
const NOT_SUPPORTED: Code = 15;

/// How many algorithms cuBLASLt is asked for.
const CANDIDATES: usize = 8;

/// `CUBLAS_COMPUTE_32F`: sums in f32, and no rounding of f32 factors.
const COMPUTE_32F: c_int = 68;
/// `CUBLAS_COMPUTE_32F_FAST_TF32`: the same, with f32 factors rounded to TF32.
const COMPUTE_TF32: c_int = 77;
/// `cudaDataType_t`.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
/// `cublasLtMatmulDescAttributes_t`.
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
/// `cublasLtEpilogue_t`: a bias of the output's type, one value for each column of the row-major output.
const EPILOGUE_BIAS: u32 = 4;
/// `cublasLtMatmulPreferenceAttributes_t`.
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
const PREF_MIN_ALIGNMENT_BYTES: [c_int; 4] = [5, 6, 7, 8];
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: if the inner dimension is split, the parts stay f32 and are added in
/// order. The other schemes round the parts or add them in any order.
const REDUCTION_IN_F32: u32 = 2;

/// The alignment that [`Factors`] guarantee for addresses.
const ALIGNMENT: u32 = 16;

/// Bytes that products may use while they run: what NVIDIA recommends for its largest cards.
const WORKSPACE: usize = 32 << 20;

/// cuBLASLt.
pub struct CublasLt {
    functions: Functions,
}

impl CublasLt {
    /// Opens the newest version up to CUDA `major`.
    ///
    /// Errors: what is missing and how to get it.
    pub fn open(search: &Search, major: u32) -> Result<CublasLt, String> {
        Ok(CublasLt { functions: Functions::of(search.open(Part::CublasLt, major)?)? })
    }

    /// `cuBLASLt 13.0.2`.
    pub fn title(&self) -> String {
        // SAFETY: it takes nothing and returns a number.
        let version = unsafe { (self.functions.cublasLtGetVersion)() };
        format!("cuBLASLt {}.{}.{}", version / 10000, version / 100 % 100, version % 100)
    }

    fn check(&self, call: &str, code: Code) -> Result<(), Failure> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: cuBLASLt returns one of its own texts for every code.
        let text = unsafe { (self.functions.cublasLtGetStatusString)(code) };
        // SAFETY: the text ends with a zero and lives as long as the library.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        Err(Failure::Other(format!("{call}: {} ({code})", text.unwrap_or_else(|| "error".into()))))
    }

    fn object(
        &self,
        call: &str,
        destroy: unsafe extern "C" fn(Handle) -> Code,
        make: impl FnOnce(*mut Handle) -> Code,
    ) -> Result<Object, Failure> {
        let mut handle = ptr::null_mut();
        self.check(call, make(&mut handle))?;
        Ok(Object { handle, destroy })
    }
}

/// One of cuBLASLt's opaque objects, destroyed on drop.
struct Object {
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Code,
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the object was made and is destroyed once. Its result no longer matters.
        unsafe { (self.destroy)(self.handle) };
    }
}

/// cuBLASLt in a context, with the prepared forms of products.
pub struct Products {
    library: Arc<CublasLt>,
    forms: Vec<Form>,
    workspace: u64,
    /// Chooses algorithms by time; `None`: the one that cuBLASLt expects to be fastest.
    tuner: Option<Tuner>,
    handle: Object,
}

struct Form {
    product: Product,
    operation: Object,
    /// cuBLASLt's A, which is our `b`.
    a: Object,
    b: Object,
    c: Object,
    /// What is used comes first; the others are tried if cuBLASLt refuses it.
    algorithms: Vec<Algorithm>,
}

impl Products {
    /// Creates a handle in the current context.
    pub fn new(library: Arc<CublasLt>, session: &Session, tuner: Option<Tuner>) -> Result<Products, Failure> {
        let (functions, mut code) = (&library.functions, 0);
        let handle = library.object("cublasLtCreate", functions.cublasLtDestroy, |handle| {
            // SAFETY: the pointer is to a live local.
            code = unsafe { (functions.cublasLtCreate)(handle) };
            code
        });
        if code == ALLOC_FAILED {
            return Err(Failure::OutOfMemory { bytes: CONTEXT });
        }
        let (handle, workspace) = (handle?, session.alloc(WORKSPACE)?);
        Ok(Products { library, forms: Vec::new(), workspace, tuner, handle })
    }

    /// Chooses an algorithm for a form.
    pub fn prepare(&mut self, session: &Session, product: &Product) -> Result<Option<ProductId>, Failure> {
        let Some(mut form) = self.form(product)? else { return Ok(None) };
        if let Some(tuner) = &self.tuner {
            let mut run = |algorithm: &Algorithm, factors: &Factors| -> Result<bool, Failure> {
                form.set_bias(&self.library, factors.bias)?;
                // SAFETY: the tuner has allocated the factors of this form.
                Ok(unsafe { self.start(session, &form, algorithm, factors) } == 0)
            };
            let chosen = tuner.choose(session, product, &form.algorithms, &mut run)?;
            form.algorithms.retain(|other| *other != chosen);
            form.algorithms.insert(0, chosen);
        }
        self.forms.push(form);
        Ok(Some(ProductId(self.forms.len() - 1)))
    }

    fn form(&self, product: &Product) -> Result<Option<Form>, Failure> {
        // The bias of a 16-bit result might be added after a rounding.
        let other_bias = product.bias && product.c.dtype != DType::F32;
        if product.a.dtype != product.b.dtype || other_bias || product.m * product.n * product.k == 0 {
            return Ok(None);
        }
        let (m, n, k) = (product.m as u64, product.n as u64, product.k as u64);
        let (a_shape, b_shape) = match product.layout {
            Layout::Nt => ((m, k), (n, k)),
            Layout::Nn => ((m, k), (k, n)),
            Layout::Tn => ((k, m), (k, n)),
        };
        let operation = self.operation(product)?;
        let a = self.layout(product.b, b_shape)?;
        let b = self.layout(product.a, a_shape)?;
        let c = self.layout(product.c, (m, n))?;
        let algorithms = self.algorithms(&operation, [&a, &b, &c])?;
        Ok((!algorithms.is_empty()).then_some(Form { product: *product, operation, a, b, c, algorithms }))
    }

    fn operation(&self, product: &Product) -> Result<Object, Failure> {
        let functions = &self.library.functions;
        let compute = if product.tf32 { COMPUTE_TF32 } else { COMPUTE_32F };
        let operation =
            self.library.object("cublasLtMatmulDescCreate", functions.cublasLtMatmulDescDestroy, |operation| {
                // SAFETY: the pointer is to a live local.
                unsafe { (functions.cublasLtMatmulDescCreate)(operation, compute, R_32F) }
            })?;
        let set = |attribute, value: u32| {
            let value = (&raw const value).cast();
            // SAFETY: the attributes set here are of 4 bytes, and the value is copied.
            let set = unsafe {
                (functions.cublasLtMatmulDescSetAttribute)(operation.handle, attribute, value, size_of::<u32>())
            };
            self.library.check(&format!("cublasLtMatmulDescSetAttribute {attribute}"), set)
        };
        set(DESC_TRANSA, u32::from(product.layout == Layout::Nt))?;
        set(DESC_TRANSB, u32::from(product.layout == Layout::Tn))?;
        if product.bias {
            set(DESC_EPILOGUE, EPILOGUE_BIAS)?;
        }
        Ok(operation)
    }

    /// The layout of one of our matrices, whose rows are cuBLASLt's columns.
    fn layout(&self, matrix: Matrix, (rows, columns): (u64, u64)) -> Result<Object, Failure> {
        let functions = &self.library.functions;
        let dtype = match matrix.dtype {
            DType::F32 => R_32F,
            DType::BF16 => R_16BF,
            DType::F16 => R_16F,
            other => return Err(Failure::Other(format!("no products of {other}"))),
        };
        let stride = i64::try_from(matrix.stride).unwrap_or(i64::MAX);
        self.library.object("cublasLtMatrixLayoutCreate", functions.cublasLtMatrixLayoutDestroy, |layout| {
            // SAFETY: the pointer is to a live local.
            unsafe { (functions.cublasLtMatrixLayoutCreate)(layout, dtype, columns, rows, stride) }
        })
    }

    /// The algorithms that cuBLASLt has for a form, the one that it expects to be fastest first.
    fn algorithms(&self, operation: &Object, [a, b, c]: [&Object; 3]) -> Result<Vec<Algorithm>, Failure> {
        let (library, functions) = (&self.library, &self.library.functions);
        let destroy = functions.cublasLtMatmulPreferenceDestroy;
        let preference = library.object("cublasLtMatmulPreferenceCreate", destroy, |preference| {
            // SAFETY: the pointer is to a live local.
            unsafe { (functions.cublasLtMatmulPreferenceCreate)(preference) }
        })?;
        let set = |attribute, value: &[u8]| {
            let (value, bytes) = (value.as_ptr().cast(), value.len());
            // SAFETY: the value has as many bytes as the attribute, and is copied.
            let set =
                unsafe { (functions.cublasLtMatmulPreferenceSetAttribute)(preference.handle, attribute, value, bytes) };
            library.check(&format!("cublasLtMatmulPreferenceSetAttribute {attribute}"), set)
        };
        set(PREF_MAX_WORKSPACE_BYTES, &WORKSPACE.to_ne_bytes())?;
        set(PREF_REDUCTION_SCHEME_MASK, &REDUCTION_IN_F32.to_ne_bytes())?;
        for attribute in PREF_MIN_ALIGNMENT_BYTES {
            set(attribute, &ALIGNMENT.to_ne_bytes())?;
        }
        let (mut found, mut count) = ([Heuristic::default(); CANDIDATES], 0);
        // SAFETY: the objects were made and live, and there is place for as many algorithms as are asked for.
        let asked = unsafe {
            (functions.cublasLtMatmulAlgoGetHeuristic)(
                self.handle.handle,
                operation.handle,
                a.handle,
                b.handle,
                c.handle,
                c.handle,
                preference.handle,
                CANDIDATES as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if asked == NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        library.check("cublasLtMatmulAlgoGetHeuristic", asked)?;
        let count = usize::try_from(count).unwrap_or(0);
        Ok(found.iter().take(count).filter(|found| found.state == 0).map(|found| found.algorithm).collect())
    }

    /// Queues a product. An algorithm that cuBLASLt refuses is replaced by the next one, in all later runs, too.
    ///
    /// # Safety
    /// The factors are those of the prepared form, in memory of the device.
    pub unsafe fn multiply(&mut self, session: &Session, id: ProductId, factors: &Factors) -> Result<(), Failure> {
        let missing = || Failure::Other("no such product".into());
        let form = self.forms.get(id.0).ok_or_else(missing)?;
        form.set_bias(&self.library, factors.bias)?;
        let mut refused = 0;
        let done = loop {
            let Some(algorithm) = form.algorithms.get(refused) else { break NOT_SUPPORTED };
            // SAFETY: the caller vouches for the factors.
            match unsafe { self.start(session, form, algorithm, factors) } {
                NOT_SUPPORTED => refused += 1,
                code => break code,
            }
        };
        if let Err(failure) = self.library.check("cublasLtMatmul", done) {
            let advice = if done == ALLOC_FAILED { format!("; {TO_HAVE_MEMORY}") } else { String::new() };
            let said = format!("{} for {}{advice}", failure.reason(), form.title(factors, refused));
            // If the context is broken, the driver knows why. That a recording cannot wait is no reason.
            return Err(match session.wait() {
                Err(lost @ Failure::Lost(_)) => lost,
                _ => Failure::Other(said),
            });
        }
        self.forms.get_mut(id.0).ok_or_else(missing)?.algorithms.drain(..refused);
        Ok(())
    }

    /// # Safety
    /// As for `multiply`.
    unsafe fn start(&self, session: &Session, form: &Form, algorithm: &Algorithm, factors: &Factors) -> Code {
        let residual = form.product.residual;
        let (added, beta) = if residual { (factors.residual, 1f32) } else { (factors.c, 0f32) };
        let address = |address: u64| address as *mut c_void;
        // SAFETY: the caller vouches for the factors; all objects were made and live, and the two numbers are read
        // before it returns.
        unsafe {
            (self.library.functions.cublasLtMatmul)(
                self.handle.handle,
                form.operation.handle,
                &factors.scale,
                address(factors.b),
                form.a.handle,
                address(factors.a),
                form.b.handle,
                &beta,
                address(added),
                form.c.handle,
                address(factors.c),
                form.c.handle,
                algorithm,
                address(self.workspace),
                WORKSPACE,
                session.stream,
            )
        }
    }
}

impl Form {
    fn set_bias(&self, library: &CublasLt, bias: u64) -> Result<(), Failure> {
        if !self.product.bias {
            return Ok(());
        }
        let (bias, bytes) = ((&raw const bias).cast(), size_of::<u64>());
        // SAFETY: the attribute is an address of 8 bytes, which is copied.
        let set = unsafe {
            (library.functions.cublasLtMatmulDescSetAttribute)(self.operation.handle, DESC_BIAS_POINTER, bias, bytes)
        };
        library.check("cublasLtMatmulDescSetAttribute of the bias", set)
    }

    /// The product for messages: sizes, types, strides and alignments, all that cuBLASLt's requirements are about.
    fn title(&self, factors: &Factors, refused: usize) -> String {
        let Product { layout, m, n, k, a, b, c, bias, residual, tf32 } = self.product;
        let matrix = |name, matrix: Matrix, address: u64| {
            let aligned = if address == 0 { 0 } else { 1u64 << address.trailing_zeros().min(8) };
            format!("{name} {} stride {} at a multiple of {aligned}", matrix.dtype, matrix.stride)
        };
        let mut parts = vec![format!("{layout:?} {m}x{n}x{k}{}", if tf32 { " in TF32" } else { "" })];
        parts.extend([matrix("a", a, factors.a), matrix("b", b, factors.b), matrix("c", c, factors.c)]);
        parts.extend(bias.then(|| matrix("bias", Matrix { dtype: DType::F32, stride: n }, factors.bias)));
        parts.extend(residual.then(|| matrix("residual", c, factors.residual)));
        let count = self.algorithms.len();
        let algorithm = self.algorithms.get(refused).map_or(String::new(), |used| format!(" {:x?}", used.data));
        parts.push(format!("algorithm {} of {count}{algorithm}", (refused + 1).min(count)));
        parts.join(", ")
    }
}

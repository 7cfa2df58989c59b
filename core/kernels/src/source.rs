//! The kernels' WGSL, embedded.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A kernel with its specialisation constants. Two equal kernels have the same text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The name of its file in `shaders/`.
    pub name: &'static str,
    pub constants: Constants,
    /// The whole text of a plugin's kernel, which keeps its bounds checks.
    pub own: Option<Arc<str>>,
}

/// Names and values of the `u32` constants before a kernel's text.
pub type Constants = Vec<(&'static str, u32)>;

impl Kernel {
    /// One of the files in `shaders/`.
    pub fn new(name: &'static str, constants: Constants) -> Self {
        Kernel { name, constants, own: None }
    }

    /// Threads of a workgroup: the constant `LANES`, which every kernel has.
    pub fn lanes(&self) -> u32 {
        self.constants.iter().find(|(name, _)| *name == "LANES").map_or(LANES, |(_, lanes)| *lanes)
    }

    /// The complete WGSL: constants, shared files, the kernel's own file. The files are Jinja templates with the
    /// constants as variables, so that loops over registers are unrolled in the text.
    ///
    /// Errors: no shader of this name; a text that is not a valid template.
    pub fn source(&self) -> Result<String, String> {
        if let Some(own) = &self.own {
            return Ok(own.to_string());
        }
        let mut constants = self.constants.clone();
        if !constants.iter().any(|(name, _)| *name == "LANES") {
            constants.push(("LANES", LANES));
        }
        let units = constants.iter().any(|(name, _)| *name == "UNITS");
        let mut text = String::from(if units { "enable f16;\nenable wgpu_cooperative_matrix;\n" } else { "" });
        for (name, value) in &constants {
            text += &format!("const {name}: u32 = {value}u;\n");
        }
        let mut template = String::new();
        for file in shared(self.name, units).iter().chain([&self.name]) {
            template += shader(file).ok_or_else(|| format!("there is no shader `{file}`"))?;
        }
        let variables: BTreeMap<_, _> = constants.into_iter().collect();
        let rendered = minijinja::Environment::new().render_str(&template, variables);
        Ok(text + &rendered.map_err(|e| format!("kernel `{}`: {e:#}", self.name))?)
    }
}

/// How a text declares storage that it only reads, and other storage.
pub const READ: &str = "var<storage, read>";
pub const READ_WRITE: &str = "var<storage, read_write>";

/// Whether a kernel's text writes each of its storage bindings, from 1 on.
pub fn writes(text: &str, storage: usize) -> Vec<bool> {
    (1..=storage).map(|binding| text.contains(&format!("@binding({binding}) {READ_WRITE}"))).collect()
}

/// The texts of all files, of which kernels are made.
pub fn texts() -> impl Iterator<Item = &'static str> {
    SHADERS.iter().filter_map(|name| shader(name))
}

/// Threads of a workgroup, unless a kernel sets a different number.
pub const LANES: u32 = 256;

/// The binding of the random key in kernels that read one.
pub const RNG_BINDING: u32 = 9;

macro_rules! shaders {
    ($($name:literal),+ $(,)?) => {
        /// The text of a file in `shaders/`.
        pub(crate) fn shader(name: &str) -> Option<&'static str> {
            match name {
                $($name => Some(include_str!(concat!("../../../shaders/", $name, ".wgsl"))),)+
                _ => None,
            }
        }

        pub(crate) const SHADERS: &[&str] = &[$($name),+];
    };
}

shaders!(
    "prelude",
    "accumulate",
    "activation",
    "adam",
    "adam_bf16",
    "add",
    "attention",
    "attention_cached",
    "attention_delta",
    "attention_grad_kv",
    "attention_grad_q",
    "attention_grad_sum",
    "attention_grad_tile",
    "attention_half",
    "attention_params",
    "attention_tile",
    "attention_units",
    "binary",
    "binary_cross_entropy",
    "binary_cross_entropy_grad",
    "cast",
    "clip_coef",
    "column_sum",
    "column_sums",
    "columns",
    "concat",
    "cross_entropy",
    "cross_entropy_grad",
    "dequantize",
    "div",
    "dropout",
    "element_loss",
    "element_loss_grad",
    "embed",
    "embed_grad",
    "fill",
    "gated_act",
    "gated_act_grad",
    "gather",
    "linear",
    "linear_output",
    "linear_small",
    "linear_sum",
    "loss_sum",
    "magnitude",
    "map",
    "map_grad",
    "moved",
    "mul",
    "product",
    "product_operands",
    "product_params",
    "product_partial",
    "product_units",
    "rms_norm",
    "rms_norm_grad",
    "rms_norm_grad_w",
    "rope",
    "row_sum",
    "sampled_grad",
    "sampled_grad_sum",
    "sampled_grad_tiled",
    "scale",
    "scale_by",
    "scatter",
    "scatter_rows",
    "sgd",
    "soft_cap",
    "soft_cap_grad",
    "sparse_linear",
    "squared_error",
    "squared_error_grad",
    "sum_of_squares",
    "units",
    "vectors",
);

/// Files that come before a kernel's own.
fn shared(name: &str, units: bool) -> &'static [&'static str] {
    match name {
        "attention" => &["prelude", "attention_params", "attention_tile"],
        "attention_grad_q" | "attention_grad_kv" => {
            &["prelude", "attention_params", "attention_tile", "attention_grad_tile"]
        }
        "attention_cached" => &["prelude", "attention_params"],
        "attention_half" => &["prelude", "units"],
        "attention_units" => &["prelude", "units", "attention_params"],
        "binary_cross_entropy" | "squared_error" => &["prelude", "element_loss"],
        "binary_cross_entropy_grad" | "squared_error_grad" => &["prelude", "element_loss_grad"],
        "gated_act" | "gated_act_grad" => &["prelude", "vectors", "activation"],
        "linear" if units => {
            &["prelude", "units", "product_params", "product_operands", "product_units", "linear_output"]
        }
        "linear" => &["prelude", "product_params", "product_operands", "product", "linear_output"],
        "linear_small" | "linear_sum" => &["prelude", "product_params", "linear_output"],
        "product_partial" | "sampled_grad_tiled" if units => {
            &["prelude", "units", "product_params", "product_operands", "product_units"]
        }
        "product_partial" | "sampled_grad_tiled" => &["prelude", "product_params", "product_operands", "product"],
        "sampled_grad_sum" => &["prelude", "product_params"],
        "add" | "div" | "mul" => &["prelude", "vectors", "binary"],
        "column_sum" | "rms_norm_grad_w" => &["prelude", "vectors", "column_sums"],
        _ => &["prelude", "vectors"],
    }
}

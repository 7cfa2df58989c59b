use super::*;

/// An operation that a plugin defines as a subgraph. Inputs and outputs: those of the subgraph.
///
/// A device runs the plugin's kernel if it supports its kind ([`crate::DeviceInfo::own_kernels`]) and all tensors are
/// f32; otherwise the plan contains the subgraph ([`crate::expand()`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Own(pub Box<OwnOp>);

/// What a plugin declares about its operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnOp {
    /// For messages.
    pub name: String,
    /// Names of the inputs and the outputs: distinct words, which are the names of variables in kernels.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// What it computes.
    pub body: Body,
    /// Its gradient; without it, that of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient: Option<GradientRule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wgsl: Option<Wgsl>,
    /// It crosses to a backend plugin beside the plan, never in its JSON form.
    #[serde(skip)]
    pub function: Option<CpuFunction>,
}

/// Operations on numbered values: the inputs come first, then the outputs of each call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Body {
    pub calls: Vec<BodyCall>,
    /// The values that are its outputs.
    pub outputs: Vec<u32>,
}

/// One operation of a [`Body`]: none of a plugin's own, and none that writes in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BodyCall {
    pub op: Op,
    pub inputs: Vec<u32>,
}

/// A gradient that is not computed by differentiating the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradientRule {
    /// Positions of the inputs that have a gradient.
    pub of: Vec<u32>,
    /// From the inputs, the outputs and the gradients of the outputs, in this order, to the gradients of `of`.
    pub body: Body,
    /// Whether it is deliberately not the derivative (a straight-through estimator), and so is not compared with finite
    /// differences.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straight_through: bool,
}

/// A kernel in WGSL: a text that declares `fn kernel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wgsl {
    pub text: String,
    #[serde(default)]
    pub launch: Launch,
    /// Threads of a workgroup, 1 to 256.
    #[serde(default = "lanes")]
    pub lanes: u32,
}

fn lanes() -> u32 {
    64
}

/// What `fn kernel` is called for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launch {
    /// `kernel(i: u32)`, once for each element of the first output.
    #[default]
    Elements,
    /// `kernel(row: u32, lane: u32)`, by a workgroup for each row of the first output.
    Rows,
}

/// A kernel that a device may take in place of the subgraph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnKernel {
    Wgsl,
    Function,
}

/// A tensor that a [`CpuFunction`] gets.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawTensor {
    /// Its elements, row by row.
    pub data: *mut f32,
    pub shape: *const u64,
    pub rank: usize,
}

/// Computes an operation's outputs on f32; anything but 0 is a failure.
pub type OwnFunction = unsafe extern "C" fn(
    inputs: *const RawTensor,
    input_count: usize,
    outputs: *const RawTensor,
    output_count: usize,
) -> i32;

/// A function of a plugin that computes its operation on the CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuFunction(OwnFunction);

impl CpuFunction {
    /// # Safety
    /// The function may be called from any thread, with non-overlapping tensors of the operation: it only reads the
    /// inputs, writes the outputs within their shapes, keeps no pointer, does not unwind, and stays loaded.
    pub unsafe fn new(function: OwnFunction) -> Self {
        CpuFunction(function)
    }

    pub fn raw(self) -> OwnFunction {
        self.0
    }
}

impl PartialEq for CpuFunction {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

/// More operations than one body may have.
const MOST: usize = 1000;

impl Body {
    /// The types of its values, inputs first, or why these inputs do not fit.
    fn types(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if self.calls.len() > MOST {
            return Err(format!("{} operations, at most {MOST} are allowed", self.calls.len()));
        }
        let mut types: Vec<TensorType> = inputs.iter().map(|&ty| ty.clone()).collect();
        for (i, BodyCall { op, inputs }) in self.calls.iter().enumerate() {
            let wrong = |reason: String| format!("operation {i}, {}: {reason}", op.name());
            if matches!(op, Op::Own(_)) || !op.writes().is_empty() {
                return Err(wrong("a subgraph cannot have it".into()));
            }
            let given = inputs.iter().map(|&v| value(&types, v)).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
            let made = op.infer(&given).map_err(wrong)?;
            types.extend(made);
        }
        Ok(types)
    }

    /// The types of its outputs, or why these inputs do not fit.
    pub fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let types = self.types(inputs)?;
        let output = |&v: &u32| value(&types, v).cloned().map_err(|reason| format!("its output: {reason}"));
        self.outputs.iter().map(output).collect()
    }

    /// Adds its operations to a graph and returns its outputs.
    ///
    /// Errors: inputs that do not fit.
    pub fn inline(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let known = |values: &[Value], v: u32| values.get(v as usize).copied().ok_or(GraphError::UnknownValue(v));
        let mut values = inputs.to_vec();
        for BodyCall { op, inputs } in &self.calls {
            let inputs = inputs.iter().map(|&v| known(&values, v)).collect::<Result<Vec<_>, _>>()?;
            let outputs = graph.apply(op.clone(), &inputs)?;
            values.extend(outputs);
        }
        self.outputs.iter().map(|&v| known(&values, v)).collect()
    }

    fn flops(&self, inputs: &[&TensorType]) -> u64 {
        let Ok(types) = self.types(inputs) else { return 0 };
        let mut made = inputs.len();
        let one = |BodyCall { op, inputs }: &BodyCall| {
            let given: Vec<&TensorType> = inputs.iter().map(|&v| &types[v as usize]).collect();
            let count = op.infer(&given).map_or(0, |outputs| outputs.len());
            let outputs: Vec<&TensorType> = types[made..made + count].iter().collect();
            made += count;
            op.flops(&given, &outputs)
        };
        self.calls.iter().map(one).sum()
    }
}

fn value(types: &[TensorType], v: u32) -> Result<&TensorType, String> {
    types.get(v as usize).ok_or_else(|| format!("there is no value {v}, only {} so far", types.len()))
}

impl OwnOp {
    /// Whether a kernel of this kind can run it.
    pub fn runs(&self, kernel: OwnKernel, operands: &[&TensorType]) -> bool {
        let there = match kernel {
            OwnKernel::Wgsl => self.wgsl.is_some(),
            OwnKernel::Function => self.function.is_some(),
        };
        there && operands.iter().all(|ty| ty.dtype == DType::F32)
    }

    fn check_names(&self) -> Result<(), String> {
        let all: Vec<&String> = self.inputs.iter().chain(&self.outputs).collect();
        let word = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.len() <= 64
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if let Some(name) = std::iter::once(&self.name).chain(all.iter().copied()).find(|name| !word(name)) {
            return Err(format!("the name `{name}` is not a word"));
        }
        match all.iter().enumerate().find(|(i, name)| all[..*i].contains(name)) {
            Some((_, name)) => Err(format!("two operands are called `{name}`")),
            None => Ok(()),
        }
    }

    fn check_rule(&self, inputs: &[&TensorType], outputs: &[TensorType]) -> Result<(), String> {
        let Some(rule) = &self.gradient else { return Ok(()) };
        let given: Vec<&TensorType> = inputs.iter().copied().chain(outputs).chain(outputs).collect();
        let gradients = rule.body.infer(&given)?;
        if gradients.len() != rule.of.len() {
            return Err(format!("{} gradients of {} inputs", gradients.len(), rule.of.len()));
        }
        for (&of, gradient) in rule.of.iter().zip(&gradients) {
            let input = inputs.get(of as usize).ok_or_else(|| format!("there is no input {of}"))?;
            activation(gradient, "a gradient")?;
            shape(gradient, &format!("the gradient of `{}`", self.inputs[of as usize]), &input.shape)?;
        }
        Ok(())
    }
}

impl Operation for Own {
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let op = &self.0;
        let named = |reason: String| format!("`{}`: {reason}", op.name);
        op.check_names().map_err(named)?;
        count(inputs, op.inputs.len()..=op.inputs.len()).map_err(named)?;
        let outputs = op.body.infer(inputs).map_err(named)?;
        if outputs.len() != op.outputs.len() || outputs.is_empty() {
            return Err(named(format!("it names {} outputs and has {}", op.outputs.len(), outputs.len())));
        }
        if let Some(Wgsl { lanes, .. }) = op.wgsl
            && !(1..=256).contains(&lanes)
        {
            return Err(named(format!("its kernel has workgroups of {lanes} threads, expected 1 to 256")));
        }
        op.check_rule(inputs, &outputs).map_err(|reason| named(format!("its gradient: {reason}")))?;
        Ok(outputs)
    }

    fn grad(&self, ctx: &mut GradCtx, node: &Node, grads: &[Option<Value>]) -> Result<(), GraphError> {
        let Some(rule) = &self.0.gradient else { return ctx.through(&self.0.body, node, grads) };
        let wanted = |&v: &Value| ctx.needs(v);
        let covered = |i: usize| rule.of.contains(&(i as u32));
        if let Some(input) = (0..node.inputs.len()).find(|&i| wanted(&node.inputs[i]) && !covered(i)) {
            return Err(GraphError::NotDifferentiable { op: "own", input });
        }
        let mut values = [&node.inputs[..], &node.outputs].concat();
        for (&output, &grad) in node.outputs.iter().zip(grads) {
            values.push(match grad {
                Some(grad) => grad,
                None => ctx.zeros_like(output)?,
            });
        }
        let gradients = rule.body.inline(ctx.graph, &values)?;
        for (&of, gradient) in rule.of.iter().zip(gradients) {
            ctx.add_if_needed(node.inputs[of as usize], gradient)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.0.body.flops(inputs)
    }
}

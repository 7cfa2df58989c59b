//! Translates statements and expressions. Each value that naga emits becomes a C++ constant in the place where it is
//! emitted; pointers are written out where they are used.

use super::{Source, types};
use naga::proc::TypeResolution;
use naga::valid::FunctionInfo;
use naga::{
    BinaryOperator, Block, Expression, Function, Handle, MathFunction, Module, Scalar, ScalarKind, Span, Statement,
    TypeInner, UnaryOperator,
};

pub(super) struct Writer<'w> {
    source: &'w Source<'w>,
    module: &'w Module,
    function: &'w Function,
    info: &'w FunctionInfo,
    arguments: Vec<String>,
    out: String,
    depth: usize,
    /// The numbers of the open loops, and how many loops there were so far.
    open_loops: Vec<usize>,
    loops: usize,
}

type Value = Handle<Expression>;

impl<'w> Writer<'w> {
    /// A function as a member named `f_NAME`.
    pub(super) fn function(
        source: &'w Source<'w>,
        module: &'w Module,
        function: &'w Function,
        info: &'w FunctionInfo,
        name: &str,
    ) -> Result<String, String> {
        let at = |what: String| format!("kernel `{}`, function `{name}`: {what}", source.kernel);
        let (mut arguments, mut list) = (Vec::new(), Vec::new());
        for (i, argument) in function.arguments.iter().enumerate() {
            let name = format!("a{i}_{}", argument.name.as_deref().unwrap_or(""));
            list.push(format!("{} {name}", types::name(module, argument.ty).map_err(at)?));
            arguments.push(name);
        }
        let result = match &function.result {
            Some(result) => types::name(module, result.ty).map_err(at)?,
            None => "void".into(),
        };
        let (out, open_loops) = (String::new(), Vec::new());
        let mut writer = Writer { source, module, function, info, arguments, out, depth: 2, open_loops, loops: 0 };
        writer.locals()?;
        writer.depth = 1;
        writer.block(&function.body)?;
        Ok(format!("    __device__ __forceinline__ {result} f_{name}({}) {{\n{}    }}\n", list.join(", "), writer.out))
    }

    fn locals(&mut self) -> Result<(), String> {
        for (handle, variable) in self.function.local_variables.iter() {
            let value = match variable.init {
                Some(init) => match self.function.expressions[init] {
                    Expression::Compose { .. } | Expression::Splat { .. } => self.emitted(init)?,
                    _ => self.value(init)?,
                },
                None => "{}".into(),
            };
            let span = self.function.local_variables.get_span(handle);
            let ty = types::name(self.module, variable.ty).map_err(|what| self.source.refuse(span, &what))?;
            self.line(&format!("{ty} {} = {value};", self.local(handle)));
        }
        Ok(())
    }

    fn local(&self, variable: Handle<naga::LocalVariable>) -> String {
        let name = self.function.local_variables[variable].name.as_deref().unwrap_or("");
        format!("l{}_{name}", variable.index())
    }

    fn line(&mut self, text: &str) {
        self.out.extend(std::iter::repeat_n("    ", self.depth));
        self.out += text;
        self.out.push('\n');
    }

    fn refuse<T>(&self, value: Value, what: &str) -> Result<T, String> {
        Err(self.source.refuse(self.function.expressions.get_span(value), what))
    }

    /// `text`, or an error that names the value's expression.
    fn of(&self, value: Value, text: Result<String, String>) -> Result<String, String> {
        text.or_else(|what| self.refuse(value, &what))
    }

    fn inner(&self, value: Value) -> &TypeInner {
        self.info[value].ty.inner_with(&self.module.types)
    }

    fn type_name(&self, value: Value) -> Result<String, String> {
        let name = match &self.info[value].ty {
            TypeResolution::Handle(ty) => types::name(self.module, *ty),
            TypeResolution::Value(inner) => types::inner(self.module, inner, None),
        };
        self.of(value, name)
    }

    fn is_pointer(&self, value: Value) -> bool {
        matches!(self.inner(value), TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. })
    }

    fn block(&mut self, block: &Block) -> Result<(), String> {
        self.depth += 1;
        for (statement, span) in block.span_iter() {
            self.statement(statement, *span)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn statement(&mut self, statement: &Statement, span: Span) -> Result<(), String> {
        match statement {
            Statement::Emit(range) => {
                for value in range.clone().filter(|&value| !self.is_pointer(value)).collect::<Vec<_>>() {
                    let text = self.emitted(value)?;
                    self.line(&format!("const auto e{} = {text};", value.index()));
                }
            }
            Statement::Block(block) => {
                self.line("{");
                self.block(block)?;
                self.line("}");
            }
            Statement::If { condition, accept, reject } => {
                let condition = self.value(*condition)?;
                self.line(&format!("if ({condition}) {{"));
                self.block(accept)?;
                if !reject.is_empty() {
                    self.line("} else {");
                    self.block(reject)?;
                }
                self.line("}");
            }
            Statement::Loop { body, continuing, break_if } => self.repeat(body, continuing, *break_if)?,
            Statement::Break => self.line("break;"),
            Statement::Continue => {
                let Some(number) = self.open_loops.last() else {
                    return Err(self.source.refuse(span, "`continue` outside of a loop"));
                };
                self.line(&format!("goto continue_{number};"));
            }
            Statement::Return { value } => {
                let value = value.map(|value| self.value(value)).transpose()?.unwrap_or_default();
                self.line(&format!("return {value};"));
            }
            Statement::ControlBarrier(_) => self.line("__syncthreads();"),
            Statement::Store { pointer, value } => {
                let text = format!("{} = {};", self.value(*pointer)?, self.value(*value)?);
                self.line(&text);
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                let pointer = self.value(*pointer)?;
                self.line("__syncthreads();");
                self.line(&format!("const auto e{} = {pointer};", result.index()));
                self.line("__syncthreads();");
            }
            Statement::Call { function, arguments, result } => {
                let name = self.module.functions[*function].name.as_deref().unwrap_or("");
                let mut values = Vec::new();
                for &argument in arguments {
                    let value = self.value(argument)?;
                    values.push(if self.is_pointer(argument) { format!("&{value}") } else { value });
                }
                let keep = result.map_or(String::new(), |result| format!("const auto e{} = ", result.index()));
                self.line(&format!("{keep}f_{name}({});", values.join(", ")));
            }
            other => return Err(self.source.refuse(span, &format!("the statement {other:?}"))),
        }
        Ok(())
    }

    /// Translates a loop; WGSL's `continue` still runs the `continuing` block.
    fn repeat(&mut self, body: &Block, continuing: &Block, break_if: Option<Value>) -> Result<(), String> {
        self.loops += 1;
        let number = self.loops;
        self.open_loops.push(number);
        self.line("for (;;) {");
        self.depth += 1;
        self.line("{");
        self.block(body)?;
        self.line("}");
        self.line(&format!("continue_{number}: ;"));
        self.line("{");
        self.block(continuing)?;
        if let Some(condition) = break_if {
            let condition = self.value(condition)?;
            self.line(&format!("if ({condition}) break;"));
        }
        self.line("}");
        self.depth -= 1;
        self.line("}");
        self.open_loops.pop();
        Ok(())
    }

    /// The name of a value or, for a pointer, what it points to.
    fn value(&self, value: Value) -> Result<String, String> {
        Ok(match &self.function.expressions[value] {
            Expression::Literal(literal) => self.of(value, types::literal(literal))?,
            Expression::Constant(constant) => {
                self.of(value, types::constant(self.module, self.module.constants[*constant].init))?
            }
            Expression::ZeroValue(ty) => format!("{}{{}}", self.of(value, types::name(self.module, *ty))?),
            Expression::FunctionArgument(i) => {
                let name = self.arguments.get(*i as usize).map_or("", String::as_str);
                if self.is_pointer(value) { format!("(*{name})") } else { name.into() }
            }
            Expression::GlobalVariable(variable) => {
                format!("g_{}", self.module.global_variables[*variable].name.as_deref().unwrap_or(""))
            }
            Expression::LocalVariable(variable) => self.local(*variable),
            Expression::Access { .. } | Expression::AccessIndex { .. } if self.is_pointer(value) => {
                self.access(value)?
            }
            _ => format!("e{}", value.index()),
        })
    }

    fn values(&self, values: &[Value]) -> Result<String, String> {
        let values: Result<Vec<_>, _> = values.iter().map(|&value| self.value(value)).collect();
        Ok(values?.join(", "))
    }

    /// The values that a vector, an array or a structure is made of, with vectors split into components, since a vector
    /// may be made from shorter ones.
    fn components(&self, values: &[Value]) -> Result<String, String> {
        let mut all = Vec::new();
        for &value in values {
            let name = self.value(value)?;
            match self.inner(value) {
                TypeInner::Vector { size, .. } => {
                    all.extend((0..*size as usize).map(|i| format!("{name}.{}", component(i))))
                }
                _ => all.push(name),
            }
        }
        Ok(all.join(", "))
    }

    fn access(&self, value: Value) -> Result<String, String> {
        let (base, index) = match &self.function.expressions[value] {
            Expression::Access { base, index } => {
                return Ok(format!("{}[{}]", self.value(*base)?, self.value(*index)?));
            }
            Expression::AccessIndex { base, index } => (*base, *index as usize),
            other => return self.refuse(value, &format!("{other:?}")),
        };
        let target = match self.inner(base) {
            TypeInner::Pointer { base, .. } => &self.module.types[*base].inner,
            inner => inner,
        };
        let base = self.value(base)?;
        Ok(match target {
            TypeInner::Struct { members, .. } => {
                format!("{base}.m_{}", members.get(index).and_then(|m| m.name.as_deref()).unwrap_or(""))
            }
            TypeInner::Vector { .. } => format!("{base}.{}", component(index)),
            _ => format!("{base}[{index}u]"),
        })
    }

    /// The expression of an emitted value.
    fn emitted(&self, value: Value) -> Result<String, String> {
        Ok(match &self.function.expressions[value] {
            Expression::Compose { ty, components } => {
                let components = self.components(components)?;
                self.of(value, types::composed(self.module, *ty, &components))?
            }
            Expression::Access { .. } | Expression::AccessIndex { .. } => self.access(value)?,
            Expression::Splat { size, value: of } => {
                format!("{}{{{}}}", self.type_name(value)?, self.values(&vec![*of; *size as usize])?)
            }
            Expression::Swizzle { size, vector, pattern } => {
                let vector = self.value(*vector)?;
                let parts = pattern.iter().take(*size as usize);
                let parts: Vec<_> = parts.map(|&part| format!("{vector}.{}", component(part as usize))).collect();
                format!("{}{{{}}}", self.type_name(value)?, parts.join(", "))
            }
            Expression::Load { pointer } => self.value(*pointer)?,
            Expression::Unary { op, expr } => {
                let operator = match op {
                    UnaryOperator::Negate => "-",
                    UnaryOperator::LogicalNot => "!",
                    UnaryOperator::BitwiseNot => "~",
                };
                if !matches!(self.inner(*expr), TypeInner::Scalar(_)) {
                    return self.refuse(value, &format!("`{operator}` of a vector"));
                }
                format!("{operator}({})", self.value(*expr)?)
            }
            Expression::Binary { op, left, right } => {
                format!("{} {} {}", self.value(*left)?, operator(*op), self.value(*right)?)
            }
            Expression::Select { condition, accept, reject } => {
                if !matches!(self.inner(*condition), TypeInner::Scalar(_)) {
                    return self.refuse(value, "a choice by a vector");
                }
                format!("{} ? {} : {}", self.value(*condition)?, self.value(*accept)?, self.value(*reject)?)
            }
            Expression::Math { fun, arg, arg1, arg2, arg3: None } => {
                let Some(name) = math(*fun) else { return self.refuse(value, &format!("the function {fun:?}")) };
                let arguments: Vec<_> = [Some(*arg), *arg1, *arg2].into_iter().flatten().collect();
                format!("{name}({})", self.values(&arguments)?)
            }
            Expression::As { expr, kind, convert } => self.cast(value, *expr, *kind, *convert)?,
            other => return self.refuse(value, &format!("the expression {other:?}")),
        })
    }

    fn cast(&self, value: Value, of: Value, kind: ScalarKind, convert: Option<u8>) -> Result<String, String> {
        let x = self.value(of)?;
        let to = types::scalar(Scalar { kind, width: convert.unwrap_or(4) });
        let to = to.or_else(|what| self.refuse(value, &what))?;
        match (convert, self.inner(of)) {
            (None, _) => Ok(format!("bits_<{to}>({x})")),
            (Some(_), TypeInner::Scalar(_)) => Ok(format!("({to})({x})")),
            (Some(_), other) => self.refuse(value, &format!("the conversion of {other:?}")),
        }
    }
}

fn component(index: usize) -> &'static str {
    ["x", "y", "z", "w"].get(index).copied().unwrap_or("")
}

fn operator(operator: BinaryOperator) -> &'static str {
    match operator {
        BinaryOperator::Add => "+",
        BinaryOperator::Subtract => "-",
        BinaryOperator::Multiply => "*",
        BinaryOperator::Divide => "/",
        BinaryOperator::Modulo => "%",
        BinaryOperator::Equal => "==",
        BinaryOperator::NotEqual => "!=",
        BinaryOperator::Less => "<",
        BinaryOperator::LessEqual => "<=",
        BinaryOperator::Greater => ">",
        BinaryOperator::GreaterEqual => ">=",
        BinaryOperator::And => "&",
        BinaryOperator::ExclusiveOr => "^",
        BinaryOperator::InclusiveOr => "|",
        BinaryOperator::LogicalAnd => "&&",
        BinaryOperator::LogicalOr => "||",
        BinaryOperator::ShiftLeft => "<<",
        BinaryOperator::ShiftRight => ">>",
    }
}

/// The prelude's name for a function.
fn math(function: MathFunction) -> Option<&'static str> {
    Some(match function {
        MathFunction::Min => "min_",
        MathFunction::Max => "max_",
        MathFunction::Clamp => "clamp_",
        MathFunction::Exp => "exp_",
        MathFunction::Log => "log_",
        MathFunction::Sqrt => "sqrt_",
        MathFunction::InverseSqrt => "inverse_sqrt_",
        MathFunction::Tanh => "tanh_",
        MathFunction::Abs => "abs_",
        MathFunction::Round => "round_",
        MathFunction::Fma => "fma_",
        _ => return None,
    })
}

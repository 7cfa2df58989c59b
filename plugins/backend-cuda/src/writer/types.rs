//! Translates types and constants.

use naga::{ArraySize, Expression, Handle, Literal, Module, Scalar, ScalarKind, Type, TypeInner};

/// The name of a scalar type.
pub(super) fn scalar(scalar: Scalar) -> Result<&'static str, String> {
    match (scalar.kind, scalar.width) {
        (ScalarKind::Float, 4) => Ok("float"),
        (ScalarKind::Uint, 4) => Ok("u32"),
        (ScalarKind::Sint, 4) => Ok("i32"),
        (ScalarKind::Bool, _) => Ok("bool"),
        (kind, width) => Err(format!("the type {kind:?} of {width} bytes")),
    }
}

/// The name of a type; pointers and arrays without a length are pointers.
pub(super) fn name(module: &Module, ty: Handle<Type>) -> Result<String, String> {
    inner(module, &module.types[ty].inner, module.types[ty].name.as_deref())
}

/// Like [`name`], for a type that may have no handle.
pub(super) fn inner(module: &Module, inner: &TypeInner, named: Option<&str>) -> Result<String, String> {
    Ok(match inner {
        TypeInner::Scalar(of) => scalar(*of)?.into(),
        TypeInner::Vector { size, scalar: of } => format!("v{}<{}>", *size as u8, scalar(*of)?),
        TypeInner::Array { base, size: ArraySize::Constant(length), .. } => {
            format!("arr<{}, {length}>", name(module, *base)?)
        }
        TypeInner::Array { base, .. } | TypeInner::Pointer { base, .. } => format!("{}*", name(module, *base)?),
        TypeInner::Struct { .. } => format!("s_{}", named.unwrap_or("unnamed")),
        other => return Err(format!("the type {other:?}")),
    })
}

/// An initializer from components; that of an array has one more level of braces.
pub(super) fn composed(module: &Module, ty: Handle<Type>, components: &str) -> Result<String, String> {
    let name = name(module, ty)?;
    Ok(match module.types[ty].inner {
        TypeInner::Array { .. } => format!("{name}{{{{{components}}}}}"),
        _ => format!("{name}{{{components}}}"),
    })
}

pub(super) fn literal(literal: &Literal) -> Result<String, String> {
    match literal {
        Literal::F32(x) if x.is_finite() => Ok(format!("{x:?}f")),
        Literal::U32(x) => Ok(format!("{x}u")),
        // The smallest i32 has no literal.
        Literal::I32(x) => Ok(format!("i32({}u)", x.cast_unsigned())),
        Literal::Bool(x) => Ok(x.to_string()),
        other => Err(format!("the literal {other:?}")),
    }
}

/// A constant expression of the module.
pub(super) fn constant(module: &Module, expression: Handle<Expression>) -> Result<String, String> {
    match &module.global_expressions[expression] {
        Expression::Literal(x) => literal(x),
        Expression::Constant(other) => constant(module, module.constants[*other].init),
        Expression::ZeroValue(ty) => Ok(format!("{}{{}}", name(module, *ty)?)),
        Expression::Compose { ty, components } => {
            let components = components.iter().map(|&part| constant(module, part)).collect::<Result<Vec<_>, _>>()?;
            composed(module, *ty, &components.join(", "))
        }
        other => Err(format!("the constant {other:?}")),
    }
}

//! The float types that a job computes in.

use crate::model::Precision;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{DType, DeviceInfo};
use sparta_plugin::method::Parameter;
use std::fmt;

/// The value of `--precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// bf16 where the checkpoint is 16-bit and the device multiplies 16-bit floats in hardware, else f32.
    #[default]
    Auto,
    F32,
    Bf16,
    Tf32,
}

/// The precision of a job, and the reason for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenPrecision {
    pub precision: Precision,
    pub reason: String,
}

impl PrecisionChoice {
    /// Decides for a model of these parameters on a device.
    ///
    /// Errors: bf16 or tf32 was requested, which the device does not support.
    pub fn choose(self, parameters: &[Parameter], device: &DeviceInfo) -> Result<ChosenPrecision> {
        let chosen = |precision, reason: &str| Ok(ChosenPrecision { precision, reason: reason.into() });
        let offered = device.activations.contains(&DType::BF16);
        match self {
            PrecisionChoice::F32 => chosen(Precision::F32, "as asked for"),
            PrecisionChoice::Bf16 if offered => chosen(Precision::BF16, "as asked for"),
            PrecisionChoice::Bf16 => Err(Error::Usage(format!(
                "--precision bf16: {} ({}) computes with f32 activations only; use --precision f32, or another --device",
                device.id, device.name
            ))),
            PrecisionChoice::Tf32 if device.tf32 => chosen(Precision::TF32, "as asked for"),
            PrecisionChoice::Tf32 => Err(Error::Usage(format!(
                "--precision tf32: {} ({}) does not multiply in TF32, as NVIDIA cards from compute capability 8.0 on do \
                 through cuBLASLt (--device cuda); use --precision f32, or another --device",
                device.id, device.name
            ))),
            PrecisionChoice::Auto if !is_16_bit(parameters) => chosen(Precision::F32, "the checkpoint is not 16-bit"),
            PrecisionChoice::Auto => match device.products.iter().find(|dtype| dtype.size() == 2) {
                Some(dtype) if offered => chosen(
                    Precision::BF16,
                    &format!("the checkpoint is 16-bit, and the device multiplies {dtype} in hardware"),
                ),
                _ => chosen(Precision::F32, "the device does not multiply 16-bit floats in hardware"),
            },
        }
    }

    /// The choice that leads to this precision.
    pub fn of(precision: Precision) -> Self {
        match precision.activations {
            DType::F32 if precision.tf32 => PrecisionChoice::Tf32,
            DType::F32 => PrecisionChoice::F32,
            _ => PrecisionChoice::Bf16,
        }
    }
}

/// Whether most of the model is stored in 16-bit floats.
fn is_16_bit(parameters: &[Parameter]) -> bool {
    let count =
        |wanted: bool| parameters.iter().filter(|p| (p.dtype.size() == 2) == wanted).map(Parameter::numel).sum::<u64>();
    count(true) > count(false)
}

impl fmt::Display for ChosenPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.precision, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_graph::DeviceKind;
    use sparta_plugin::method::Role;

    fn device(activations: &[DType], products: &[DType]) -> DeviceInfo {
        DeviceInfo {
            id: "cpu".into(),
            name: "Some CPU".into(),
            kind: DeviceKind::Cpu,
            card: None,
            driver: String::new(),
            memory: None,
            max_buffer: 1 << 31,
            max_binding: None,
            segments: false,
            in_place: true,
            activations: activations.to_vec(),
            products: products.to_vec(),
            multiplier: None,
            rounds_in_attention: false,
            tf32: false,
            sampled_cost: None,
            own_kernels: vec![],
        }
    }

    fn parameters(body: DType) -> Vec<Parameter> {
        let parameter = |name: &str, shape: &[usize], dtype, role| Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            dtype,
            role,
            layer: None,
        };
        vec![parameter("q", &[64, 64], body, Role::QProj), parameter("score.weight", &[2, 64], DType::F32, Role::Head)]
    }

    #[test]
    fn auto_is_bf16_where_checkpoint_and_device_are_for_it() {
        let both = [DType::F32, DType::BF16];
        let auto =
            |dtype, device: DeviceInfo| PrecisionChoice::Auto.choose(&parameters(dtype), &device).unwrap().precision;
        assert_eq!(auto(DType::BF16, device(&both, &[DType::BF16])), Precision::BF16);
        assert_eq!(auto(DType::F16, device(&both, &[DType::F16])), Precision::BF16);
        assert_eq!(auto(DType::F32, device(&both, &[DType::BF16])), Precision::F32);
        assert_eq!(auto(DType::BF16, device(&both, &[])), Precision::F32);
        assert_eq!(auto(DType::BF16, device(&[DType::F32], &[DType::F16])), Precision::F32);
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let cpu = device(&[DType::F32, DType::BF16], &[]);
        let chosen = PrecisionChoice::Bf16.choose(&parameters(DType::F32), &cpu).unwrap();
        assert_eq!(chosen.to_string(), "bf16: as asked for");
        assert_eq!(PrecisionChoice::of(chosen.precision), PrecisionChoice::Bf16);
        let error = PrecisionChoice::Bf16.choose(&parameters(DType::BF16), &device(&[DType::F32], &[])).unwrap_err();
        assert!(error.to_string().contains("cpu (Some CPU) computes with f32 activations only"), "{error}");
        let error = PrecisionChoice::Tf32.choose(&parameters(DType::F32), &cpu).unwrap_err().to_string();
        assert!(error.contains("--precision tf32: cpu (Some CPU) does not multiply in TF32"), "{error}");
        let card = DeviceInfo { tf32: true, ..cpu };
        let chosen = PrecisionChoice::Tf32.choose(&parameters(DType::BF16), &card).unwrap();
        assert_eq!(chosen.to_string(), "tf32: as asked for");
        assert_eq!(PrecisionChoice::of(chosen.precision), PrecisionChoice::Tf32);
        let auto = PrecisionChoice::Auto.choose(&parameters(DType::F32), &card).unwrap();
        assert_eq!(auto.precision, Precision::F32);
    }
}

//! The float types that a job computes in.

use crate::model::Precision;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_graph::{Blocks, DType, DeviceInfo};
use sparta_plugin::method::Parameter;
use std::fmt;

/// The value of `--precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// bf16 if the weights are 16-bit or quantized and the device multiplies 16-bit floats in hardware, else f32.
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
    /// Chooses for a model with these parameters on a device. `blocks` are those in which a parameter is quantized.
    ///
    /// Errors: bf16 or tf32 was requested, which the device does not support.
    pub fn choose(
        self,
        parameters: &[Parameter],
        blocks: impl Fn(&Parameter) -> Option<Blocks>,
        device: &DeviceInfo,
    ) -> Result<ChosenPrecision> {
        let chosen = |precision, reason: &str| Ok(ChosenPrecision { precision, reason: reason.into() });
        let offered = device.activations.contains(&DType::BF16);
        match self {
            PrecisionChoice::F32 => chosen(Precision::F32, "as requested"),
            PrecisionChoice::Bf16 if offered => chosen(Precision::BF16, "as requested"),
            PrecisionChoice::Bf16 => Err(Error::Usage(format!(
                "--precision bf16: {} ({}) computes with f32 activations only; use --precision f32, or another --device",
                device.id, device.name
            ))),
            PrecisionChoice::Tf32 if device.tf32 => chosen(Precision::TF32, "as requested"),
            PrecisionChoice::Tf32 => Err(Error::Usage(format!(
                "--precision tf32: {} ({}) does not multiply in TF32, as NVIDIA cards from compute capability 8.0 on do \
                 through cuBLASLt (--device cuda); use --precision f32, or another --device",
                device.id, device.name
            ))),
            PrecisionChoice::Auto => {
                let multiplied = device.products.iter().find(|dtype| dtype.size() == 2).filter(|_| offered);
                match (StoredIn::of(parameters, blocks), multiplied) {
                    (StoredIn::Wide, _) => chosen(Precision::F32, "the checkpoint is not 16-bit"),
                    (_, None) => chosen(Precision::F32, "the device does not multiply 16-bit floats in hardware"),
                    (stored, Some(dtype)) => {
                        let what = if stored == StoredIn::Half { "16-bit" } else { "quantized" };
                        let reason = format!("the checkpoint is {what}, and the device multiplies {dtype} in hardware");
                        chosen(Precision::BF16, &reason)
                    }
                }
            }
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

/// What most of a model is stored in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StoredIn {
    Wide,
    Half,
    Quantized,
}

impl StoredIn {
    fn of(parameters: &[Parameter], blocks: impl Fn(&Parameter) -> Option<Blocks>) -> StoredIn {
        let kind = |p: &Parameter| match blocks(p) {
            Some(_) => StoredIn::Quantized,
            None if p.dtype.size() == 2 => StoredIn::Half,
            None => StoredIn::Wide,
        };
        let count = |of: StoredIn| parameters.iter().filter(|p| kind(p) == of).map(Parameter::numel).sum::<u64>();
        let [wide, half, quantized] = [StoredIn::Wide, StoredIn::Half, StoredIn::Quantized].map(count);
        if wide >= half + quantized {
            StoredIn::Wide
        } else if quantized > half {
            StoredIn::Quantized
        } else {
            StoredIn::Half
        }
    }
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
        let auto = |dtype, device: DeviceInfo| {
            PrecisionChoice::Auto.choose(&parameters(dtype), |_| None, &device).unwrap().precision
        };
        assert_eq!(auto(DType::BF16, device(&both, &[DType::BF16])), Precision::BF16);
        assert_eq!(auto(DType::F16, device(&both, &[DType::F16])), Precision::BF16);
        assert_eq!(auto(DType::F32, device(&both, &[DType::BF16])), Precision::F32);
        assert_eq!(auto(DType::BF16, device(&both, &[])), Precision::F32);
        assert_eq!(auto(DType::BF16, device(&[DType::F32], &[DType::F16])), Precision::F32);
    }

    /// Values of up to 8 bits lose nothing that matters in products of bf16.
    #[test]
    fn quantized_weights_count_as_16_bit() {
        let auto = |name: &str, products: &[DType]| {
            let device = device(&[DType::F32, DType::BF16], products);
            let blocks = |p: &Parameter| (p.name == name).then_some(Blocks::Q4K);
            PrecisionChoice::Auto.choose(&parameters(DType::F32), blocks, &device).unwrap().to_string()
        };
        assert_eq!(
            auto("q", &[DType::BF16]),
            "bf16: the checkpoint is quantized, and the device multiplies bf16 in hardware"
        );
        assert_eq!(auto("q", &[]), "f32: the device does not multiply 16-bit floats in hardware");
        assert_eq!(auto("score.weight", &[DType::BF16]), "f32: the checkpoint is not 16-bit");
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let cpu = device(&[DType::F32, DType::BF16], &[]);
        let chosen = PrecisionChoice::Bf16.choose(&parameters(DType::F32), |_| None, &cpu).unwrap();
        assert_eq!(chosen.to_string(), "bf16: as requested");
        assert_eq!(PrecisionChoice::of(chosen.precision), PrecisionChoice::Bf16);
        let plain = device(&[DType::F32], &[]);
        let error = PrecisionChoice::Bf16.choose(&parameters(DType::BF16), |_| None, &plain).unwrap_err();
        assert!(error.to_string().contains("cpu (Some CPU) computes with f32 activations only"), "{error}");
        let error = PrecisionChoice::Tf32.choose(&parameters(DType::F32), |_| None, &cpu).unwrap_err().to_string();
        assert!(error.contains("--precision tf32: cpu (Some CPU) does not multiply in TF32"), "{error}");
        let card = DeviceInfo { tf32: true, ..cpu };
        let chosen = PrecisionChoice::Tf32.choose(&parameters(DType::BF16), |_| None, &card).unwrap();
        assert_eq!(chosen.to_string(), "tf32: as requested");
        assert_eq!(PrecisionChoice::of(chosen.precision), PrecisionChoice::Tf32);
        let auto = PrecisionChoice::Auto.choose(&parameters(DType::F32), |_| None, &card).unwrap();
        assert_eq!(auto.precision, Precision::F32);
    }
}

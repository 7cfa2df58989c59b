use crate::Device;
use sparta_graph::{Backend, BackendError, DType};
use std::fmt;

/// The type of the activations in a suite's graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

type Open<'a> = Box<dyn FnMut() -> Result<Box<dyn Backend>, BackendError> + 'a>;

/// A backend under test.
pub struct Subject<'a> {
    pub name: String,
    open: Open<'a>,
    refusals: &'static [&'static str],
}

impl<'a> Subject<'a> {
    /// `open` opens the device anew for each part of a suite.
    pub fn new(
        name: impl Into<String>,
        open: impl FnMut() -> Result<Box<dyn Backend>, BackendError> + 'a,
    ) -> Subject<'a> {
        Subject { name: name.into(), open: Box::new(open), refusals: &[] }
    }

    /// Texts of the errors with which the backend may refuse a case that is larger than every device supports.
    pub fn may_refuse(self, refusals: &'static [&'static str]) -> Subject<'a> {
        Subject { refusals, ..self }
    }

    pub fn open(&mut self) -> Result<Box<dyn Backend>, BackendError> {
        (self.open)()
    }

    /// The backend, opened for running plans on it.
    pub fn device(&mut self) -> Result<Device, BackendError> {
        Ok(Device::Backend(self.open()?))
    }

    /// Whether the backend takes activations of this precision; a backend that does not open fails later.
    pub fn offers(&mut self, precision: Precision) -> bool {
        precision == Precision::F32
            || self.open().map_or(true, |device| device.info().activations.contains(&DType::BF16))
    }

    pub fn is_refusal(&self, error: &BackendError) -> bool {
        let error = error.to_string();
        self.refusals.iter().any(|text| error.contains(text))
    }
}

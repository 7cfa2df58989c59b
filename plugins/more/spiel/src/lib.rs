//! SpIEL (Ansell et al., 2024, arXiv 2401.16405): trains elements of the linear layers and the head; after every few
//! steps the elements with the smallest changes are dropped and as many with the largest gradients grown. This is
//! SpIEL-AG with one batch of accumulation: candidates are compared by the gradient of the whole weight over the step's
//! batch, within each tensor, and the share that is exchanged decreases linearly to zero at the end of the run. An
//! element dropped in a step is not grown again in the same step.

use sparta_plugin::Error;
use sparta_plugin::method::*;

struct Spiel;

sparta_plugin::export_method!(Spiel);

sparta_plugin::options! {
    struct Settings {
        /// Fraction of the weights of linear layers to train
        density: f64 = 0.01, Above(0.0, 1.0);
        /// Steps between exchanges
        every: u64 = 20, 1..=1_000_000;
        /// Share of the elements to exchange at the start of the run
        rate: f64 = 0.2, Above(0.0, 1.0);
    }
}

impl Method for Spiel {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "spiel".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "SpIEL: sparse training that drops and grows elements".into(),
            options: Settings::declared(),
            default_lr: 1e-4,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let probability = Settings::read(options)?.density;
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            role if role.is_projection() => Selection::Sparse { probability },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn steps(&self, options: &Options) -> Result<Option<Steps>, Error> {
        Ok(Some(Steps { every: Settings::read(options)?.every, gradients: false, whole_gradients: true }))
    }

    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<serde_json::Value, Error> {
        let left = 1.0 - step.step as f64 / step.total_steps as f64;
        let rate = Settings::read(&step.options)?.rate * left;
        for tensor in step.tensors.iter().filter(|tensor| tensor.form == OwnForm::Sparse) {
            let (indices, changes) = (tensors.indices(&tensor.name)?, tensors.values(&tensor.name)?);
            let unused = tensor.parameter.numel() - indices.len() as u64;
            let count = ((indices.len() as f64 * rate) as usize).min(unused as usize);
            if count > 0 {
                let gradient = tensors.whole_gradient(&tensor.name)?;
                tensors.replace(&tensor.name, &exchanged(&indices, &changes, &gradient, count))?;
            }
        }
        Ok(serde_json::Value::Null)
    }
}

/// The indices without the `count` that changed least, plus as many others with the largest gradients.
fn exchanged(indices: &[u32], changes: &[f32], gradient: &[f32], count: usize) -> Vec<u32> {
    let mut kept: Vec<usize> = (0..indices.len()).collect();
    kept.sort_by(|&a, &b| changes[a].abs().total_cmp(&changes[b].abs()));
    let mut next: Vec<u32> = kept[count..].iter().map(|&at| indices[at]).collect();
    let mut others = Vec::with_capacity(gradient.len() - indices.len());
    let mut trained = indices.iter().peekable();
    for i in 0..gradient.len() as u32 {
        match trained.peek() {
            Some(&&at) if at == i => drop(trained.next()),
            _ => others.push(i),
        }
    }
    let size = |i: u32| gradient[i as usize].abs();
    others.select_nth_unstable_by(count - 1, |&a, &b| size(b).total_cmp(&size(a)).then(a.cmp(&b)));
    next.extend(&others[..count]);
    next.sort_unstable();
    next
}

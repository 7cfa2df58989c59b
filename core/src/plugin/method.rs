use super::library::Implementation;
use super::names;
use crate::method::check_selections;
use crate::method::options::{Given, check_value};
use serde::Serialize;
use serde_json::Value as Json;
use sparta_plugin::Error;
use sparta_plugin::abi::{SpartaBytes, SpartaMethod, SpartaStatus};
use sparta_plugin::export::method::{Description, SelectRequest};
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::Add;
use sparta_plugin::method::{
    GraphBuilder, Method, MethodInfo, OptionInfo, OptionKind, Options, Parameter, Selection, Site, StepInfo,
    StepTensors, Steps,
};
use std::borrow::Cow;
use std::collections::HashSet;

/// A method from a loaded library. The plugin's answers are checked before use.
pub struct LoadedMethod {
    plugin: Implementation<SpartaMethod>,
    info: MethodInfo,
    mergeable: bool,
}

impl LoadedMethod {
    /// Asks the plugin to describe itself. Errors: no answer, or options that contradict themselves.
    pub fn new(mut plugin: Implementation<SpartaMethod>) -> Result<Self, Error> {
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call("describe", plugin.table.describe, None, |f, call| unsafe { f(call) })?;
        let Description { info, mergeable } = plugin.parse("describe", &answer)?;
        let info: MethodInfo = info.into_owned();
        names::check("name", &info.name).map_err(|reason| Error(format!("plugin {}: {reason}", plugin.name)))?;
        plugin.name = format!("{} ({})", info.name, plugin.name);
        check_info(&info).map_err(|reason| Error(format!("plugin {}: {reason}", plugin.name)))?;
        Ok(LoadedMethod { plugin, info, mergeable })
    }

    pub fn info(&self) -> &MethodInfo {
        &self.info
    }

    /// Calls a function that builds on the graph.
    fn build<F>(
        &self,
        what: &str,
        function: Option<F>,
        (site, graph): (&Site, &mut dyn GraphBuilder),
        call: impl FnOnce(F, u64, SpartaBytes) -> SpartaStatus,
    ) -> Result<(), Error> {
        let site = serialised("site", site)?;
        self.plugin.call(what, function, Some(graph), |f, id| call(f, id, SpartaBytes::new(&site))).map(drop)
    }

    /// Checks the values that a function wrote.
    fn values<const N: usize>(
        &self,
        what: &str,
        graph: &dyn GraphBuilder,
        outputs: [u32; N],
    ) -> Result<[Value; N], Error> {
        let outputs = outputs.map(Value);
        match outputs.iter().try_for_each(|&output| graph.shape(output).map(drop)) {
            Ok(()) => Ok(outputs),
            Err(e) => Err(Error(format!("plugin {}: the output of `{what}`: {e}", self.plugin.name))),
        }
    }
}

/// Marks an output that the function did not write.
const NONE: u32 = u32::MAX;

fn handles(values: &[Value]) -> Vec<u32> {
    values.iter().map(|value| value.0).collect()
}

/// The most bytes of a method's state between steps, as JSON.
pub const STATE: usize = 64 << 20;

fn serialised(what: &str, message: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(message).map_err(|e| Error(format!("the {what} cannot be serialised: {e}")))
}

fn check_info(info: &MethodInfo) -> Result<(), String> {
    if !(info.default_lr > 0.0 && info.default_lr.is_finite()) {
        return Err(format!("its default learning rate is {}", info.default_lr));
    }
    names::check_version(&info.version)?;
    names::check_text("summary", &info.summary)?;
    check_options(&info.options)
}

/// Errors: an option of a method or a task that contradicts itself, or has a name that is taken.
pub(super) fn check_options(options: &[OptionInfo]) -> Result<(), String> {
    let mut names = HashSet::new();
    for option in options {
        names::check_text("help of an option", &option.help)?;
        check_range(option)?;
        let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if option.name.is_empty() || option.name.starts_with('-') || !option.name.chars().all(kebab) {
            return Err(format!("the option name `{}` is not in kebab case", option.name));
        }
        if OWN.contains(&option.name.as_str()) || option.name.len() > names::LONGEST {
            return Err(format!("its option `{}` has a name that is taken or too long; rename it", option.name));
        }
        if !names.insert(&option.name) {
            return Err(format!("it declares the option `{}` twice", option.name));
        }
        if let Some(default) = &option.default {
            check_value(option, &Given::Typed(default.clone())).map_err(|e| format!("a default is not valid: {e}"))?;
        }
    }
    Ok(())
}

/// Options that every command has.
const OWN: [&str; 2] = ["help", "version"];

/// Errors: an empty range.
fn check_range(option: &OptionInfo) -> Result<(), String> {
    let fits = match option.kind {
        OptionKind::Float { min, max, min_open } => {
            if min_open {
                min < max
            } else {
                min <= max
            }
        }
        OptionKind::Int { min, max } => min <= max,
        OptionKind::Bool | OptionKind::Text => true,
    };
    match fits {
        true => Ok(()),
        false => Err(format!("no value is in the range of its option `{}`: {:?}", option.name, option.kind)),
    }
}

impl Method for LoadedMethod {
    fn describe(&self) -> MethodInfo {
        self.info.clone()
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let plugin = &self.plugin;
        let request = SelectRequest { parameters: Cow::Borrowed(parameters), options: Cow::Borrowed(options) };
        let request = serialised("model", &request)?;
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin
            .call("select", plugin.table.select, None, |f, call| unsafe { f(call, SpartaBytes::new(&request)) })?;
        let selections: Vec<Selection> = plugin.parse("select", &answer)?;
        check_selections(parameters, &selections)
            .map_err(|reason| Error(format!("plugin {}: {reason}", plugin.name)))?;
        Ok(selections)
    }

    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let (extra, mut y) = (handles(extra), NONE);
        self.build("forward", self.plugin.table.forward, (site, graph), |f, id, site| {
            // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
            unsafe { f(id, site, x.0, w.0, extra.as_ptr(), extra.len(), &mut y) }
        })?;
        self.values("forward", graph, [y]).map(|[y]| y)
    }

    fn forward_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<Value, Error> {
        let Some(function) = self.plugin.table.forward_with_bias else {
            let y = self.forward(site, graph, x, w, extra)?;
            return graph.one(Add {}, &[y, bias]);
        };
        let (extra, mut y) = (handles(extra), NONE);
        self.build("forward_with_bias", Some(function), (site, graph), |f, id, site| {
            // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
            unsafe { f(id, site, x.0, w.0, bias.0, extra.as_ptr(), extra.len(), &mut y) }
        })?;
        self.values("forward_with_bias", graph, [y]).map(|[y]| y)
    }

    fn mergeable(&self) -> bool {
        self.mergeable
    }

    fn merge(&self, site: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let (extra, mut merged) = (handles(extra), NONE);
        self.build("merge", self.plugin.table.merge, (site, graph), |f, id, site| {
            // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
            unsafe { f(id, site, w.0, extra.as_ptr(), extra.len(), &mut merged) }
        })?;
        self.values("merge", graph, [merged]).map(|[merged]| merged)
    }

    fn merge_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<[Value; 2], Error> {
        let Some(function) = self.plugin.table.merge_with_bias else {
            return Ok([self.merge(site, graph, w, extra)?, bias]);
        };
        let (extra, mut merged) = (handles(extra), [NONE; 2]);
        self.build("merge_with_bias", Some(function), (site, graph), |f, id, site| {
            // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
            unsafe { f(id, site, w.0, bias.0, extra.as_ptr(), extra.len(), &mut merged) }
        })?;
        self.values("merge_with_bias", graph, merged)
    }

    fn penalty(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        w: Value,
        extra: &[Value],
    ) -> Result<Option<Value>, Error> {
        let Some(function) = self.plugin.table.penalty else { return Ok(None) };
        let (extra, mut term) = (handles(extra), NONE);
        self.build("penalty", Some(function), (site, graph), |f, id, site| {
            // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
            unsafe { f(id, site, w.0, extra.as_ptr(), extra.len(), &mut term) }
        })?;
        match term {
            NONE => Ok(None),
            term => self.values("penalty", graph, [term]).map(|[term]| Some(term)),
        }
    }

    fn update(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        extra: &[Value],
        lr: Value,
    ) -> Result<Vec<Value>, Error> {
        let Some(function) = self.plugin.table.update else { return Ok(extra.to_vec()) };
        let mut values = handles(extra);
        self.build("update", Some(function), (site, graph), |f, id, site| {
            // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
            unsafe { f(id, site, lr.0, values.as_mut_ptr(), values.len()) }
        })?;
        values.into_iter().map(|value| self.values("update", graph, [value]).map(|[value]| value)).collect()
    }

    fn steps(&self, options: &Options) -> Result<Option<Steps>, Error> {
        let plugin = &self.plugin;
        let Some(steps) = plugin.table.steps else { return Ok(None) };
        let options = serialised("options", options)?;
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer =
            plugin.call("steps", Some(steps), None, |f, call| unsafe { f(call, SpartaBytes::new(&options)) })?;
        let steps: Option<Steps> = plugin.parse("steps", &answer)?;
        if steps.is_some() && plugin.table.on_step.is_none() {
            return Err(Error(format!("plugin {}: it wants to act between steps but has no `on_step`", plugin.name)));
        }
        Ok(steps)
    }

    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<Json, Error> {
        let plugin = &self.plugin;
        let request = serialised("step", step)?;
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call_on_step("on_step", plugin.table.on_step, tensors, |f, call| unsafe {
            f(call, SpartaBytes::new(&request))
        })?;
        match answer.len() {
            0 => Ok(step.state.clone()),
            1..=STATE => plugin.parse("on_step", &answer),
            size => Err(Error(format!(
                "plugin {}: `on_step`: its state has {size} bytes, at most {STATE} are kept",
                plugin.name
            ))),
        }
    }
}

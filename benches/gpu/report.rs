//! The results, as JSON and as Markdown.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::fmt::Write as _;

#[derive(Default, Serialize)]
pub struct Report {
    /// As `sparta-cli devices --json` lists them.
    pub devices: Vec<Json>,
    /// (device, TFLOP/s of a product of 4096 x 4096 x 4096 in bf16; of a smaller one on a slow card).
    pub products: Vec<(String, Option<f64>)>,
    /// That of PyTorch, and so of cuBLAS.
    pub peer_product: Option<f64>,
    /// Variables that change its results, and their values.
    pub variables: Vec<String>,
    pub steps: Vec<StepsCell>,
    /// (cell, method, line of peer.py).
    pub peer: Vec<(String, String, Json)>,
    /// (device, answer of `sparta-cli plugin check`).
    pub suites: Vec<(String, SuiteResult)>,
    /// (what was profiled, table of its ops).
    pub profiles: Vec<(String, String)>,
    /// What did not run or did not finish, and why.
    pub failures: Vec<String>,
}

#[derive(Serialize)]
pub struct StepsCell {
    /// Its id.
    pub device: String,
    pub cell: String,
    pub method: String,
    pub precision: String,
    /// Whether rules chose the kernels.
    pub untuned: bool,
    pub measured: Json,
}

#[derive(Serialize, Deserialize)]
pub struct SuiteResult {
    pub results: Vec<TestResult>,
}

#[derive(Serialize, Deserialize)]
pub struct TestResult {
    pub name: String,
    pub passed: bool,
    pub seconds: f64,
    pub details: String,
}

impl StepsCell {
    /// Whether it is the same work on any device.
    fn is_like(&self, other: &StepsCell) -> bool {
        (&self.cell, &self.method, &self.precision) == (&other.cell, &other.method, &other.precision)
    }
}

impl Report {
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# On this machine's GPUs\n")?;
        for device in &self.devices {
            let text = |key: &str| device[key].as_str().unwrap_or("?").to_owned();
            writeln!(out, "- `{}` {} ({}, {})", text("id"), text("name"), text("kind"), text("driver"))?;
        }
        self.variables.iter().try_for_each(|variable| writeln!(out, "- {variable} was set"))?;
        self.write_products(out)?;
        self.write_steps(out)?;
        self.write_beside_cpu(out)?;
        for (device, result) in &self.suites {
            let passed = result.results.iter().filter(|test| test.passed).count();
            let seconds: f64 = result.results.iter().map(|test| test.seconds).sum();
            writeln!(out, "\nSuites on `{device}`: {passed} of {} passed in {seconds:.0} s", result.results.len())?;
            for test in result.results.iter().filter(|test| !test.passed) {
                writeln!(out, "- failed: {}:\n\n```\n{}\n```", test.name, test.details.trim_end())?;
            }
        }
        for (what, table) in &self.profiles {
            writeln!(out, "\n{what}\n\n```\n{}\n```", table.trim_end())?;
        }
        if !self.failures.is_empty() {
            writeln!(out, "\nFailed, or did not run to the end:")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(out, "- {failure}"))
    }

    fn write_products(&self, out: &mut String) -> std::fmt::Result {
        if !self.products.is_empty() {
            writeln!(out, "\n| device | bf16 product, 4096^3, TFLOP/s | PyTorch | % of PyTorch |\n|---|---|---|---|")?;
        }
        for (device, rate) in &self.products {
            let share = rate.zip(self.peer_product).map(|(ours, theirs)| ours / theirs);
            let columns = [show(*rate, 1.0, 1), show(self.peer_product, 1.0, 1), show(share, 100.0, 0)];
            writeln!(out, "| {device} | {} |", columns.join(" | "))?;
        }
        Ok(())
    }

    /// Compares each step with the same step on the CPU, in the CPU's faster precision.
    fn write_beside_cpu(&self, out: &mut String) -> std::fmt::Result {
        let seconds = |step: &StepsCell| step.measured["step_s"].as_f64();
        for ours in self.steps.iter().filter(|ours| ours.device != "cpu") {
            let StepsCell { device, cell, method, precision, .. } = ours;
            let beside = |cpu: &&StepsCell| cpu.device == "cpu" && cpu.cell == *cell && cpu.method == *method;
            let cpu = self.steps.iter().filter(beside).filter_map(seconds).min_by(f64::total_cmp);
            if let Some((cpu, own)) = cpu.zip(seconds(ours)) {
                writeln!(out, "\n{cell} {method} {precision}: {device} is {:.1} times as fast as the CPU", cpu / own)?;
            }
        }
        Ok(())
    }

    fn write_steps(&self, out: &mut String) -> std::fmt::Result {
        if self.steps.is_empty() && self.peer.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "\n| model, batch | method | device | precision | step, ms | tokens/s | TFLOP/s | device memory, MiB | \
             PyTorch bf16: ms | MiB | ours / theirs |\n|---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        // Sorted so that a workload's devices are next to each other.
        let mut steps: Vec<&StepsCell> = self.steps.iter().collect();
        let place = |ours: &StepsCell| self.steps.iter().position(|first| first.is_like(ours));
        steps.sort_by_key(|ours| place(ours));
        for ours in steps {
            let theirs = self.peer.iter().find(|(cell, method, _)| *cell == ours.cell && *method == ours.method);
            let peer = |key: &str| theirs.and_then(|(.., line)| line[key].as_f64());
            let own = |key: &str| ours.measured[key].as_f64();
            let ratio = own("step_s").zip(peer("step_s")).map(|(a, b)| a / b);
            let columns = [
                show(own("step_s"), 1e3, 1),
                show(own("tokens_per_s"), 1.0, 0),
                show(own("gflops"), 1e-3, 2),
                show(own("device_peak_mib"), 1.0, 0),
                show(peer("step_s"), 1e3, 1),
                show(peer("peak_allocated_mib"), 1.0, 0),
                show(ratio, 1.0, 2),
            ];
            let StepsCell { device, cell, method, precision, untuned, .. } = ours;
            let rules = if *untuned { ", kernels by rule" } else { "" };
            writeln!(out, "| {cell} | {method} | {device}{rules} | {precision} | {} |", columns.join(" | "))?;
        }
        let alone = |(cell, method, _): &&(String, String, Json)| {
            !self.steps.iter().any(|ours| ours.cell == *cell && ours.method == *method)
        };
        for (cell, method, line) in self.peer.iter().filter(alone) {
            let (ms, mib) = (show(line["step_s"].as_f64(), 1e3, 1), show(line["peak_allocated_mib"].as_f64(), 1.0, 0));
            writeln!(out, "| {cell} | {method} |  |  |  |  |  |  | {ms} | {mib} |  |")?;
        }
        Ok(())
    }
}

fn show(value: Option<f64>, factor: f64, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.digits$}", value * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_compared_with_the_peer_and_with_the_cpu() {
        let step = |device: &str, precision: &str, step_s: f64| StepsCell {
            device: device.into(),
            cell: "SmolLM2-135M 1x512".into(),
            method: "lora-all".into(),
            precision: precision.into(),
            untuned: false,
            measured: serde_json::json!({ "step_s": step_s }),
        };
        let report = Report {
            products: vec![("cuda:0".into(), Some(300.0)), ("wgpu:1".into(), None)],
            peer_product: Some(600.0),
            steps: vec![step("cuda:0", "bf16", 0.01), step("cpu", "bf16", 0.5), step("cpu", "f32", 0.25)],
            ..Report::default()
        };
        let text = report.markdown();
        for part in [
            "| cuda:0 | 300.0 | 600.0 | 50 |\n",
            "| wgpu:1 | - | 600.0 | - |\n",
            "\nSmolLM2-135M 1x512 lora-all bf16: cuda:0 is 25.0 times as fast as the CPU\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("cpu is"), "{text}");
    }
}

//! The task `@name@`: gives each line one of two labels. `--data` is a directory with train.tsv, dev.tsv and test.tsv,
//! each line a label, a tab and a text.

use sparta_plugin::Error;
use sparta_plugin::task::*;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

struct @type@;

sparta_plugin::export_task!(@type@);

const LABELS: [&str; 2] = ["negative", "positive"];

impl Task for @type@ {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "@name@".into(),
            title: "Lines with one of two labels".into(),
            labels: LABELS.map(String::from).to_vec(),
            target: Some(Target::Class),
            weights: vec![],
            metrics: ["accuracy", "f1"].map(String::from).to_vec(),
            primary: "accuracy".into(),
            pair: false,
            prompt: None,
        };
        let (name, version) = ("@name@".into(), env!("CARGO_PKG_VERSION").into());
        TaskPluginInfo { name, version, tasks: vec![task], options: vec![] }
    }

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        for split in ["train", "dev", "test"].into_iter().filter(|split| request.wants(split)) {
            let path = request.data.join(format!("{split}.tsv"));
            if !path.is_file() {
                return Err(Error::new(format!("{}: there is no such file; expected lines `label<TAB>text`", path.display())));
            }
        }
        Ok(Box::new(Files { directory: request.data.clone() }))
    }
}

struct Files {
    directory: PathBuf,
}

impl Dataset for Files {
    fn recipe(&self) -> Recipe {
        let all = |split: &str| Source { parts: vec![format!("{split}.tsv")], take: Take::All };
        Recipe { train: all("train"), dev: all("dev"), test: all("test"), notes: vec![], task: None }
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        let path = self.directory.join(part);
        let file = File::open(&path).map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
        let examples = BufReader::new(file).lines().zip(1..).map(move |(line, number)| {
            let wrong = |what: String| Error::new(format!("{}:{number}: {what}", path.display()));
            let line = line.map_err(|e| wrong(e.to_string()))?;
            let (label, text) = line.split_once('\t').ok_or_else(|| wrong("expected a label, a tab and a text".into()))?;
            let label = LABELS.iter().position(|known| *known == label).ok_or_else(|| {
                wrong(format!("expected the label {}, got `{label}`", LABELS.join(" or ")))
            })?;
            Ok(Example { text: text.into(), label: label as u32, ..Example::default() })
        });
        Ok(Box::new(examples))
    }
}

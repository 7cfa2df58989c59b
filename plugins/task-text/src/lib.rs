//! Continued pretraining: documents without labels, every next token of which is learned, from files in any format.

use sparta_plugin::Error;
use sparta_plugin::task::{
    Dataset, Example, Examples, OpenRequest, Recipe, Source, Take, Task, TaskInfo, TaskPluginInfo,
};
use sparta_task_files::{Format, Part, Reading, Table, find_tables, names, text};

/// The column or key of the documents.
const TEXT: &str = "text";

pub struct Text;

sparta_plugin::options! {
    struct Settings {
        /// Format of the files: lines, jsonl, json, parquet, csv or tsv [default: by the file's ending]
        format: String = "";
    }
}

sparta_plugin::export_task!(entry: Text);

impl Task for Text {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "text".into(),
            title: "Text: each next token of documents".into(),
            labels: vec![],
            metrics: ["perplexity", "log_likelihood"].map(str::to_owned).to_vec(),
            primary: "log_likelihood".into(),
            target: None,
            weights: vec![],
            pair: false,
            prompt: None,
        };
        TaskPluginInfo {
            name: "text".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            tasks: vec![task],
            options: Settings::declared(),
        }
    }

    /// `data` is one file, or a directory with files called train and optionally dev and test. In a text file each line
    /// is a document; in other formats documents are under `text`.
    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let Settings { format } = Settings::read(&request.options)?;
        let format = Some(format.as_str()).filter(|name| !name.is_empty());
        let tables = find_tables(&request.data, format.map(Format::named).transpose()?)?;
        let splits = tables.splits(request);
        let [train, dev, test] = &splits;
        if train.is_empty() && request.wants("train") {
            let (data, there) = (request.data.display(), [names(dev), names(test)].concat().join(", "));
            return Err(Error(format!("{data}: expected a file called train, got only {there}")));
        }
        let none = dev.is_empty() && !request.other_data;
        let [train, dev, test] = splits.each_ref().map(|parts| Source { parts: names(parts), take: Take::All });
        let notes = none.then(|| "There is no dev file: nothing is held out.".to_owned()).into_iter().collect();
        Ok(Box::new(Documents { parts: splits.concat(), recipe: Recipe { train, dev, test, notes, task: None } }))
    }
}

struct Documents {
    parts: Vec<Part>,
    recipe: Recipe,
}

impl Dataset for Documents {
    fn recipe(&self) -> Recipe {
        self.recipe.clone()
    }

    fn examples(&self, name: &str) -> Result<Examples<'_>, Error> {
        let part = self.parts.iter().find(|part| part.name == name);
        let part = part.ok_or_else(|| Error(format!("no part `{name}` in this data")))?;
        let wanted = |name: &str| name == TEXT;
        let table = Table::open(&part.path, part.format, Reading { wanted: Some(&wanted), ..Reading::default() })?;
        if let Some(columns) = table.columns.filter(|columns| !columns.iter().any(|column| column == TEXT)) {
            let (path, got) = (part.path.display(), columns.join(", "));
            return Err(Error(format!("{path}: expected a column `{TEXT}`, got {got}")));
        }
        let mut failed = false;
        let documents = table.records.map(move |record| {
            let record = record?;
            let place = || part.format.place(&part.path.display().to_string(), record.number);
            let text = text(&record.values, TEXT).map_err(|what| Error(format!("{}: {what}", place())))?;
            Ok(Example { text, ..Example::default() })
        });
        Ok(Box::new(documents.take_while(move |document| !std::mem::replace(&mut failed, document.is_err()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn open(data: &Path) -> Result<Box<dyn Dataset>, Error> {
        Text.open(&OpenRequest::new("text", data))
    }

    fn texts(dataset: &dyn Dataset, source: &Source) -> Result<Vec<String>, Error> {
        let examples = dataset.examples(&source.parts[0])?;
        examples.map(|example| example.map(|example| example.text)).collect()
    }

    #[test]
    fn documents_are_lines_or_rows_of_any_format() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
        write("train.txt", "One.\n  two \n\n");
        write("validation.jsonl", "{\"text\": \"a\\nb\", \"id\": 1}\n");
        write("test.csv", "id,text\n1,\"a, b\"\n");
        let dataset = open(home.path()).unwrap();
        let recipe = dataset.recipe();
        assert_eq!(texts(&*dataset, &recipe.train).unwrap(), ["One.", "  two "]);
        assert_eq!(texts(&*dataset, &recipe.dev).unwrap(), ["a\nb"]);
        assert_eq!(texts(&*dataset, &recipe.test).unwrap(), ["a, b"]);
        assert!(recipe.notes.is_empty());

        let file = home.path().join("train.txt");
        let single = open(&file).unwrap().recipe();
        assert!(single.dev.parts.is_empty() && single.notes[0].contains("no dev file"), "{single:?}");
        let other = OpenRequest { splits: vec!["dev".into()], other_data: true, ..OpenRequest::new("text", &file) };
        let other = Text.open(&other).unwrap().recipe();
        assert!(other.dev.parts == ["train.txt"] && other.train.parts.is_empty() && other.notes.is_empty());
        write("documents", "One.\n");
        let mut named = OpenRequest::new("text", home.path().join("documents"));
        assert!(Text.open(&named).err().unwrap().0.contains("--format"));
        named.options.insert("format".into(), "lines".into());
        assert!(Text.open(&named).is_ok());
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let home = tempfile::tempdir().unwrap();
        assert!(open(home.path()).err().unwrap().0.contains("expected one table"));
        let error = |name: &str, content: &str| {
            let file = home.path().join(name);
            std::fs::write(&file, content).unwrap();
            let dataset = open(&file).unwrap();
            texts(&*dataset, &dataset.recipe().train).unwrap_err().0
        };
        for (name, content, what) in [
            ("a.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n", "a.jsonl:2: expected a string for `text`, got `null`"),
            ("a.csv", "id,body\n1,b\n", "a.csv: expected a column `text`, got id, body"),
            ("a.txt", "One.\n\ntwo\n", "a.txt:2: expected a row, got a blank line; remove it"),
        ] {
            let message = error(name, content);
            assert!(message.ends_with(what), "{message}");
        }
        let dataset = open(&home.path().join("a.txt")).unwrap();
        assert!(dataset.examples("b.txt").is_err());
    }
}

//! The tasks: columns, classes, file names, and the sizes of Table 9.

use sparta_task_files::{Format, Layout, Schema};

pub(crate) struct GlueTask {
    pub id: &'static str,
    /// Its folder in the GLUE zip; the hub's folder differs only in case and signs.
    pub folder: &'static str,
    pub title: &'static str,
    pub schema: Schema,
    pub pair: bool,
    /// The name of the number, if the label is one.
    pub number: Option<&'static str>,
    /// What an instruction model is asked, including the word for each class; empty for a number.
    pub prompt: &'static str,
    pub verbalizers: &'static [&'static str],
    pub metrics: &'static [&'static str],
    pub primary: &'static str,
    pub layouts: &'static [Layout],
    /// How many development examples are drawn from the training split if GLUE's own are the test split.
    pub dev: usize,
    /// The most training examples to keep after the draw.
    pub cap: Option<usize>,
}

const BINARY_METRICS: &[&str] = &["accuracy", "f1", "mcc"];

const JSONL: Layout = Layout {
    format: Format::Jsonl,
    train: &["train.jsonl"],
    dev: &[&["dev.jsonl", "validation.jsonl"]],
    test: &["test.jsonl"],
};

const TSV: Layout = Layout { format: Format::Tsv, train: &["train.tsv"], dev: &[&["dev.tsv"]], test: &[] };

const PARQUET: Layout = Layout {
    format: Format::Parquet,
    train: &["train-*-of-*.parquet"],
    dev: &[&["validation-*-of-*.parquet"]],
    test: &[],
};

/// GLUE's `test.tsv` and most of the hub's test files have no labels, so they are not looked for.
const LAYOUTS: &[Layout] = &[TSV, PARQUET, JSONL];

/// MRPC has a labelled test split. Its original training file contains the rows of GLUE's `dev.tsv`, so the two
/// are never used together.
const MRPC_LAYOUTS: &[Layout] = &[
    Layout { test: &["msr_paraphrase_test.txt"], ..TSV },
    Layout { train: &["msr_paraphrase_train.txt"], dev: &[], test: &["msr_paraphrase_test.txt"], ..TSV },
    Layout { test: &["test-*-of-*.parquet"], ..PARQUET },
    JSONL,
];

const MNLI_LAYOUTS: &[Layout] = &[
    Layout { dev: &[&["dev_matched.tsv"], &["dev_mismatched.tsv"]], ..TSV },
    Layout { dev: &[&["validation_matched-*-of-*.parquet"], &["validation_mismatched-*-of-*.parquet"]], ..PARQUET },
    Layout {
        dev: &[
            &["dev_matched.jsonl", "validation_matched.jsonl", "dev.jsonl", "validation.jsonl"],
            &["dev_mismatched.jsonl", "validation_mismatched.jsonl"],
        ],
        ..JSONL
    },
];

/// What single-text tasks have in common; each names its own texts, classes and sizes.
const SINGLE: Schema = Schema {
    texts: &[("sentence", None), ("text", None)],
    label: &["label"],
    classes: &[],
    headerless: None,
    wrapped_rows: false,
};
const PAIR: Schema = Schema { texts: &[("sentence1", Some("sentence2")), ("text", Some("pair"))], ..SINGLE };

pub(crate) const TASKS: &[GlueTask] = &[
    GlueTask {
        id: "cola",
        folder: "CoLA",
        title: "CoLA: is a sentence acceptable English",
        schema: Schema {
            classes: &["unacceptable", "acceptable"],
            headerless: Some(&["source", "label", "mark", "sentence"]),
            ..SINGLE
        },
        pair: false,
        number: None,
        prompt: "Is this sentence grammatical English? Answer Yes or No.\n\n{text}",
        verbalizers: &["No", "Yes"],
        metrics: BINARY_METRICS,
        primary: "mcc",
        layouts: LAYOUTS,
        dev: 1000,
        cap: None,
    },
    GlueTask {
        id: "sst2",
        folder: "SST-2",
        title: "SST-2: is a phrase of a film review positive",
        schema: Schema { classes: &["negative", "positive"], ..SINGLE },
        pair: false,
        number: None,
        prompt: "Is the sentiment of this text positive? Answer Yes or No.\n\n{text}",
        verbalizers: &["No", "Yes"],
        metrics: BINARY_METRICS,
        primary: "accuracy",
        layouts: LAYOUTS,
        dev: 1000,
        cap: None,
    },
    GlueTask {
        id: "mrpc",
        folder: "MRPC",
        title: "MRPC: do two news sentences mean the same thing",
        schema: Schema {
            texts: &[("sentence1", Some("sentence2")), ("#1 String", Some("#2 String")), ("text", Some("pair"))],
            label: &["label", "Quality"],
            classes: &["not_equivalent", "equivalent"],
            ..PAIR
        },
        pair: true,
        number: None,
        prompt: "Do these two sentences mean the same? Answer Yes or No.\n\n1: {text}\n2: {pair}",
        verbalizers: &["No", "Yes"],
        metrics: BINARY_METRICS,
        primary: "accuracy",
        layouts: MRPC_LAYOUTS,
        // The size of its own dev split; drawn only if that is missing.
        dev: 408,
        cap: None,
    },
    GlueTask {
        id: "rte",
        folder: "RTE",
        title: "RTE: does a text entail a sentence",
        schema: Schema { classes: &["entailment", "not_entailment"], ..PAIR },
        pair: true,
        number: None,
        prompt: "If the text is true, is the hypothesis true? Answer Yes or No.\n\nText: {text}\nHypothesis: {pair}",
        verbalizers: &["Yes", "No"],
        metrics: BINARY_METRICS,
        primary: "accuracy",
        layouts: LAYOUTS,
        dev: 300,
        cap: None,
    },
    GlueTask {
        id: "wnli",
        folder: "WNLI",
        title: "WNLI: does a text entail a sentence in which a pronoun is replaced",
        schema: Schema { classes: &["not_entailment", "entailment"], ..PAIR },
        pair: true,
        number: None,
        prompt: "If the text is true, is the hypothesis true? Answer Yes or No.\n\nText: {text}\nHypothesis: {pair}",
        verbalizers: &["No", "Yes"],
        metrics: BINARY_METRICS,
        primary: "accuracy",
        layouts: LAYOUTS,
        dev: 71,
        cap: None,
    },
    GlueTask {
        id: "stsb",
        folder: "STS-B",
        title: "STS-B: how similar two sentences are, from 0 to 5",
        schema: Schema { label: &["label", "score"], classes: &[], ..PAIR },
        pair: true,
        number: Some("similarity"),
        prompt: "",
        verbalizers: &[],
        metrics: &["pearson", "spearman", "mse"],
        primary: "pearson",
        layouts: LAYOUTS,
        dev: 1000,
        cap: None,
    },
    GlueTask {
        id: "qnli",
        folder: "QNLI",
        title: "QNLI: does a sentence answer a question",
        schema: Schema {
            texts: &[("question", Some("sentence")), ("sentence1", Some("sentence2")), ("text", Some("pair"))],
            classes: &["entailment", "not_entailment"],
            ..PAIR
        },
        pair: true,
        number: None,
        prompt: "Does the sentence contain the answer to the question? Answer Yes or No.\n\nQuestion: {text}\nSentence: {pair}",
        verbalizers: &["Yes", "No"],
        metrics: BINARY_METRICS,
        primary: "accuracy",
        layouts: LAYOUTS,
        dev: 5000,
        cap: Some(100_000),
    },
    GlueTask {
        id: "qqp",
        folder: "QQP",
        title: "QQP: do two questions ask the same thing",
        schema: Schema {
            texts: &[("question1", Some("question2")), ("sentence1", Some("sentence2")), ("text", Some("pair"))],
            label: &["label", "is_duplicate"],
            classes: &["not_duplicate", "duplicate"],
            // A few questions in its train.tsv contain line breaks.
            wrapped_rows: true,
            ..PAIR
        },
        pair: true,
        number: None,
        prompt: "Do these two questions ask the same? Answer Yes or No.\n\n1: {text}\n2: {pair}",
        verbalizers: &["No", "Yes"],
        metrics: BINARY_METRICS,
        primary: "accuracy",
        layouts: LAYOUTS,
        dev: 5000,
        cap: Some(100_000),
    },
    GlueTask {
        id: "mnli",
        folder: "MNLI",
        title: "MNLI: does a premise entail a hypothesis, contradict it, or neither",
        schema: Schema {
            texts: &[("premise", Some("hypothesis")), ("sentence1", Some("sentence2")), ("text", Some("pair"))],
            label: &["label", "gold_label"],
            classes: &["entailment", "neutral", "contradiction"],
            ..PAIR
        },
        pair: true,
        number: None,
        prompt: "If the premise is true, is the hypothesis true? Answer Yes, Maybe or No.\n\nPremise: {text}\nHypothesis: {pair}",
        verbalizers: &["Yes", "Maybe", "No"],
        metrics: &["accuracy", "mcc"],
        primary: "accuracy",
        layouts: MNLI_LAYOUTS,
        dev: 10_000,
        cap: Some(100_000),
    },
];

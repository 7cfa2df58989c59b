//! Ranks in the form of the paper's Tables 7 and 8: by kind of matrix, with layers of equal rank together.

use super::rank::{MatrixRank, RankReport};
use crate::Result;
use crate::report::svg::{self, Chart, Series};
use std::fmt;

/// Kinds in the order of the paper's tables; others follow by name.
const KINDS: [&str; 9] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.gate_up_proj",
    "mlp.down_proj",
];

/// `model.layers.3.mlp.up_proj.weight` -> (`mlp.up_proj`, 3); a matrix outside the layers keeps its name.
fn kind_and_layer(name: &str) -> (&str, Option<usize>) {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    let parts = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match parts.and_then(|(layer, kind)| Some((kind, layer.parse().ok()?))) {
        Some((kind, layer)) => (kind, Some(layer)),
        None => (name, None),
    }
}

/// The tables' order of names: embedding, kinds of layers, head.
pub fn order(name: &str) -> impl Ord + use<> {
    let (kind, layer) = kind_and_layer(name);
    let place = KINDS.iter().position(|&known| known == kind).unwrap_or(KINDS.len());
    let section = match layer {
        Some(_) => 1,
        None if kind == "embed_tokens" => 0,
        None => 2,
    };
    (section, place, kind.to_owned(), layer)
}

/// Layers of one kind of matrix that have the same rank.
struct Row<'a> {
    kind: &'a str,
    matrix: &'a MatrixRank,
    layers: Vec<usize>,
}

impl RankReport {
    /// The rows of the table: kinds in order, ranks ascending.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<Row> = Vec::new();
        for group in self.kinds() {
            let start = rows.len();
            for matrix in group {
                let (kind, layer) = kind_and_layer(&matrix.name);
                let same = |row: &&mut Row| row.matrix.rank == matrix.rank && row.matrix.shape == matrix.shape;
                match rows[start..].iter_mut().find(same) {
                    Some(row) => row.layers.extend(layer),
                    None => rows.push(Row { kind, matrix, layers: layer.into_iter().collect() }),
                }
            }
            rows[start..].sort_by_key(|row| row.matrix.rank);
        }
        rows
    }

    /// The matrices, grouped by kind.
    fn kinds(&self) -> impl Iterator<Item = &[MatrixRank]> {
        self.matrices.chunk_by(|a, b| kind_and_layer(&a.name).0 == kind_and_layer(&b.name).0)
    }

    /// An SVG drawing of the singular values, a chart per kind and a line per matrix, relative to the largest one, over
    /// their position; later layers are drawn in warmer colours.
    pub fn plot(&self) -> Result<String> {
        let charts: Vec<Chart> = self.kinds().map(chart).collect();
        svg::page(&charts, 2)
    }
}

fn chart(kind: &[MatrixRank]) -> Chart {
    let line = |(i, matrix): (usize, &MatrixRank)| {
        let largest = matrix.singular_values.first().copied().unwrap_or(0.0);
        let points = matrix.singular_values.iter().enumerate().filter(|(_, sigma)| **sigma > 0.0);
        let points = points.map(|(i, &sigma)| ((i + 1) as f64, f64::from(sigma / largest))).collect();
        Series {
            name: String::new(),
            mark: None,
            points,
            colour: svg::gradient(i as f64 / (kind.len().max(2) - 1) as f64),
        }
    };
    let title = kind.first().map_or("", |matrix| kind_and_layer(&matrix.name).0);
    let series = kind.iter().enumerate().map(line).collect();
    let title = format!("{title}: singular values of the change, relative to the largest");
    Chart { title, x_label: "position".into(), log_y: true, series, ..Chart::default() }
}

impl fmt::Display for RankReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<18} {:>17}  {:<22} {:>6}  rank deficiency", "weight matrix", "dims", "layer(s)", "rank")?;
        let mut last = "";
        for Row { kind, matrix, layers } in self.rows() {
            let [rows, columns] = matrix.shape;
            let (title, dims) = match kind == last {
                true => ("", String::new()),
                false => (kind, format!("[ {rows}, {columns} ]")),
            };
            last = kind;
            let full = match matrix.deficiency {
                0 => " (full rank)",
                _ if matrix.rank == 0 => " (no change above the tolerance)",
                _ => "",
            };
            let layers = layer_list(&layers);
            writeln!(f, "{title:<18} {dims:>17}  {layers:<22} {:>6}  {}{full}", matrix.rank, matrix.deficiency)?;
        }
        for name in &self.unmatched {
            writeln!(f, "{name} is in only one of the models")?;
        }
        write!(f, "singular values above sigma_max * max(rows, columns) * {} count", self.eps())
    }
}

impl RankReport {
    fn eps(&self) -> &'static str {
        match self.precision {
            super::rank::Precision::F32 => "2^-23 (f32, as numpy.linalg.matrix_rank)",
            super::rank::Precision::Stored => "eps (of the stored type: f32 2^-23, f16 2^-10, bf16 2^-7)",
        }
    }
}

/// Ascending layers as `1,3-5,7,8`: three or more in a row as a range, as the paper writes them; `-` for none.
fn layer_list(layers: &[usize]) -> String {
    let runs = layers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, _, .., last] => format!("{first}-{last}"),
        few => few.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
    });
    let text = runs.collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::rank::Precision;
    use sparta_graph::DType;

    fn matrix(name: &str, rank: usize) -> MatrixRank {
        MatrixRank {
            name: name.into(),
            shape: [16, 8],
            stored: DType::BF16,
            nonzeros: 128,
            rank,
            deficiency: 8 - rank,
            tolerance: 0.0,
            singular_values: (0..8).map(|i| 0.5f32.powi(i)).collect(),
        }
    }

    fn report(matrices: Vec<MatrixRank>) -> RankReport {
        let unmatched = vec!["score.weight".into()];
        RankReport { base: "a".into(), tuned: "b".into(), precision: Precision::F32, matrices, unmatched }
    }

    #[test]
    fn layers_are_listed_as_in_the_paper() {
        let list = |layers: &[usize]| layer_list(layers);
        assert_eq!(list(&[1, 3, 4, 5, 7, 8, 10, 11, 12, 13, 16, 17]), "1,3-5,7,8,10-13,16,17");
        assert_eq!(list(&(0..18).collect::<Vec<_>>()), "0-17");
        assert_eq!(list(&[0]), "0");
        assert_eq!(list(&[]), "-");
    }

    #[test]
    fn names_are_ordered_as_in_the_paper() {
        let mut names = [
            "lm_head.weight",
            "model.layers.10.self_attn.q_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.2.self_attn.q_proj.weight",
            "model.embed_tokens.weight",
        ];
        names.sort_by_key(|name| order(name));
        let kinds = names.map(kind_and_layer);
        let expected = [
            ("embed_tokens", None),
            ("self_attn.q_proj", Some(2)),
            ("self_attn.q_proj", Some(10)),
            ("mlp.down_proj", Some(0)),
            ("lm_head", None),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn equal_ranks_share_a_row() {
        let layer = |i: usize, rank| matrix(&format!("model.layers.{i}.self_attn.q_proj.weight"), rank);
        let mut matrices = vec![matrix("model.embed_tokens.weight", 8)];
        matrices.extend([7, 5, 7, 7, 0].into_iter().enumerate().map(|(i, rank)| layer(i, rank)));
        let text = report(matrices).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["embed_tokens", "[", "16,", "8", "]", "-", "8", "0", "(full", "rank)"]);
        assert_eq!(lines[2][..8], ["self_attn.q_proj", "[", "16,", "8", "]", "4", "0", "8"]);
        assert_eq!((lines[3].join(" "), lines[4].join(" ")), ("1 5 3".into(), "0,2,3 7 1".into()));
        assert!(lines[5].join(" ").starts_with("score.weight is in only one"));
    }

    #[test]
    fn the_plot_has_a_line_per_matrix() {
        let layer = |i: usize| matrix(&format!("model.layers.{i}.mlp.up_proj.weight"), 8);
        let svg = report(vec![layer(0), layer(1), layer(2)]).plot().unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("mlp.up_proj: singular values"));
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 3, "{svg}");
    }
}

//! The classification head that a model comes with: its classes, and their order.

use super::labels;
use crate::model::{Decoder, HEAD};
use crate::weights::Weights;
use crate::{Error, Result};

/// The position of each of `wanted` in `labels`, ignoring case, spaces, hyphens and underscores; `None` if the two have
/// different names.
pub fn order_of(labels: &[String], wanted: &[String]) -> Option<Vec<usize>> {
    let plain = |label: &String| label.trim().to_lowercase().replace([' ', '-'], "_");
    let known: Vec<String> = labels.iter().map(plain).collect();
    let distinct = (0..known.len()).all(|i| !known[..i].contains(&known[i]));
    let order: Option<Vec<usize>> =
        wanted.iter().map(plain).map(|label| known.iter().position(|known| *known == label)).collect();
    order.filter(|order| distinct && order.len() == labels.len())
}

/// Reorders the rows of a model's own head to match these labels. Returns a note for the plan; `None` if the model has
/// no head.
///
/// Errors: the head has other classes.
pub fn align_head(weights: &mut Weights, decoder: &Decoder, wanted: &[String]) -> Result<Option<String>> {
    let Some(classes) = weights.get(HEAD).map(|head| head.shape.first().copied().unwrap_or(0)) else { return Ok(None) };
    let own = labels(decoder, classes);
    let unnamed = own.iter().enumerate().all(|(i, label)| *label == format!("LABEL_{i}"));
    let listed = own.join(", ");
    // A single number has a name, but no classes.
    if own == wanted || (own.len() == 1 && wanted.len() == 1) {
        return Ok(Some("the head is the model's own".into()));
    }
    if unnamed && classes == wanted.len() {
        let wanted = wanted.join(", ");
        return Ok(Some(format!(
            "the head is the model's own; its classes have no names and are taken to be {wanted}"
        )));
    }
    let order = order_of(&own, wanted).ok_or_else(|| {
        Error::Usage(format!(
            "{}: the model has a classification head for the labels {listed}, the task has {}: train a new one with \
             --new-head",
            weights.dir().display(),
            wanted.join(", ")
        ))
    })?;
    weights.reorder_rows(HEAD, &order)?;
    Ok(Some(format!("the head is the model's own, for the labels {listed}, matched by name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_matched_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let order = |a: &[&str], b: &[&str]| order_of(&names(a), &names(b));
        assert_eq!(order(&["POSITIVE", "negative"], &["negative", "positive"]), Some(vec![1, 0]));
        assert_eq!(order(&["not equivalent", "Equivalent"], &["not_equivalent", "equivalent"]), Some(vec![0, 1]));
        assert_eq!(order(&["no", "yes"], &["negative", "positive"]), None);
        assert_eq!(order(&["a", "b", "c"], &["a", "b"]), None);
        assert_eq!(order(&["a"], &["a", "a"]), None);
        assert_eq!(order(&["a", "A"], &["a", "A"]), None);
    }
}

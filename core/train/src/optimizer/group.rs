use super::{Optimization, RatesOf};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sparta_model::method::Trained;
use sparta_plugin::method::Rates;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Trained tensors with their own learning rate and weight decay, written `PATTERN:lr=FACTOR,decay=X`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Group {
    /// A pattern for names of trained tensors; `*` stands for any text.
    pub pattern: String,
    /// The factor on the learning rate.
    pub lr_factor: f32,
    /// `None`: the run's.
    pub weight_decay: Option<f32>,
}

/// A group and what it contains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupPlan {
    pub group: Group,
    /// Whether the method made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_method: bool,
    pub tensors: usize,
    /// The number of trained scalars.
    pub trained: u64,
}

impl Group {
    pub fn contains(&self, tensor: &str) -> bool {
        matches(&self.pattern, tensor)
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Group, String> {
        const EXPECTED: &str = "expected PATTERN:lr=FACTOR,decay=X with at least one of the two";
        let (pattern, settings) = text.trim().rsplit_once(':').ok_or(EXPECTED)?;
        let (mut lr_factor, mut weight_decay) = (None, None);
        for setting in settings.split(',') {
            let (name, value) = setting.split_once('=').ok_or(EXPECTED)?;
            let (place, least, range) = match name.trim() {
                "lr" => (&mut lr_factor, f32::MIN_POSITIVE, "above 0"),
                "decay" => (&mut weight_decay, 0.0, "of at least 0"),
                other => return Err(format!("{EXPECTED}, got `{other}`")),
            };
            let number = value.trim().parse().ok().filter(|x: &f32| x.is_finite() && *x >= least);
            let number = number.ok_or_else(|| format!("{name}: expected a number {range}, got `{value}`"))?;
            if place.replace(number).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        match pattern.trim() {
            "" => Err(EXPECTED.into()),
            pattern => Ok(Group { pattern: pattern.into(), lr_factor: lr_factor.unwrap_or(1.0), weight_decay }),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:lr={}", self.pattern, self.lr_factor)?;
        self.weight_decay.map_or(Ok(()), |decay| write!(f, ",decay={decay}"))
    }
}

impl TryFrom<String> for Group {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Group, String> {
        text.parse()
    }
}

impl From<Group> for String {
    fn from(group: Group) -> String {
        group.to_string()
    }
}

impl Optimization {
    /// The groups with what they contain, the user's before the method's.
    ///
    /// Errors: a group of the user without any tensor; the message lists the names that exist.
    pub fn group_plans(&self, trained: &[Trained]) -> Result<Vec<GroupPlan>> {
        let plan = |(position, group): (usize, &Group)| {
            let members = || trained.iter().filter(|t| self.group_of(t) == RatesOf::Group(position));
            if members().next().is_none() {
                return Err(self.empty(group, trained));
            }
            let scalars = members().map(|t| t.numel() as u64).sum();
            Ok(GroupPlan { group: group.clone(), by_method: false, tensors: members().count(), trained: scalars })
        };
        let mut plans: Vec<GroupPlan> = self.groups.iter().enumerate().map(plan).collect::<Result<_>>()?;
        for tensor in trained {
            let RatesOf::Method(rates) = self.group_of(tensor) else { continue };
            if rates == Rates::default() {
                continue;
            }
            let group = Group {
                pattern: any_layer(&tensor.name),
                lr_factor: rates.lr_factor as f32,
                weight_decay: rates.weight_decay.map(|decay| decay as f32),
            };
            match plans.iter_mut().find(|plan| plan.by_method && plan.group == group) {
                Some(plan) => (plan.tensors, plan.trained) = (plan.tensors + 1, plan.trained + tensor.numel() as u64),
                None => plans.push(GroupPlan { group, by_method: true, tensors: 1, trained: tensor.numel() as u64 }),
            }
        }
        Ok(plans)
    }

    fn empty(&self, group: &Group, trained: &[Trained]) -> Error {
        let names: BTreeSet<String> = trained.iter().map(|t| any_layer(&t.name)).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let why = match trained.iter().any(|t| group.contains(&t.name)) {
            true => "all tensors that match are in an earlier group; give this one first",
            false => "no trained tensor matches",
        };
        Error::Usage(format!("--group {group}: {why}. The trained tensors are {names}"))
    }
}

/// The name with its layer number replaced by `*`: a pattern for all layers.
fn any_layer(name: &str) -> String {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if digits(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// Whether a name matches a pattern, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    let ends = name.char_indices().map(|(i, _)| i).chain([name.len()]);
    ends.into_iter().any(|i| matches(rest, &name[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparta_model::method::Form;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*.weight", "a.weight", true),
            ("*norm*", "model.norm.weight", true),
            ("score.weight", "score.weight", true),
            ("score", "score.weight", false),
            ("a*b*c", "abxc", true),
            ("a*b", "abc", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_first_group_that_names_a_tensor_counts() {
        let groups = ["*norm*:lr=2,decay=0", "*:decay=0.5", "a:lr=3"].map(|text| text.parse().unwrap()).to_vec();
        let optimization = Optimization { groups, weight_decay: 0.25, ..Default::default() };
        let rates = |name: &str| optimization.rates(optimization.group_of(&trained(name, Rates::default())));
        assert_eq!([rates("a.norm.weight"), rates("b")], [(2.0, 0.0), (1.0, 0.5)]);
        assert_eq!(optimization.rates(RatesOf::Group(2)), (3.0, 0.25));
        let none = Optimization::default();
        assert_eq!(none.rates(none.group_of(&trained("b", Rates::default()))), (1.0, 0.0));
    }

    #[test]
    fn a_group_of_the_user_s_wins_over_the_method_s_rates() {
        let own = Rates { lr_factor: 16.0, weight_decay: None };
        let tensors = ["layers.0.b", "layers.1.b", "layers.0.c"].map(|name| trained(name, own));
        let groups = vec!["*.c:decay=0.5".parse().unwrap()];
        let optimization = Optimization { groups, weight_decay: 0.25, ..Default::default() };
        let rates = tensors.each_ref().map(|t| optimization.rates(optimization.group_of(t)));
        assert_eq!(rates, [(16.0, 0.25), (16.0, 0.25), (1.0, 0.5)]);
        let plans = optimization.group_plans(&tensors).unwrap();
        let found = plans.iter().map(|p| (&*p.group.pattern, p.group.lr_factor, p.by_method, p.tensors, p.trained));
        assert_eq!(found.collect::<Vec<_>>(), [("*.c", 1.0, false, 1, 6), ("layers.*.b", 16.0, true, 2, 12)]);
    }

    fn trained(name: &str, rates: Rates) -> Trained {
        Trained { name: name.into(), shape: vec![2, 3], parameter: 0, form: Form::Dense, rates }
    }

    #[test]
    fn groups_are_text() {
        for (text, expected) in [
            ("score.weight:lr=10,decay=0", "score.weight:lr=10,decay=0"),
            (" *norm* : decay = 0.5 ", "*norm*:lr=1,decay=0.5"),
            ("a:b:lr=1e-3", "a:b:lr=0.001"),
        ] {
            let group: Group = text.parse().unwrap();
            assert_eq!(group.to_string(), expected);
            assert_eq!(serde_json::from_value::<Group>(serde_json::json!(text)).unwrap(), group);
        }
        for (text, part) in [
            ("score.weight", "expected PATTERN:lr=FACTOR,decay=X"),
            (":lr=1", "expected PATTERN"),
            ("a:", "expected PATTERN"),
            ("a:rate=1", "got `rate`"),
            ("a:lr=0", "lr: expected a number above 0, got `0`"),
            ("a:lr=nan", "lr: expected a number above 0"),
            ("a:decay=-1", "decay: expected a number of at least 0, got `-1`"),
            ("a:lr=1,lr=2", "lr is given twice"),
        ] {
            let error = text.parse::<Group>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_group_without_a_tensor_is_refused_with_the_existing_names() {
        let trained = ["layers.0.norm", "layers.1.norm", "head"].map(|name| trained(name, Rates::default()));
        let plans = |groups: &[&str]| {
            let groups = groups.iter().map(|text| text.parse().unwrap()).collect();
            Optimization { groups, ..Default::default() }.group_plans(&trained)
        };
        let counts = |plans: Vec<GroupPlan>| plans.iter().map(|p| (p.tensors, p.trained)).collect::<Vec<_>>();
        assert_eq!(counts(plans(&["head:lr=2", "*:decay=1"]).unwrap()), [(1, 6), (2, 12)]);
        let error = plans(&["score:lr=2"]).unwrap_err().to_string();
        assert!(
            error.contains("score:lr=2: no trained tensor matches") && error.contains("are head, layers.*.norm"),
            "{error}"
        );
        let error = plans(&["*:lr=2", "head:lr=3"]).unwrap_err().to_string();
        assert!(error.contains("head:lr=3: all tensors that match are in an earlier group"), "{error}");
    }
}

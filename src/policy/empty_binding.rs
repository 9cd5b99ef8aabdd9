//! Rules that forbid every job by mistake. They demand a binding, but a job has no credential yet when it is created.

use cedar_policy::Policy;
use serde_json::Value as Json;

use super::Engine;

/// The values of `context.binding` in a question about a credential. In other questions, `context.binding` is empty.
pub(super) const BINDINGS: [&str; 3] = ["subject", "certificate", "bearer"];

impl Engine {
    /// Returns a line for each `forbid` rule that can apply if the binding is empty, but lets at least one binding pass.
    /// `CreateJob` and sweeps ask with an empty binding. So such a rule refuses each job, and a reload with the rule ends each
    /// lease.
    pub fn empty_bindings(&self) -> Vec<String> {
        let mistaken = self.policies().filter(|(rule, policy)| !rule.permits && forbids_only_none(policy));
        let line = |place: &str, id: &str| {
            format!(
                "{place}: the rule `{id}` refuses every job, because a job is created, and checked again after a reload, \
                 with an empty context.binding: add when {{ context.binding != \"\" }} to the rule"
            )
        };
        mistaken.map(|(rule, _)| line(&rule.place, &rule.id)).collect()
    }
}

/// Whether a `forbid` can apply if the binding is empty, and never applies with at least one of [`BINDINGS`].
fn forbids_only_none(policy: &Policy) -> bool {
    let Ok(json) = policy.to_json() else { return false };
    let applies = |binding| applies(&json, binding);
    applies("") != Some(false) && BINDINGS.into_iter().any(|binding| applies(binding) == Some(false))
}

/// Whether a policy applies to a question with this binding. `None` if the answer depends on other facts.
fn applies(policy: &Json, binding: &str) -> Option<bool> {
    let conditions = policy.get("conditions").and_then(Json::as_array)?;
    let mut all = Some(true);
    for condition in conditions {
        let holds = condition.get("body").and_then(|body| truth(body, binding));
        let is_unless = condition.get("kind").and_then(Json::as_str) == Some("unless");
        all = and(all, if is_unless { holds.map(|holds| !holds) } else { holds });
    }
    all
}

/// Evaluates an expression in Cedar's JSON form. `None` if its value depends on other facts than the binding.
fn truth(expression: &Json, binding: &str) -> Option<bool> {
    let (operator, operands) = expression.as_object()?.iter().next()?;
    let operand = |name: &str| operands.get(name);
    let side = |name: &str| operand(name).and_then(|side| truth(side, binding));
    let not = |truth: Option<bool>| truth.map(|truth| !truth);
    let are_equal = || Some(text(operand("left")?, binding)? == text(operand("right")?, binding)?);
    match operator.as_str() {
        "Value" => operands.as_bool(),
        "==" => are_equal(),
        "!=" => not(are_equal()),
        "!" => not(side("arg")),
        "&&" => and(side("left"), side("right")),
        "||" => not(and(not(side("left")), not(side("right")))),
        "if-then-else" => match side("if") {
            Some(true) => side("then"),
            Some(false) => side("else"),
            None => side("then").filter(|then| side("else") == Some(*then)),
        },
        "contains" => {
            let all = operand("left")?.get("Set")?.as_array()?;
            let wanted = text(operand("right")?, binding)?;
            let all: Option<Vec<&str>> = all.iter().map(|one| text(one, binding)).collect();
            Some(all?.contains(&wanted))
        }
        _ => None,
    }
}

fn and(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

/// Returns the value of an expression that is a text or `context.binding`. `None` for any other expression.
fn text<'a>(expression: &'a Json, binding: &'a str) -> Option<&'a str> {
    if let Some(value) = expression.get("Value") {
        return value.as_str();
    }
    let access = expression.get(".")?;
    let variable = access.get("left")?.get("Var")?.as_str()?;
    ((variable, access.get("attr")?.as_str()?) == ("context", "binding")).then_some(binding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_mistaken(conditions: &str) -> bool {
        let text = format!("forbid (principal, action, resource) {conditions};");
        forbids_only_none(&Policy::parse(None, text).unwrap())
    }

    #[test]
    fn a_rule_that_forbids_only_what_has_no_binding_is_found() {
        for mistaken in [
            r#"unless { context.binding == "certificate" }"#,
            r#"when { context.binding != "certificate" }"#,
            r#"when { !("certificate" == context.binding) }"#,
            r#"when { resource.tier == "lab" } unless { ["subject", "certificate"].contains(context.binding) }"#,
            r#"when { if context.binding == "bearer" then false else true }"#,
            r#"when { resource.tier == "lab" && context.binding != "subject" && context.binding != "certificate" }"#,
        ] {
            assert!(is_mistaken(mistaken), "{mistaken}");
        }
        for good in [
            "",
            r#"when { resource.tier == "lab" }"#,
            r#"when { context.binding == "bearer" }"#,
            r#"when { context.binding != "" } unless { context.binding == "certificate" }"#,
            r#"unless { context.binding == "certificate" || context.binding == "" }"#,
            r#"unless { ["", "certificate"].contains(context.binding) }"#,
            r#"unless { context.binding == "certificate" || resource.tier == "lab" } when { context.binding != "" }"#,
        ] {
            assert!(!is_mistaken(good), "{good}");
        }
    }
}

//! Templates and conditions of steps. An unknown name is an error, so that a misspelt one is never an empty text.

use std::collections::BTreeMap;

use minijinja::{Environment, UndefinedBehavior, Value};

use crate::domain::sequence::StepRun;

/// The names that a step may use.
pub(super) struct Template {
    environment: Environment<'static>,
    values: Value,
}

impl Template {
    /// For `run`; with `is_lenient`, what is not known yet renders as nothing.
    pub fn new(run: &StepRun, is_lenient: bool) -> Self {
        let mut environment = Environment::new();
        let behavior = if is_lenient { UndefinedBehavior::Chainable } else { UndefinedBehavior::Strict };
        environment.set_undefined_behavior(behavior);
        let outputs = run.outputs.iter().map(|(step, outputs)| (step.as_str(), texts(outputs)));
        let own = [
            ("outputs", Value::from_pairs(outputs)),
            ("outcomes", texts(&run.outcomes)),
            ("operation", Value::from(run.operation.as_str())),
            ("step", Value::from(run.step.name.as_str())),
            ("sequence", Value::from(run.sequence.as_str())),
            ("attempt", Value::from(run.attempt)),
            ("key", Value::from(run.key.as_str())),
        ];
        let variables = run.variables.iter().map(|(name, value)| (name.as_str(), Value::from(value.as_str())));
        let values = Value::from_pairs(variables.chain(own));
        Self { environment, values }
    }

    /// `text` with every name replaced.
    pub fn render(&self, text: &str) -> Result<String, String> {
        let rendered = self.environment.render_str(text, self.values.clone());
        rendered.map_err(|error| format!("the template {text:?} cannot be filled in: {error}"))
    }

    /// Whether an expression is true.
    pub fn holds(&self, expression: &str) -> Result<bool, String> {
        let problem = |error: minijinja::Error| format!("the condition {expression:?} cannot be judged: {error}");
        let compiled = self.environment.compile_expression(expression).map_err(problem)?;
        compiled.eval(self.values.clone()).map(|value| value.is_true()).map_err(problem)
    }
}

fn texts(values: &BTreeMap<String, String>) -> Value {
    Value::from_pairs(values.iter().map(|(name, value)| (name.as_str(), Value::from(value.as_str()))))
}

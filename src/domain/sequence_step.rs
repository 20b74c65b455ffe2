//! The place of a step in its sequence, as a name in the journal. The number is all there is to it: what it does is in the operation.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::operation::StepName;
use super::sequence::STEPS_MAX;

/// Static, because labels of steps are labels of metrics.
const LABELS: [&str; STEPS_MAX] = [
    "step_1", "step_2", "step_3", "step_4", "step_5", "step_6", "step_7", "step_8", "step_9", "step_10", "step_11",
    "step_12", "step_13", "step_14", "step_15", "step_16", "step_17", "step_18", "step_19", "step_20", "step_21",
    "step_22", "step_23", "step_24", "step_25", "step_26", "step_27", "step_28", "step_29", "step_30", "step_31",
    "step_32",
];

/// Counts from 0 inside, and from 1 for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceIndex(u8);

/// A name that is no place in a sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no step: use step_1 to step_{STEPS_MAX}, or the name of a built-in step")]
pub struct NoStep(String);

impl SequenceIndex {
    /// The place of the step at `index`, counted from 0; `None` beyond [`STEPS_MAX`].
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|_| index < STEPS_MAX).map(Self)
    }

    /// Counted from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// `step_1`.
    pub fn label(self) -> &'static str {
        LABELS[self.index()]
    }
}

impl fmt::Display for SequenceIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

impl TryFrom<String> for SequenceIndex {
    type Error = NoStep;
    fn try_from(text: String) -> Result<Self, NoStep> {
        LABELS.iter().position(|label| *label == text).and_then(Self::new).ok_or(NoStep(text))
    }
}

impl From<SequenceIndex> for String {
    fn from(index: SequenceIndex) -> String {
        index.label().to_owned()
    }
}

// Written out: the derived schema takes the untagged variant for an object.
impl PartialSchema for StepName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "A built-in step, such as `fence` or `promote`, or a step of a sequence by its place: `step_1`.",
            ))
            .pattern(Some("^[a-z]+(_[a-z]+)*(_[0-9]+)?$"))
            .examples(["promote", "step_1"])
            .into()
    }
}

impl ToSchema for StepName {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::operation::StepName;

    #[test]
    fn steps_of_sequences_are_words_like_all_others() {
        let third = StepName::Sequence(SequenceIndex::new(2).expect("a place"));
        let text = serde_json::to_string(&third).expect("plain data");
        assert_eq!(text, "\"step_3\"");
        assert_eq!(serde_json::from_str::<StepName>(&text).expect("the same"), third);
        assert_eq!(serde_json::from_str::<StepName>("\"fence\"").expect("a step"), StepName::Fence);
        assert!(serde_json::from_str::<StepName>("\"step_33\"").is_err());
        assert_eq!(SequenceIndex::new(STEPS_MAX), None);
        assert_eq!(SequenceIndex::new(31).map(SequenceIndex::label), Some("step_32"));
    }
}

//! Reads `features.toml`: every mistake names the file, the line and the feature.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::domain::feature::Feature;

/// The features that are built in: the file of the repository.
const BUILT_IN: &str = include_str!("../../training/features.toml");

/// A file of features that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// It cannot be read.
    #[error("read the features {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or holds something else.
    #[error("{path}:{line}: {problem}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What, and what to do.
        problem: String,
    },
    /// A feature breaks a rule.
    #[error("{path}:{line}: feature {name:?}: {problem}")]
    Refused {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The feature.
        name: String,
        /// What, and what to do.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    feature: Vec<Spanned<Feature>>,
}

/// Reads a file, or what is built in.
pub fn load_features(path: Option<&Path>) -> Result<Vec<Feature>, FeaturesError> {
    match path {
        None => parse(Path::new("features.toml (built in)"), BUILT_IN),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| FeaturesError::Unreadable { path: path.to_owned(), source })?;
            parse(path, &text)
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<Feature>, FeaturesError> {
    let line_of = |offset: usize| text.get(..offset).unwrap_or(text).matches('\n').count() + 1;
    let document: Document = toml::from_str(text).map_err(|error| FeaturesError::Malformed {
        path: path.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;
    let mut features: Vec<Feature> = Vec::new();
    for spanned in document.feature {
        let line = line_of(spanned.span().start);
        let feature = spanned.into_inner();
        let twice = features.iter().any(|other| other.name == feature.name);
        let problem = feature.problem().or_else(|| twice.then(|| "the name is there twice".to_owned()));
        if let Some(problem) = problem {
            return Err(FeaturesError::Refused { path: path.to_owned(), line, name: feature.name, problem });
        }
        features.push(feature);
    }
    if features.is_empty() {
        return Err(FeaturesError::Malformed {
            path: path.to_owned(),
            line: 1,
            problem: "there is no [[feature]]: a model needs some".to_owned(),
        });
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(Path::new("features.toml"), text).expect_err("refused").to_string()
    }

    #[test]
    fn the_built_in_features_are_good_and_about_forty() {
        let features = load_features(None).expect("good");
        assert!((35..=60).contains(&features.len()), "{}", features.len());
    }

    #[test]
    fn a_mistake_names_file_line_and_feature() {
        let good = "[[feature]]\nname = \"up\"\nquery = 'up{node=~\"$node\"}'\nunit = \"1\"\ndirection = \"low\"\n";
        assert_eq!(parse(Path::new("f"), good).expect("good").len(), 1);
        let text = refused(&good.replace("$node", "n1"));
        assert!(text.starts_with("features.toml:1: feature \"up\": the query must select nodes"), "{text}");
        let text = refused(&format!("{good}\n{good}"));
        assert!(text.starts_with("features.toml:7: feature \"up\": the name is there twice"), "{text}");
        let text = refused(&good.replace("direction = \"low\"", "direction = \"sideways\""));
        assert!(text.starts_with("features.toml:5:") && text.contains("sideways"), "{text}");
        let text = refused(&format!("{good}spread_min = 0.0\n"));
        assert!(text.contains("spread_min takes a number above zero"), "{text}");
        let text = refused(&good.replace("unit", "unti"));
        assert!(text.contains("unti"), "{text}");
        assert!(refused("feature = []").contains("there is no [[feature]]"));
        assert!(refused("[[feature]\n").starts_with("features.toml:1:"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load_features(Some(Path::new("/nonexistent/features.toml"))).expect_err("missing");
        assert!(error.to_string().contains("/nonexistent/features.toml"));
    }
}

//! What was asked for against what took effect, within one leg.

use super::leg::{Leg, Says, layer_list};
use cute_records::Severity;
use serde_json::Value;

/// Knobs whose two sides are spelled alike, so that unequal means not in effect.
const COMPARABLE: &[&str] = &[
    "attention_backend",
    "cudagraph_mode",
    "enable_prefix_caching",
    "enforce_eager",
    "fallback_raise",
    "kv_cache_dtype",
    "mamba_cache_mode",
    "max_model_len",
    "max_num_batched_tokens",
    "mlp_tile",
    "phase_e_fusion",
    "phase_e_layers",
    "quantization",
    "tensor_parallel_size",
    "wo_split",
];

impl Leg {
    /// Derives what the dispatch lines say took effect, then compares.
    pub(super) fn check(&mut self) {
        self.dispatch_effects();
        self.malformed();
        let mut wrong = Vec::new();
        for name in COMPARABLE {
            let Some(knob) = self.knobs.get(*name) else { continue };
            let (asked, got) = (knob.values.get(&Says::Requested), knob.values.get(&Says::Effective));
            if let (Some(asked), Some(got)) = (asked, got)
                && asked.value != got.value
            {
                wrong.push((
                    got.at.clone(),
                    format!(
                        "{name} was asked for as {:?} ({}), {:?} took effect",
                        asked.value, asked.at, got.value
                    ),
                ));
            }
        }
        for (at, message) in wrong {
            self.find("requested_not_effective", Severity::Warning, &at, message);
        }
        let mut recorded = Vec::new();
        for (name, knob) in &self.knobs {
            let Some(noted) = knob.values.get(&Says::Recorded) else { continue };
            for (who, word) in [(Says::Requested, "asked for as"), (Says::Effective, "in effect as")] {
                if let Some(other) = knob.values.get(&who).filter(|o| o.value != noted.value) {
                    recorded.push((
                        noted.at.clone(),
                        format!(
                            "{name} is recorded as {:?}, {word} {:?} ({})",
                            noted.value, other.value, other.at
                        ),
                    ));
                }
            }
        }
        for (at, message) in recorded {
            self.find("record_contradicts_log", Severity::Error, &at, message);
        }
        self.coop_layers();
        self.commits();
        self.silent_knobs();
    }

    /// Fusion, layers and `wo_split` as the dispatch lines show them.
    fn dispatch_effects(&mut self) {
        let Some(first) = self.dispatches.first().cloned() else { return };
        let at = format!("{}:{}", first.source.file, first.source.line);
        let enabled = self.dispatches.iter().any(|d| d.enabled);
        self.set("phase_e_fusion", Says::Effective, &Value::Bool(enabled), &at);
        if enabled {
            let layers = match &first.restricted_layers {
                None => Value::from("all"),
                Some(layers) => Value::from(layers.clone()),
            };
            self.set("phase_e_layers", Says::Effective, &layers, &at);
        }
        if let Some(wo_split) = first.wo_split {
            self.set("wo_split", Says::Effective, &Value::from(wo_split), &at);
        }
        for (knob, list) in [
            ("coop_layers", layer_list(self.dispatches.iter().filter(|d| d.use_beta_coop))),
            ("lite_layers", layer_list(self.dispatches.iter().filter(|d| d.use_beta_lite))),
        ] {
            self.set(
                knob,
                Says::Effective,
                &Value::from(if list.is_empty() { "none".to_owned() } else { list }),
                &at,
            );
        }
    }

    /// Values that the server does not understand and silently reads as something else.
    fn malformed(&mut self) {
        let asked =
            |leg: &Leg, knob: &str| leg.knobs.get(knob).and_then(|k| k.values.get(&Says::Requested)).cloned();
        if let Some(layers) = asked(self, "phase_e_layers")
            && layers.value.split(',').any(|l| l.trim().parse::<u32>().is_err())
        {
            let message = format!(
                "phase_e_layers {:?} is no list of layers: the server then allows every layer",
                layers.value
            );
            self.find("malformed_knob", Severity::Error, &layers.at, message);
        }
        if let Some(path) = asked(self, "phase_e_path")
            && !["auto", "coop", "lite"].contains(&path.value.as_str())
        {
            let message = format!(
                "phase_e_path {:?} is none of auto, coop, lite: the server then takes auto",
                path.value
            );
            self.find("malformed_knob", Severity::Error, &path.at, message);
        }
        if let Some(split) = asked(self, "wo_split")
            && !["1", "2", "4", "8"].contains(&split.value.as_str())
        {
            let message = format!(
                "wo_split {:?} is none of 1, 2, 4, 8: the cooperative kernel is then not built",
                split.value
            );
            self.find("malformed_knob", Severity::Error, &split.at, message);
        }
        for switch in ["phase_e_fusion", "fallback_raise", "dispatch_log", "region_timing"] {
            if let Some(value) = asked(self, switch)
                && !["0", "1"].contains(&value.value.as_str())
            {
                let message =
                    format!("{switch} {:?} is neither 0 nor 1: the server then takes it as off", value.value);
                self.find("malformed_knob", Severity::Warning, &value.at, message);
            }
        }
    }

    /// Layers expected on the cooperative path against those that say they took it.
    fn coop_layers(&mut self) {
        let get = |leg: &Leg, knob: &str, who| leg.knobs.get(knob).and_then(|k| k.values.get(&who)).cloned();
        let Some(coop) = get(self, "coop_layers", Says::Effective) else { return };
        let got = if coop.value == "none" { "" } else { coop.value.as_str() };
        if let Some(expected) = get(self, "expected_coop_layers", Says::Recorded)
            && expected.value != got
        {
            let message = format!(
                "layers {:?} were expected on the cooperative path, {:?} took it",
                expected.value, coop.value
            );
            self.find("requested_not_effective", Severity::Error, &coop.at, message);
        }
        let path = self.knobs.get("phase_e_path").and_then(|k| k.value().map(str::to_owned));
        let lite = get(self, "lite_layers", Says::Effective).map(|s| s.value).unwrap_or_default();
        let contradicts = match path.as_deref() {
            Some("coop") => lite != "none",
            Some("lite") => coop.value != "none",
            _ => false,
        };
        if contradicts {
            let message = format!(
                "phase_e_path {:?}, but coop layers are {} and lite layers {lite}",
                path.unwrap_or_default(),
                coop.value
            );
            self.find("requested_not_effective", Severity::Error, &coop.at, message);
        }
    }

    /// The commit the image was built from against the one that was written down.
    fn commits(&mut self) {
        let image = self.knobs.get("image_commit").and_then(|k| k.values.get(&Says::Effective)).cloned();
        let noted = self.knobs.get("git_sha").and_then(|k| k.values.get(&Says::Recorded)).cloned();
        if let (Some(image), Some(noted)) = (image, noted)
            && !noted.value.starts_with(&image.value)
            && !image.value.starts_with(&noted.value)
        {
            let message = format!(
                "the image says it was built from {} ({}), the results record commit {}: what ran is not what is recorded",
                image.value,
                image.at,
                noted.value.chars().take(12).collect::<String>()
            );
            self.find("commit_mismatch", Severity::Warning, &noted.at, message);
        }
    }

    /// Switches that were on and left no trace in the log.
    fn silent_knobs(&mut self) {
        if !self.has_log {
            return;
        }
        let on = |leg: &Leg, knob: &str| {
            let sighting = leg.knobs.get(knob)?.values.get(&Says::Requested)?;
            (sighting.value == "1").then(|| sighting.clone())
        };
        if let Some(asked) = on(self, "dispatch_log").filter(|_| self.dispatches.is_empty()) {
            let message =
                "dispatch_log is on and the log holds no dispatch line: the code that runs does not know it";
            self.find("requested_not_effective", Severity::Error, &asked.at, message.to_owned());
        }
        let seen = self.knobs.get("fallback_raise").is_some_and(|k| k.values.contains_key(&Says::Effective));
        if let Some(asked) = on(self, "fallback_raise").filter(|_| !seen) {
            let message = "fallback_raise is on and the log does not confirm it";
            self.find("requested_not_effective", Severity::Warning, &asked.at, message.to_owned());
        }
    }
}

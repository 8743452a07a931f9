//! How the proto's enums read in JSON and on the terminal: the value's word without its prefix, in lower case. Must never
//! print a number where there is a word.

use serde::Serializer;

use crate::rpc::pb;

/// Declares, for one enum, its word and its serializer; the serializers are named by `build.rs` in field attributes.
macro_rules! words {
    ($($name:ident: $type:ident, $prefix:literal;)*) => {$(
        impl pb::$type {
            /// The value as a word: `TIER_NVME` is `nvme`.
            #[must_use]
            pub fn word(self) -> String {
                let name = self.as_str_name();
                name.strip_prefix($prefix).unwrap_or(name).to_ascii_lowercase()
            }
        }

        /// Serializes the value as its word; a value of a newer daemon as `unknown`.
        #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
        pub(crate) fn $name<S: Serializer>(value: &i32, s: S) -> Result<S::Ok, S::Error> {
            match pb::$type::try_from(*value) {
                Ok(value) => s.serialize_str(&value.word()),
                Err(_) => s.serialize_str("unknown"),
            }
        }
    )*};
}

words! {
    fault_kind: FaultKind, "FAULT_KIND_";
    tier: Tier, "TIER_";
    trust: Trust, "TRUST_";
    priority: Priority, "PRIORITY_";
    phase: Phase, "PHASE_";
    origin_state: OriginState, "ORIGIN_STATE_";
    ram_hold: RamHold, "RAM_HOLD_";
    decision_kind: DecisionKind, "DECISION_KIND_";
    regression_kind: RegressionKind, "REGRESSION_KIND_";
    obstacle_kind: ObstacleKind, "OBSTACLE_KIND_";
    vram_place: VramPlace, "VRAM_PLACE_";
    import_how: ImportHow, "IMPORT_HOW_";
    workflow_form: WorkflowForm, "WORKFLOW_FORM_";
    need_match: NeedMatch, "NEED_MATCH_";
    idle_reason: IdleReason, "IDLE_REASON_";
    predict_mode: PredictMode, "PREDICT_MODE_";
    prompt_state: PromptState, "PROMPT_STATE_";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_message_reads_as_its_one_member_with_words_for_enums() {
        let models = vec![pb::ModelProgress {
            model: "vae/x".into(),
            bytes_total: 4,
            bytes_done: 2,
            phase: pb::Phase::Fetching.into(),
        }];
        let progress = pb::Progress { bytes_done: 2, bytes_total: 4, models, ..Default::default() };
        let response = pb::EnsureResponse { update: Some(pb::ensure_response::Update::Progress(progress)) };
        let json = serde_json::to_value(&response).expect("serializes");
        assert_eq!(json["progress"]["models"][0]["phase"], "fetching");
        assert_eq!(json["progress"]["bytes_total"], 4);
        assert_eq!(json["progress"]["remaining"], serde_json::Value::Null);
    }
}

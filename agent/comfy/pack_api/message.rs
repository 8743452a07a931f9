//! The messages of `comfy/v1`, and what they become once every field is checked. Fields that are not known are passed over: a
//! newer pack may say more.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierd_cache::fault::Fault;
use tierd_cache::ids::ModelKey;
use tierd_cache::vram::{Claim, DeviceReport, Hello, Prompt, Read, Report, WorkerId};

/// The option with which ComfyUI streams weights from the disk instead of keeping a copy of its own.
const FAST_DISK: &str = "--fast-disk";
/// Words of a command line that are looked at.
const ARGV_MAX: usize = 1024;

/// `POST hello`.
#[derive(Debug, Deserialize)]
pub(super) struct HelloBody {
    worker: String,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    pack_version: String,
    #[serde(default)]
    comfyui_version: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    argv: Vec<String>,
    #[serde(default)]
    hooks: BTreeMap<String, String>,
    #[serde(default)]
    folders: BTreeMap<String, Vec<String>>,
}

/// The answer to it.
#[derive(Debug, Serialize)]
pub(super) struct HelloAnswer {
    pub(super) gate: bool,
    pub(super) gate_timeout_s: u64,
    pub(super) report_interval_ms: u64,
    pub(super) models_path: String,
}

/// `POST report`.
#[derive(Debug, Deserialize)]
pub(super) struct ReportBody {
    worker: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    events: Vec<EventBody>,
    devices: Option<Vec<DeviceBody>>,
    next: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum EventBody {
    PromptQueued {
        prompt_id: String,
    },
    PromptStarted {
        prompt_id: String,
    },
    PromptEnded {
        prompt_id: String,
    },
    FileRead {
        file: String,
        #[serde(default)]
        seconds: f64,
        #[serde(default)]
        bytes: u64,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct DeviceBody {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    total_bytes: u64,
    #[serde(default)]
    free_bytes: u64,
    #[serde(default)]
    torch_bytes: u64,
    #[serde(default)]
    models: Vec<ModelBody>,
}

#[derive(Debug, Deserialize)]
struct ModelBody {
    #[serde(default)]
    file: String,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    loaded_bytes: u64,
    #[serde(default)]
    in_use: bool,
}

/// `POST ensure`.
#[derive(Debug, Deserialize)]
pub(super) struct EnsureBody {
    worker: String,
    model: String,
}

/// The answer to `GET absent`.
#[derive(Debug, Serialize)]
pub(super) struct Absent {
    pub(super) models: Vec<ModelKey>,
}

fn worker(text: &str) -> Result<WorkerId, Fault> {
    WorkerId::parse(text).ok_or_else(|| Fault::Invalid {
        field: "worker",
        reason: "a worker's name has 1 to 64 letters, digits, - and _".to_owned(),
    })
}

impl HelloBody {
    /// Who it is, and what it says of itself.
    pub(super) fn checked(self) -> Result<(WorkerId, Hello), Fault> {
        if self.argv.len() > ARGV_MAX {
            let reason = format!("there are {}, more than {ARGV_MAX}", self.argv.len());
            return Err(Fault::Invalid { field: "argv", reason });
        }
        let paths = |(folder, paths): (String, Vec<String>)| paths.into_iter().map(move |path| (folder.clone(), path));
        let hello = Hello {
            pid: self.pid,
            watched: None,
            address: self.address.trim_end_matches('/').to_owned(),
            pack_version: self.pack_version,
            version: self.comfyui_version,
            fast_disk: self.argv.iter().any(|word| word == FAST_DISK),
            hooks: self.hooks,
            folders: self.folders.into_iter().flat_map(paths).collect(),
        };
        Ok((worker(&self.worker)?, hello))
    }
}

impl ReportBody {
    /// Who says it, and what.
    pub(super) fn checked(self) -> Result<(WorkerId, Report), Fault> {
        let mut report = Report { seq: self.seq, ..Report::default() };
        for event in self.events {
            match event {
                EventBody::PromptQueued { prompt_id } => report.prompts.push(Prompt::Queued(prompt_id)),
                EventBody::PromptStarted { prompt_id } => report.prompts.push(Prompt::Started(prompt_id)),
                EventBody::PromptEnded { prompt_id } => report.prompts.push(Prompt::Ended(prompt_id)),
                EventBody::FileRead { file, seconds, bytes } => {
                    let elapsed = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                    report.reads.push(Read { file, blob: None, bytes, elapsed });
                }
                EventBody::Other => {}
            }
        }
        report.devices = self.devices.map(|devices| devices.into_iter().map(DeviceReport::from).collect());
        let next =
            |models: Vec<String>| models.iter().map(|model| ModelKey::parse(model).map_err(Fault::from)).collect();
        report.next = self.next.map(next).transpose()?;
        Ok((worker(&self.worker)?, report))
    }
}

impl EnsureBody {
    /// Who wants it, and what.
    pub(super) fn checked(self) -> Result<(WorkerId, ModelKey), Fault> {
        Ok((worker(&self.worker)?, ModelKey::parse(&self.model)?))
    }
}

impl From<DeviceBody> for DeviceReport {
    fn from(device: DeviceBody) -> Self {
        let claim = |model: ModelBody| Claim {
            file: model.file,
            blob: None,
            bytes: model.bytes,
            loaded: model.loaded_bytes,
            in_use: model.in_use,
        };
        Self {
            index: device.index,
            name: device.name,
            uuid: device.uuid,
            total: device.total_bytes,
            free: device.free_bytes,
            torch: device.torch_bytes,
            models: device.models.into_iter().map(claim).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_a_newer_pack_is_understood_as_far_as_it_is_known() {
        let text = r#"{"worker":"w","seq":3,"later":1,"events":[{"kind":"invented","x":[]},
            {"kind":"prompt_started","at":1,"prompt_id":"p"},
            {"kind":"file_read","at":1,"file":"/m/x","seconds":-1.5,"bytes":7,"prompt_id":"p"}],
            "devices":[{"index":1,"total_bytes":9,"models":[{"file":"/m/x","bytes":7,"loaded_bytes":7,"in_use":true}]}]}"#;
        let body: ReportBody = serde_json::from_str(text).expect("understood");
        let (_, report) = body.checked().expect("accepted");
        assert_eq!((report.seq, report.prompts.len(), report.reads.len()), (3, 1, 1));
        assert_eq!(report.reads[0].elapsed, Duration::ZERO, "nothing takes less than no time");
        assert_eq!(report.devices.expect("told")[0].models[0].loaded, 7);
        let quiet: ReportBody = serde_json::from_str(r#"{"worker":"w"}"#).expect("understood");
        assert_eq!(quiet.checked().expect("accepted").1.devices, None, "absent is unchanged, not empty");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field() {
        let of = |text: &str| serde_json::from_str::<EnsureBody>(text).expect("understood").checked();
        for (text, field) in [
            (r#"{"worker":"a b","model":"vae/x"}"#, "worker"),
            (r#"{"worker":"a","model":"/etc/passwd"}"#, "models"),
            (r#"{"worker":"a","model":"vae/../x"}"#, "models"),
        ] {
            assert!(matches!(of(text), Err(Fault::Invalid { field: found, .. }) if found == field), "{text}");
        }
    }

    #[test]
    fn a_server_that_streams_from_the_disk_is_known_by_its_command_line() {
        let text = r#"{"worker":"w","argv":["main.py","--fast-disk"],"address":"http://127.0.0.1:8188/",
            "folders":{"vae":["/a","/b"]}}"#;
        let (_, hello) = serde_json::from_str::<HelloBody>(text).expect("understood").checked().expect("accepted");
        assert!(hello.fast_disk);
        assert_eq!(hello.address, "http://127.0.0.1:8188");
        assert_eq!(hello.folders, [("vae".to_owned(), "/a".to_owned()), ("vae".to_owned(), "/b".to_owned())]);
    }
}

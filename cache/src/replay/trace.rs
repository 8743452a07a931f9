//! Traces: which request needed which files, and when. Text in, values out; opens no file.
//!
//! A trace is CSV with the header `timestamp_ms,request_id,model_key,bytes,kind`: one line for each file that a request needs, the lines of a
//! request together, requests in the order of time. Beside it may be `request_id,client,service_ms,task`.

use std::collections::HashMap;

use crate::ids::{BlobId, ModelKey};

/// The first line of a trace.
pub const HEADER: &str = "timestamp_ms,request_id,model_key,bytes,kind";
/// The first line of what goes beside a trace.
pub const REQUESTS_HEADER: &str = "request_id,client,service_ms,task";
/// Most files that a trace may name.
const FILES_MAX: usize = 1 << 20;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The model that stands for it.
    pub model: ModelKey,
    /// Its made-up content.
    pub blob: BlobId,
    /// Its size.
    pub bytes: u64,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its number in the trace.
    pub id: u64,
    /// When it came, in milliseconds from any start.
    pub at_ms: u64,
    /// What it needs, as rows of [`Trace::files`]. Each once.
    pub files: Vec<u32>,
    /// How long a GPU works on it.
    pub service_ms: u64,
    /// Who asked, if that is known.
    pub client: String,
}

/// Requests in the order of time, and the files that they name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// Files.
    pub files: Vec<File>,
    /// Requests.
    pub requests: Vec<Request>,
    known: HashMap<String, u32>,
}

/// What is wrong with a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadTrace {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, with the value.
    pub reason: String,
}

/// The folder of a kind of file.
fn folder(kind: &str) -> &'static str {
    match kind {
        "checkpoint" => "checkpoints",
        "diffusion_model" => "diffusion_models",
        "text_encoder" => "text_encoders",
        "vae" => "vae",
        "lora" => "loras",
        "controlnet" => "controlnet",
        _ => "other",
    }
}

fn number(text: &str, what: &str, line: usize) -> Result<u64, BadTrace> {
    text.trim().parse().map_err(|_| BadTrace { line, reason: format!("{what} {text:?} is not a whole number") })
}

impl Trace {
    /// Adds the requests of a text to those that there are.
    ///
    /// # Errors
    ///
    /// [`BadTrace`] with the first line that is wrong.
    pub fn read(&mut self, text: &str) -> Result<(), BadTrace> {
        let mut lines = text.lines().enumerate().map(|(row, text)| (row + 1, text));
        match lines.next() {
            Some((_, HEADER)) => {}
            first => {
                let found = first.map_or("", |(_, text)| text);
                return Err(BadTrace { line: 1, reason: format!("the header is {found:?}, it must be {HEADER:?}") });
            }
        }
        let mut open: Option<u64> = None;
        for (line, text) in lines.filter(|(_, text)| !text.is_empty()) {
            let fields: Vec<&str> = text.split(',').collect();
            let [at, id, key, bytes, kind] = fields[..] else {
                let reason = format!("{} fields, a trace has 5: {HEADER}", fields.len());
                return Err(BadTrace { line, reason });
            };
            let (at_ms, id) = (number(at, "timestamp_ms", line)?, number(id, "request_id", line)?);
            let file = self.file(key, number(bytes, "bytes", line)?, kind, line)?;
            if open != Some(id) {
                if self.requests.last().is_some_and(|last| last.at_ms > at_ms) {
                    return Err(BadTrace { line, reason: format!("{at_ms} ms is before the request above it") });
                }
                self.requests.push(Request { id, at_ms, files: Vec::new(), service_ms: 0, client: String::new() });
                open = Some(id);
            }
            if let Some(request) = self.requests.last_mut().filter(|request| !request.files.contains(&file)) {
                request.files.push(file);
            }
        }
        Ok(())
    }

    fn file(&mut self, key: &str, bytes: u64, kind: &str, line: usize) -> Result<u32, BadTrace> {
        if let Some(row) = self.known.get(key) {
            return Ok(*row);
        }
        if self.files.len() >= FILES_MAX {
            return Err(BadTrace { line, reason: format!("more than {FILES_MAX} files") });
        }
        // A recorded trace names models; others name them as they like.
        let named = ModelKey::parse(key).or_else(|_| ModelKey::parse(&format!("{}/{key}", folder(kind))));
        let model = named.map_err(|bad| BadTrace { line, reason: bad.to_string() })?;
        let row = self.files.len() as u32;
        self.files.push(File { model, blob: BlobId(*blake3::hash(key.as_bytes()).as_bytes()), bytes });
        self.known.insert(key.to_owned(), row);
        Ok(row)
    }

    /// Adds what is known beside a trace, to the requests from `first` on: who asked, and how long a GPU worked on it.
    ///
    /// # Errors
    ///
    /// [`BadTrace`] with the first line that is wrong.
    pub fn read_requests(&mut self, text: &str, first: usize) -> Result<(), BadTrace> {
        let mut beside = HashMap::new();
        for (row, text) in text.lines().enumerate().skip(1).filter(|(_, text)| !text.is_empty()) {
            let line = row + 1;
            let fields: Vec<&str> = text.split(',').collect();
            let [id, client, service, ..] = fields[..] else {
                return Err(BadTrace { line, reason: format!("too few fields: {REQUESTS_HEADER}") });
            };
            let service = number(service, "service_ms", line)?;
            beside.insert(number(id, "request_id", line)?, (client.to_owned(), service));
        }
        for request in self.requests.iter_mut().skip(first) {
            if let Some((client, service_ms)) = beside.get(&request.id) {
                (request.client, request.service_ms) = (client.clone(), *service_ms);
            }
        }
        Ok(())
    }

    /// Bytes of the distinct files of the requests from `first` on.
    #[must_use]
    pub fn distinct_bytes(&self, first: usize) -> u64 {
        let mut seen = vec![false; self.files.len()];
        for file in self.requests.iter().skip(first).flat_map(|request| &request.files) {
            seen[*file as usize] = true;
        }
        self.files.iter().zip(seen).filter(|(_, seen)| *seen).map(|(file, _)| file.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_request_are_one_request_and_a_file_is_wanted_once() {
        let text = format!("{HEADER}\n5,1,a,10,lora\n5,1,b,20,vae\n5,1,a,10,lora\n9,2,b,20,vae\n");
        let mut trace = Trace::default();
        trace.read(&text).expect("a good trace");
        trace.read_requests(&format!("{REQUESTS_HEADER}\n2,me,700,x\n"), 0).expect("good too");
        let files: Vec<&[u32]> = trace.requests.iter().map(|request| &request.files[..]).collect();
        assert_eq!(files, [&[0, 1][..], &[1]]);
        assert_eq!((trace.requests[1].service_ms, trace.requests[1].client.as_str()), (700, "me"));
        assert_eq!(trace.files[0].model.as_str(), "loras/a");
        assert_eq!((trace.distinct_bytes(0), trace.distinct_bytes(1)), (30, 20));
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, says) in [
            ("x", "line 1: the header"),
            (&format!("{HEADER}\n1,2,3"), "line 2: 3 fields"),
            (&format!("{HEADER}\n1,1,a,ten,vae"), "line 2: bytes \"ten\""),
            (&format!("{HEADER}\n5,1,a,1,vae\n4,2,a,1,vae"), "line 3: 4 ms"),
        ] {
            let bad = Trace::default().read(text).expect_err("bad").to_string();
            assert!(bad.starts_with(says), "{bad}");
        }
    }
}

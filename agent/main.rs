//! The binary: hands the environment to the command line and ends the process with its code. The only exit.

use std::collections::BTreeMap;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Variables that are not UTF-8 are not ours.
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    ExitCode::from(tierd::cli::main(env) as u8)
}

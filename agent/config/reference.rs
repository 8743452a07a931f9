//! The reference: an example file with every option, and docs/configuration.md. Both are printed from the table of
//! options.

use std::fmt::Write as _;

use super::options::{self, Preset, Section, Spec};

/// Widest line of the example file.
const COLUMNS: usize = 110;

/// An example file: every option with its default and the reason for it, all commented out. It reads as no change.
#[must_use]
pub fn reference_toml() -> String {
    let mut out = String::from(
        "# tierd's configuration: every option, its default, and the reason for it.\n\
         # A line that begins with \"#\" and a key is an option: remove the \"#\" to set it. Everything may stay as it is.\n\
         # Each option can also be set by an environment variable: [store] budget is TIERD_STORE__BUDGET.\n\
         # Check with: tierd check-config\n",
    );
    for section in Section::ALL {
        out.push('\n');
        comment(&mut out, section.about());
        let mark = if section.is_optional() { "#" } else { "" };
        let _ = writeln!(out, "{mark}{}", section.header());
        for spec in options::of(section) {
            out.push('\n');
            comment(&mut out, &explain(spec));
            let value = if let Preset::Is(value) = spec.preset { value } else { spec.example };
            let _ = writeln!(out, "#{} = {value}", spec.key);
        }
    }
    out
}

/// The text of docs/configuration.md.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::from(INTRODUCTION);
    for section in Section::ALL {
        let _ = write!(out, "\n## `{}`\n\n{}\n\n", section.header(), section.about());
        out.push_str(
            "| key | value | default | what it does, and why the default is so |\n| --- | --- | --- | --- |\n",
        );
        for spec in options::of(section) {
            let default = match spec.preset {
                Preset::Is(value) => format!("`{value}`"),
                Preset::Computed(words) => words.to_owned(),
                Preset::Unset => "not set".to_owned(),
                Preset::Required => "must be set".to_owned(),
            };
            let about = format!("{}{}", applies(spec), spec.about);
            let _ = writeln!(out, "| `{}` | {} | {default} | {about} |", spec.key, spec.kind.describe());
        }
    }
    out.push_str("\n## Environment variables\n\n");
    for spec in options::all() {
        let _ = writeln!(out, "- `{}`: `{}`", spec.variable(), spec.path());
    }
    out
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Printed from the table of options in agent/config/options/. Do not edit: UPDATE_DOCS=1 cargo test prints it again. -->

tierd reads one TOML file and then the environment. It runs with neither: models are kept in the state folder, and a
local folder is the origin. The file is the first that there is of

1. `--config FILE`,
2. `$TIERD_CONFIG`,
3. `$XDG_CONFIG_HOME/tierd/config.toml` (or `~/.config/tierd/config.toml`),
4. `/etc/tierd/config.toml`.

`tierd check-config` reads it as the daemon would and reports every mistake at once, with its line; without mistakes it prints
what is in effect. `tierd check-config --example` prints a file with every option to start from.

- **Units.** Sizes are `\"500 GiB\"` (1024), `\"64 MB\"` (1000) or a number of bytes; durations are `\"30s\"`, `\"250ms\"`, `\"5 min\"`,
  `\"1.5h\"`, `\"7d\"`, always with a unit; shares of a disk are `\"80%\"`.
- **Paths** are absolute, below `~/`, or relative to the file they are written in.
- **Secrets** are never written into the file. `…_file` names a file that holds nothing but the secret; a relative name is looked
  for in `$CREDENTIALS_DIRECTORY` first (systemd's `LoadCredential=`), then beside the configuration file. `…_env` names an environment
  variable. No message, log or metric shows what is in them.
- **Environment.** Every option can be overridden: `[store] budget` by `TIERD_STORE__BUDGET`, `[listen.tcp] address` by
  `TIERD_LISTEN__TCP__ADDRESS`. Two underscores part section and key. Options of an origin carry its name: `TIERD_ORIGIN_R2__BUCKET` sets
  `bucket` of the origin `r2` (in capitals, and `_` for `-` and `.`), and makes that origin if the file has none of that name;
  callers likewise: `TIERD_CALLER_SCHEDULER__ROLE`.
  A variable with two underscores that sets nothing is a mistake like any other. `TIERD_CONFIG`, `TIERD_SOCKET` and `TIERD_TOKEN` are read by
  the command line, not by this.
- **Mistakes.** Unknown keys are refused. An option that does not fit its origin's kind is refused, not ignored.
";

fn applies(spec: &Spec) -> String {
    if spec.only.is_empty() { String::new() } else { format!("Only for `{}`. ", spec.only.join("`, `")) }
}

fn explain(spec: &Spec) -> String {
    let default = match spec.preset {
        Preset::Is(_) => String::new(),
        Preset::Computed(words) => format!(" Default: {words}."),
        Preset::Unset => " Not set by default.".to_owned(),
        Preset::Required => " Must be set.".to_owned(),
    };
    format!("{}{}{default} Takes {}.", applies(spec), spec.about, spec.kind.describe())
}

/// Writes a text as comment lines.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

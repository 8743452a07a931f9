//! How an ensure shows on the terminal: bars where there is one, lines where not, JSON where asked.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tierd_cache::units::human_duration;

use crate::cli::out::{Out, count, rate, size};
use crate::rpc::pb::{self, Phase};

/// Most bars at once; the other models wait for one.
const BARS_MAX: usize = 12;
/// Between two updates of bars: smooth to the eye.
const BARS_INTERVAL: Duration = Duration::from_millis(200);
/// Between two JSON objects.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// Between two lines in a log.
const LINES_INTERVAL: Duration = Duration::from_secs(5);

/// The display of one ensure.
#[derive(Debug)]
pub(crate) struct Display {
    out: Out,
    bars: Option<Bars>,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    models: BTreeMap<String, ProgressBar>,
    done: std::collections::BTreeSet<String>,
}

impl Display {
    /// A display for this terminal, or for none.
    #[must_use]
    pub(crate) fn new(out: Out) -> Self {
        Self { out, bars: out.draws().then(Bars::new) }
    }

    /// How often the daemon should tell.
    #[must_use]
    pub(crate) fn interval(&self) -> Duration {
        if self.bars.is_some() {
            BARS_INTERVAL
        } else if self.out.json {
            JSON_INTERVAL
        } else {
            LINES_INTERVAL
        }
    }

    /// Shows what will happen.
    pub(crate) fn plan(&mut self, plan: &pb::Plan) {
        if plan.bytes_to_fetch == 0 {
            return;
        }
        let fetched = plan.models.iter().filter(|model| model.flight.is_some()).count() as u64;
        self.out.note(format_args!(
            "{}, {}: {} to fetch, in {}",
            count(plan.models.len() as u64, "model"),
            size(plan.bytes_total),
            size(plan.bytes_to_fetch),
            count(fetched, "file")
        ));
    }

    /// Shows how far it is.
    pub(crate) fn progress(&mut self, progress: &pb::Progress) {
        match &mut self.bars {
            Some(bars) => bars.update(progress),
            None => self.out.note(line(progress)),
        }
    }

    /// Takes the bars away.
    pub(crate) fn end(&mut self) {
        if let Some(bars) = &self.bars
            && let Err(error) = bars.all.clear()
        {
            tracing::debug!(%error, "the bars could not be cleared");
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let total = all.add(ProgressBar::no_length());
        total.set_style(style("{prefix:<40} [{bar:30}] {bytes:>11}/{total_bytes:<11} {msg}"));
        total.set_prefix("total");
        Self { all, total, models: BTreeMap::new(), done: std::collections::BTreeSet::new() }
    }

    fn update(&mut self, progress: &pb::Progress) {
        self.total.set_length(progress.bytes_total);
        self.total.set_position(progress.bytes_done);
        self.total.set_message(speed(progress));
        for model in &progress.models {
            match model.phase() {
                Phase::Ready | Phase::Failed => self.finish(model),
                Phase::Waiting if !self.models.contains_key(&model.model) => {}
                phase => self.show(model, phase),
            }
        }
    }

    fn show(&mut self, model: &pb::ModelProgress, phase: Phase) {
        if !self.models.contains_key(&model.model) {
            if self.models.len() >= BARS_MAX {
                return;
            }
            let bar = self.all.insert_before(&self.total, ProgressBar::new(model.bytes_total));
            bar.set_style(style("{prefix:<40} [{bar:30}] {bytes:>11}/{total_bytes:<11} {msg}"));
            bar.set_prefix(shortened(&model.model, 40));
            self.models.insert(model.model.clone(), bar);
        }
        if let Some(bar) = self.models.get(&model.model) {
            bar.set_length(model.bytes_total);
            bar.set_position(model.bytes_done);
            bar.set_message(phase.word());
        }
    }

    /// Turns a model's bar into a line above the bars, once.
    fn finish(&mut self, model: &pb::ModelProgress) {
        if let Some(bar) = self.models.remove(&model.model) {
            bar.finish_and_clear();
            self.all.remove(&bar);
            if self.done.insert(model.model.clone()) {
                let text = format!("{} {} ({})", model.phase().word(), model.model, size(model.bytes_total));
                // A terminal that went away is no reason to stop.
                let _: io::Result<()> = self.all.println(text);
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant").progress_chars("=> ")
}

/// `512 MiB/s, 12.0 s left`.
fn speed(progress: &pb::Progress) -> String {
    let left = progress.remaining.and_then(|left| left.to_std());
    match left {
        Some(left) => format!("{}, {} left", rate(progress.bytes_per_second), human_duration(left)),
        None => rate(progress.bytes_per_second),
    }
}

/// One line for a log: `41 % of 22.17 GiB, 512 MiB/s, 12.0 s left; 2 of 5 models ready`.
fn line(progress: &pb::Progress) -> String {
    let percent = (progress.bytes_done * 100).checked_div(progress.bytes_total).unwrap_or(100);
    let ready = progress.models.iter().filter(|model| model.phase() == Phase::Ready).count();
    format!(
        "{percent:>3} % of {}, {}; {ready} of {} models ready",
        size(progress.bytes_total),
        speed(progress),
        progress.models.len()
    )
}

/// The end of a long name, which tells more than its beginning.
fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let tail: String = text.chars().skip(length - width + 2).collect();
    format!("..{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_share_speed_and_rest() {
        let model = |phase: Phase| pb::ModelProgress { phase: phase.into(), ..Default::default() };
        let progress = pb::Progress {
            bytes_done: 1 << 30,
            bytes_total: 4 << 30,
            bytes_per_second: 1 << 20,
            remaining: Some(Duration::from_secs(12).into()),
            models: vec![model(Phase::Ready), model(Phase::Fetching)],
            ..Default::default()
        };
        assert_eq!(line(&progress), " 25 % of 4 GiB, 1 MiB/s, 12.0 s left; 1 of 2 models ready");
        assert_eq!(line(&pb::Progress::default()), "100 % of 0 B, 0 B/s; 0 of 0 models ready");
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shortened("diffusion_models/flux1-schnell.safetensors", 20), "..chnell.safetensors");
        assert_eq!(shortened("vae/ae", 20), "vae/ae");
    }
}

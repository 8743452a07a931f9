//! A small chart as SVG: lines of waiting against the size of the disk. Readable without colour: each line is named at its end.

use std::fmt::Write as _;

use crate::cli::out::size;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Room around the plot: left, right, top, bottom.
const MARGIN: [f64; 4] = [70.0, 150.0, 50.0, 60.0];
/// Lines across the plot.
const TICKS: usize = 5;
/// Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// One line: bytes of disk and seconds of waiting, in order.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Draws.
pub(super) fn svg(title: &str, lines: &[Line]) -> String {
    let [left, right, top, bottom] = MARGIN;
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|point| point.0).fold(1.0, f64::max);
    let y_max = round_up(all().map(|point| point.1).fold(0.001, f64::max));
    let x = |bytes: f64| left + bytes / x_max * (WIDTH - left - right);
    let y = |seconds: f64| HEIGHT - bottom - seconds / y_max * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" role=\"img\" aria-labelledby=\"title\">\n<title id=\"title\">{0}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{left}\" y=\"28\" font-size=\"15\">{0}</text>\n",
        escaped(title)
    );
    for tick in 0..=TICKS {
        let share = tick as f64 / TICKS as f64;
        let (seconds, bytes) = (y_max * share, x_max * share);
        let (gx, gy) = (x(bytes), y(seconds));
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{gy:.1}\" y2=\"{gy:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{seconds:.3} s</text>\n\
             <text x=\"{gx:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            WIDTH - right,
            left - 8.0,
            gy + 4.0,
            HEIGHT - bottom + 18.0,
            size(bytes as u64),
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">disk</text>",
        (left + WIDTH - right) / 2.0,
        HEIGHT - 16.0
    );
    let mut label_y = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|(bytes, seconds)| format!("{:.1},{:.1}", x(*bytes), y(*seconds))).collect();
        let (colour, dash) = (COLOURS[at % COLOURS.len()], DASHES[at / COLOURS.len() % DASHES.len()]);
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
            points.join(" ")
        );
        if let Some((bytes, seconds)) = line.points.last() {
            let at = free(&label_y, y(*seconds));
            label_y.push(at);
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
                x(*bytes) + 8.0,
                at + 4.0,
                escaped(&line.name)
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

/// The nearest place above `wanted` where a label covers no other.
fn free(taken: &[f64], wanted: f64) -> f64 {
    const LABEL: f64 = 14.0;
    let mut at = wanted;
    while taken.iter().any(|other| (other - at).abs() < LABEL) {
        at -= LABEL;
    }
    at
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn round_up(number: f64) -> f64 {
    let power = 10_f64.powf(number.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= number).unwrap_or(number)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_every_line_once_keeps_points_inside_and_escapes_names() {
        let line = |name: &str, y: f64| Line { name: name.to_owned(), points: vec![(1e9, y * 2.0), (4e9, y)] };
        let svg = svg("waiting <here>", &[line("a & b", 1.0), line("c", 1.0), line("d", 0.2)]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains(">a &amp; b</text>") && svg.contains("waiting &lt;here&gt;") && !svg.contains("<here>"));
        let labels: Vec<&str> =
            svg.lines().filter(|line| line.contains("fill=\"#") && line.contains("<text")).collect();
        let ys: Vec<&str> = labels.iter().filter_map(|line| line.split(" y=\"").nth(1)?.split('"').next()).collect();
        assert!(ys.len() == 3 && ys[0] != ys[1], "labels at one place: {ys:?}");
        for points in svg.lines().filter_map(|line| line.strip_prefix("<polyline points=\"")?.split('"').next()) {
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').expect("two numbers");
                let (x, y): (f64, f64) = (x.parse().expect("a number"), y.parse().expect("a number"));
                assert!((0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{point}");
            }
        }
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        assert_eq!([0.3, 1.0, 4.2, 7.0, 61.0].map(round_up), [0.5, 1.0, 5.0, 10.0, 100.0]);
    }
}

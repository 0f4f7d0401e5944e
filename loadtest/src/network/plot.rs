//! Plots of bytes over time, as SVG.

use std::fmt::Write as _;
use std::path::Path;

use crate::Failure;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 420.0;
/// Room for the axes' figures.
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 20.0;
/// Divisions of an axis.
const STEPS: u32 = 5;
/// Of the curves, one after the other.
const COLOURS: [&str; 6] = ["#1b6ca8", "#c8553d", "#3c896d", "#8e5aa8", "#b5892a", "#555555"];

/// Bytes at the relay over seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Curve(Vec<(f64, u64)>);

impl Curve {
    /// What is there at a time.
    pub(super) fn add(&mut self, seconds: f64, bytes: u64) {
        self.0.push((seconds, bytes));
    }

    /// Where it ends.
    pub(super) fn end(&mut self, seconds: f64, bytes: u64) {
        let most = self.0.last().map_or(bytes, |(_, last)| bytes.max(*last));
        self.add(seconds, most);
    }
}

/// Writes `title` as an SVG file into `dir`: a curve for each seed, and the floor as a line from
/// nothing to `payload` bytes.
pub(super) fn write(
    dir: &Path,
    title: &str,
    curves: &[(u64, &Curve)],
    payload: u64,
    floor_s: f64,
) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(Failure::io("the directory of plots"))?;
    let file = dir.join(format!("{}.svg", title.replace(' ', "-")));
    std::fs::write(file, svg(title, curves, payload, floor_s)).map_err(Failure::io("a plot"))
}

struct Scale {
    seconds: f64,
    bytes: f64,
}

impl Scale {
    fn point(&self, seconds: f64, bytes: f64) -> (f64, f64) {
        let x = LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT);
        let y = HEIGHT - BOTTOM - bytes / self.bytes * (HEIGHT - TOP - BOTTOM);
        (x, y)
    }

    fn line(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let points = points.map(|(seconds, bytes)| self.point(seconds, bytes));
        points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    }
}

fn svg(title: &str, curves: &[(u64, &Curve)], payload: u64, floor_s: f64) -> String {
    let points = || curves.iter().flat_map(|(_, curve)| curve.0.iter());
    let scale = Scale {
        seconds: points().map(|(seconds, _)| *seconds).fold(floor_s, f64::max).max(0.1),
        bytes: points().map(|(_, bytes)| *bytes as f64).fold(payload as f64, f64::max).max(1.0),
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{title}: bytes at the relay; dashed: the floor</text>\n"
    );
    axes(&mut out, &scale);
    let floor = scale.line([(0.0, 0.0), (floor_s, payload as f64)].into_iter());
    let _ = writeln!(out, "<polyline points=\"{floor}\" fill=\"none\" stroke=\"black\" stroke-dasharray=\"6 4\"/>");
    for ((seed, curve), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let line = scale.line(curve.0.iter().map(|(seconds, bytes)| (*seconds, *bytes as f64)));
        let _ = writeln!(
            out,
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\">\
             <title>seed {seed}</title></polyline>"
        );
    }
    out.push_str("</svg>\n");
    out
}

fn axes(out: &mut String, scale: &Scale) {
    for step in 0..=STEPS {
        let share = f64::from(step) / f64::from(STEPS);
        let (seconds, bytes) = (scale.seconds * share, scale.bytes * share);
        let ((x, bottom), (left, y)) = (scale.point(seconds, 0.0), scale.point(0.0, bytes));
        let right = WIDTH - RIGHT;
        let _ = writeln!(
            out,
            "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{seconds:.1} s</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} kB</text>",
            bottom + 18.0,
            left - 8.0,
            y + 4.0,
            bytes / 1000.0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_from_corner_to_corner() {
        let mut curve = Curve::default();
        curve.add(0.0, 0);
        curve.end(10.0, 1000);
        let text = svg("lossy over h3", &[(7, &curve)], 1000, 5.0);
        assert!(text.contains("points=\"70.0,380.0 780.0,40.0\""), "{text}");
        assert!(text.contains("points=\"70.0,380.0 425.0,40.0\""), "the floor is at half the time: {text}");
        assert!(text.contains("seed 7") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn a_plot_without_curves_is_a_plot() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("plots"), "clean over ws", &[], 1000, 0.0).unwrap();
        let text = std::fs::read_to_string(dir.path().join("plots/clean-over-ws.svg")).unwrap();
        assert!(!text.contains("NaN") && text.contains("clean over ws"));
    }
}

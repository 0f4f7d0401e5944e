//! Plots as SVG: panels one below the other with the same axis, of time or of contacts.

use std::fmt::Write as _;
use std::path::Path;

use crate::Failure;

const WIDTH: f64 = 800.0;
/// Of one panel.
const HEIGHT: f64 = 420.0;
/// Of one among several.
const LOW: f64 = 220.0;
/// Room for the axes' figures.
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 20.0;
/// Divisions of an axis.
const STEPS: u32 = 5;
/// Of the curves, one after the other.
const COLOURS: [&str; 6] = ["#1b6ca8", "#c8553d", "#3c896d", "#8e5aa8", "#b5892a", "#555555"];

/// A figure over seconds, or over contacts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// What it is at a time.
    pub(crate) fn add(&mut self, seconds: f64, value: f64) {
        self.0.push((seconds, value));
    }

    /// Where a curve that only grows ends.
    pub(crate) fn end(&mut self, seconds: f64, value: f64) {
        let most = self.0.last().map_or(value, |(_, last)| value.max(*last));
        self.add(seconds, most);
    }
}

/// What a phone saw of its way to the relay.
#[derive(Debug, Clone, Default)]
pub(crate) struct Way {
    /// Bytes a second.
    pub(crate) rate: Curve,
    /// Milliseconds.
    pub(crate) rtt_ms: Curve,
    /// Thousandths.
    pub(crate) loss_permille: Curve,
}

/// One plot: a curve for each seed, and what they are measured by as a dashed line.
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    /// What the axis counts in, and how many of the curves' units that is.
    pub(crate) unit: (&'static str, f64),
    pub(crate) curves: Vec<(u64, &'a Curve)>,
    pub(crate) dashed: [(f64, f64); 2],
}

/// What a plot is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// From 0.
    Seconds,
    /// From the fewest, and each tenfold takes as much room.
    Contacts,
}

/// Writes panels as the SVG file `name` into `dir`.
pub(crate) fn write(dir: &Path, name: &str, over: Over, panels: &[Panel<'_>]) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(Failure::io("the directory of plots"))?;
    let file = dir.join(format!("{}.svg", name.replace(' ', "-")));
    std::fs::write(file, svg(over, panels)).map_err(Failure::io("a plot"))
}

fn svg(over: Over, panels: &[Panel<'_>]) -> String {
    let height = if panels.len() > 1 { LOW } else { HEIGHT };
    let points = || panels.iter().flat_map(Panel::points).map(|(x, _)| x);
    let from = if over == Over::Seconds { 0.0 } else { points().fold(f64::INFINITY, f64::min) };
    let axis = Axis { over, from, to: points().fold(from.max(0.1), f64::max) };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        height * panels.len() as f64,
    );
    for (place, panel) in panels.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate(0 {:.0})\">", height * place as f64);
        panel.draw(&mut out, height, axis);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

impl Panel<'_> {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.curves.iter().flat_map(|(_, curve)| curve.0.iter().copied()).chain(self.dashed)
    }

    fn draw(&self, out: &mut String, height: f64, axis: Axis) {
        let most = self.points().map(|(_, value)| value).fold(0.0, f64::max);
        let scale = Scale { height, axis, most: if most > 0.0 { most } else { 1.0 } };
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>", self.title);
        self.axes(out, &scale);
        let dashed = scale.line(self.dashed.into_iter());
        let _ =
            writeln!(out, "<polyline points=\"{dashed}\" fill=\"none\" stroke=\"black\" stroke-dasharray=\"6 4\"/>");
        for ((seed, curve), colour) in self.curves.iter().zip(COLOURS.iter().cycle()) {
            let line = scale.line(curve.0.iter().copied());
            let _ = writeln!(
                out,
                "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\">\
                 <title>seed {seed}</title></polyline>"
            );
        }
    }

    fn axes(&self, out: &mut String, scale: &Scale) {
        for step in 0..=STEPS {
            let share = f64::from(step) / f64::from(STEPS);
            let (at, value) = (scale.axis.at(share), scale.most * share);
            let ((x, bottom), (left, y)) = (scale.point(at, 0.0), scale.point(scale.axis.from, value));
            let (right, (unit, size)) = (WIDTH - RIGHT, self.unit);
            let _ = writeln!(
                out,
                "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.*} {unit}</text>",
                bottom + 18.0,
                scale.axis.name(at),
                left - 8.0,
                y + 4.0,
                if scale.most / size < f64::from(STEPS) { 2 } else { 0 },
                value / size,
            );
        }
    }
}

#[derive(Clone, Copy)]
struct Axis {
    over: Over,
    from: f64,
    to: f64,
}

impl Axis {
    /// What is at this share of its length.
    fn at(&self, share: f64) -> f64 {
        match self.over {
            Over::Seconds => self.to * share,
            Over::Contacts => self.from * (self.to / self.from).powf(share),
        }
    }

    fn share(&self, value: f64) -> f64 {
        match self.over {
            Over::Seconds => value / self.to,
            Over::Contacts if self.to > self.from => (value / self.from).ln() / (self.to / self.from).ln(),
            Over::Contacts => 0.0,
        }
    }

    fn name(&self, value: f64) -> String {
        match self.over {
            Over::Seconds => format!("{value:.1} s"),
            Over::Contacts => format!("{value:.0}"),
        }
    }
}

struct Scale {
    height: f64,
    axis: Axis,
    most: f64,
}

impl Scale {
    fn point(&self, at: f64, value: f64) -> (f64, f64) {
        let x = LEFT + self.axis.share(at) * (WIDTH - LEFT - RIGHT);
        let y = self.height - BOTTOM - value / self.most * (self.height - TOP - BOTTOM);
        (x, y)
    }

    fn line(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let points = points.map(|(at, value)| self.point(at, value));
        points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel<'a>(curves: Vec<(u64, &'a Curve)>, dashed: [(f64, f64); 2]) -> Panel<'a> {
        Panel { title: "lossy over h3".into(), unit: ("kB", 1000.0), curves, dashed }
    }

    #[test]
    fn a_curve_goes_from_corner_to_corner() {
        let mut curve = Curve::default();
        curve.add(0.0, 0.0);
        curve.end(10.0, 1000.0);
        let text = svg(Over::Seconds, &[panel(vec![(7, &curve)], [(0.0, 0.0), (5.0, 1000.0)])]);
        assert!(text.contains("points=\"70.0,380.0 780.0,40.0\""), "{text}");
        assert!(text.contains("points=\"70.0,380.0 425.0,40.0\""), "the floor is at half the time: {text}");
        assert!(text.contains("seed 7") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn panels_share_the_axis_of_time() {
        let mut curve = Curve::default();
        curve.add(10.0, 1.0);
        let text =
            svg(Over::Seconds, &[panel(vec![(1, &curve)], [(0.0, 0.0); 2]), panel(vec![], [(0.0, 2.0), (5.0, 2.0)])]);
        assert!(text.contains("translate(0 220)") && text.contains("viewBox=\"0 0 800 440\""));
        assert!(text.contains("points=\"70.0,40.0 425.0,40.0\""), "five of ten seconds: {text}");
    }

    #[test]
    fn contacts_are_counted_in_tenfolds() {
        let mut curve = Curve::default();
        [10.0, 100.0, 1000.0].into_iter().for_each(|contacts| curve.add(contacts, 0.4));
        let text = svg(Over::Contacts, &[panel(vec![(1, &curve)], [(10.0, 0.5), (1000.0, 0.5)])]);
        assert!(text.contains("points=\"70.0,108.0 425.0,108.0 780.0,108.0\""), "{text}");
        assert!(text.contains(">10</text>") && text.contains(">1000</text>"));
    }

    #[test]
    fn a_plot_without_curves_is_a_plot() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("plots"), "clean over ws", Over::Seconds, &[panel(vec![], [(0.0, 0.0); 2])]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("plots/clean-over-ws.svg")).unwrap();
        assert!(!text.contains("NaN") && text.contains("lossy over h3"));
    }
}

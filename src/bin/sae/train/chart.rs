//! Line charts and histograms as SVG, coloured by the page's style sheet: series `i` has the class `c{i}`.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 38.0;
/// A line is drawn with no more points than can be told apart.
const POINTS: usize = 320;
/// As many colours as the style sheet has.
pub(super) const COLOURS: usize = 8;

/// What is drawn of one SAE.
#[derive(Default)]
pub(super) struct Series {
    pub(super) name: String,
    /// A line; between it and the next point of another bin, the mean.
    pub(super) line: Vec<(f64, f64)>,
    /// Marks.
    pub(super) marks: Vec<(f64, f64)>,
}

/// A chart.
pub(super) struct Chart<'a> {
    /// What is drawn, for those who do not see it.
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    /// Whether y may be logarithmic, which it is where values span more than a factor of 20.
    pub(super) may_be_log: bool,
    pub(super) series: Vec<Series>,
}

/// From numbers to places along an axis.
struct Axis {
    from: f64,
    to: f64,
    log: bool,
    start: f64,
    end: f64,
}

impl Axis {
    /// One that shows all these numbers.
    fn of(values: impl Iterator<Item = f64> + Clone, log: bool, start: f64, end: f64) -> Self {
        let scaled = values.map(|v| if log { v.log10() } else { v }).filter(|v| v.is_finite());
        let (mut from, mut to) = scaled.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if from > to {
            (from, to) = (0.0, 1.0);
        }
        if to - from <= 1e-12 * to.abs().max(from.abs()) {
            let room = if from == 0.0 { 1.0 } else { 0.1 * from.abs() };
            (from, to) = (if from == 0.0 { 0.0 } else { from - room }, to + room);
        }
        Self { from, to, log, start, end }
    }

    /// The same, a little longer at both ends, but not across 0.
    fn roomy(self) -> Self {
        let room = 0.05 * (self.to - self.from);
        let from = if !self.log && self.from >= 0.0 { (self.from - room).max(0.0) } else { self.from - room };
        Self { from, to: self.to + room, ..self }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    /// Round numbers along it, and how they are written.
    fn ticks(&self) -> Vec<(f64, String)> {
        if self.log && self.to - self.from >= 1.0 {
            let (from, to) = (self.from.ceil() as i32, self.to.floor() as i32);
            let step = ((to - from) / 5 + 1) as usize;
            return (from..=to).step_by(step).map(|e| (10f64.powi(e), short(10f64.powi(e)))).collect();
        }
        let (from, to) = if self.log { (10f64.powf(self.from), 10f64.powf(self.to)) } else { (self.from, self.to) };
        let rough = (to - from) / 5.0;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let (first, last) = ((from / step).ceil() as i64, (to / step).floor() as i64);
        (first..=last).map(|i| (i as f64 * step, short(i as f64 * step))).collect()
    }
}

/// A number in few characters: about four digits.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let rounded = |value: f64| {
        let decimals = (3 - value.abs().max(1.0).log10().floor() as usize).min(3);
        let text = format!("{value:.decimals$}");
        let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        text.to_owned()
    };
    match size {
        0.0 => "0".to_owned(),
        _ if size >= 1e12 => format!("{value:.1e}").replace(".0e", "e"),
        _ if size >= 1e9 => rounded(value / 1e9) + " G",
        _ if size >= 1e6 => rounded(value / 1e6) + " M",
        _ if size >= 1e4 => rounded(value / 1e3) + " k",
        _ if size >= 0.01 => rounded(value),
        _ => format!("{value:.1e}").replace(".0e", "e"),
    }
}

/// For text between tags and in quoted attributes.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// As few points as can be told apart: means of neighbours.
fn thinned(line: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = line.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    let together = finite.len().div_ceil(POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n)
    };
    finite.chunks(together).map(mean).collect()
}

impl Chart<'_> {
    /// The drawing.
    pub(super) fn svg(&self) -> String {
        let lines: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| thinned(&series.line)).collect();
        let marks = || self.series.iter().flat_map(|series| series.marks.iter().copied());
        let points = || lines.iter().flatten().copied().chain(marks());
        let (least, most) = points().fold((f64::INFINITY, 0f64), |(a, b), (_, y)| (a.min(y), b.max(y)));
        let log = self.may_be_log && least > 0.0 && most > 20.0 * least;
        let x = Axis::of(points().map(|p| p.0).chain([0.0]), false, LEFT, WIDTH - RIGHT);
        let y = Axis::of(points().map(|p| p.1), log, HEIGHT - BOTTOM, TOP).roomy();
        let mut svg = frame(self.title, self.x, &x, &y);
        for (i, (series, line)) in self.series.iter().zip(&lines).enumerate() {
            let name = escaped(&series.name);
            let colour = i % COLOURS;
            let path: Vec<String> = line.iter().map(|p| format!("{:.1},{:.1}", x.place(p.0), y.place(p.1))).collect();
            let path = path.join(" ");
            write!(svg, "<polyline class=\"line c{colour}\" points=\"{path}\"><title>{name}</title></polyline>").ok();
            for (at, value) in series.marks.iter().filter(|(_, value)| value.is_finite()) {
                let (cx, cy, value) = (x.place(*at), y.place(*value), short(*value));
                write!(
                    svg,
                    "<circle class=\"mark c{colour}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"><title>{name}: {value}</title></circle>"
                )
                .ok();
            }
        }
        svg + "</svg>"
    }
}

/// How many of each series fall into each of the bins `from + i·width`.
pub(super) struct Histogram<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) from: f64,
    pub(super) width: f64,
    /// Name, and a count for each bin.
    pub(super) series: Vec<(String, Vec<u64>)>,
}

impl Histogram<'_> {
    /// The drawing: an outline for each series.
    pub(super) fn svg(&self) -> String {
        let bins = self.series.iter().map(|(_, counts)| counts.len()).max().unwrap_or(0);
        let ends = [self.from, self.from + bins as f64 * self.width];
        let x = Axis::of(ends.into_iter(), false, LEFT, WIDTH - RIGHT);
        let counts = self.series.iter().flat_map(|(_, counts)| counts.iter().map(|&count| count as f64));
        let y = Axis::of(counts.chain([0.0]), false, HEIGHT - BOTTOM, TOP).roomy();
        let mut svg = frame(self.title, self.x, &x, &y);
        for (i, (name, counts)) in self.series.iter().enumerate() {
            let mut path = format!("M{:.1} {:.1}", x.place(self.from), y.place(0.0));
            for (bin, &count) in counts.iter().enumerate() {
                let right = x.place(self.from + (bin + 1) as f64 * self.width);
                write!(path, "V{:.1}H{right:.1}", y.place(count as f64)).ok();
            }
            let (name, colour, floor) = (escaped(name), i % COLOURS, y.place(0.0));
            write!(svg, "<path class=\"area c{colour}\" d=\"{path}V{floor:.1}Z\"><title>{name}</title></path>").ok();
        }
        svg + "</svg>"
    }
}

/// Axes, grid and labels; what is drawn and `</svg>` follow.
fn frame(title: &str, label: &str, x: &Axis, y: &Axis) -> String {
    let (title, label) = (escaped(title), escaped(label));
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
    let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, text) in y.ticks() {
        let at = y.place(value);
        write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>").ok();
        write!(svg, "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{text}</text>", LEFT - 8.0, at + 4.0).ok();
    }
    for (value, text) in x.ticks() {
        let at = x.place(value);
        write!(svg, "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{floor}\" y2=\"{}\"/>", floor + 4.0).ok();
        write!(svg, "<text class=\"x\" x=\"{at:.1}\" y=\"{}\">{text}</text>", floor + 17.0).ok();
    }
    write!(svg, "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{floor}\" y2=\"{floor}\"/>").ok();
    write!(svg, "<text class=\"x\" x=\"{}\" y=\"{}\">{label}</text>", (LEFT + right) / 2.0, HEIGHT - 4.0).ok();
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The points of the polylines of a drawing.
    fn lines(svg: &str) -> Vec<Vec<(f64, f64)>> {
        let point = |text: &str| text.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap();
        let points = svg.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        points.map(|points| points.split_whitespace().map(point).collect()).collect()
    }

    fn chart(lines: Vec<Vec<(f64, f64)>>, may_be_log: bool) -> Chart<'static> {
        let series = lines.into_iter().map(|line| Series { name: "a<b".into(), line, marks: Vec::new() });
        Chart { title: "loss", x: "tokens", may_be_log, series: series.collect() }
    }

    #[test]
    fn lines_stay_in_the_frame_and_rise_where_values_do() {
        for may_be_log in [false, true] {
            let rising: Vec<(f64, f64)> = (1..=1000).map(|i| (f64::from(i) * 1e5, f64::from(i).powi(2))).collect();
            let svg = chart(vec![rising.clone(), vec![(0.0, 3.0)], Vec::new()], may_be_log).svg();
            let drawn = lines(&svg);
            assert!(drawn[0].len() <= POINTS && drawn[0].len() > POINTS / 2 && drawn[2].is_empty());
            assert!(drawn[0].windows(2).all(|p| p[0].0 < p[1].0 && p[0].1 >= p[1].1));
            let inside =
                |&(x, y): &(f64, f64)| (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y);
            assert!(drawn.iter().flatten().all(inside), "{drawn:?}");
            assert!(svg.contains("a&lt;b") && !svg.contains("a<b") && svg.contains("80 M"));
        }
    }

    #[test]
    fn numbers_that_are_none_leave_gaps_and_break_nothing() {
        let odd = vec![(1.0, f64::NAN), (2.0, 5.0), (3.0, f64::INFINITY), (4.0, 5.0)];
        let svg = chart(vec![odd, Vec::new()], true).svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(lines(&svg)[0].len(), 2);
        assert!(!chart(vec![], false).svg().contains("NaN"));
        assert!(!chart(vec![vec![(0.0, 0.0)]], true).svg().contains("NaN"));
    }

    #[test]
    fn histograms_are_as_high_as_their_counts() {
        let histogram =
            Histogram { title: "density", x: "log10", from: -2.0, width: 1.0, series: vec![("a".into(), vec![1, 4])] };
        let svg = histogram.svg();
        let path = svg.split(" d=\"").nth(1).unwrap();
        let heights: Vec<f64> =
            path.split('V').skip(1).take(2).map(|rest| rest.split('H').next().unwrap().parse().unwrap()).collect();
        let floor = HEIGHT - BOTTOM;
        assert!(((floor - heights[1]) / (floor - heights[0]) - 4.0).abs() < 0.02, "{heights:?}");
    }

    #[test]
    fn ticks_are_round_and_short() {
        let axis = |from, to, log| Axis::of([from, to].into_iter(), log, 0.0, 1.0);
        let texts = |axis: Axis| axis.ticks().into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(axis(0.0, 1.0, false)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(texts(axis(0.0, 2.4e6, false)), ["0", "500 k", "1 M", "1.5 M", "2 M"]);
        assert_eq!(texts(axis(1e-3, 2.0, true)), ["1e-3", "0.01", "0.1", "1"]);
        assert_eq!(texts(axis(0.0, 2e-4, false)), ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]);
        for (value, text) in [
            (-0.0, "0"),
            (1234.5, "1234"),
            (44_199.2, "44.2 k"),
            (123_456.0, "123.5 k"),
            (0.05, "0.05"),
            (9_999.9, "10000"),
            (6.4e-10, "6.4e-10"),
            (-3e9, "-3 G"),
            (2e18, "2e18"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}

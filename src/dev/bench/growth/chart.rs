//! The findings as one picture: a curve for each quantity that grows, and a bar for each ratio.

use std::fmt::Display;

use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoLogRange, LineSeries,
        PathElement, RGBColor, Rectangle, SVGBackend, SeriesLabelPosition, TRANSPARENT, Text, WHITE,
    },
    style::IntoFont,
};

use super::{FeedFigure, GrowthFinding, GrowthStep};
use crate::dev::bench::Figure;

/// The width and height of one panel.
const PANEL: (u32, u32) = (420, 280);
/// Panels side by side.
const COLUMNS: usize = 2;
/// The height of one bar, with the space below it.
const BAR: u32 = 26;
/// The horizontal place at which the bars begin. Their names are on the left.
const BARS_FROM: i32 = 170;
const BLUE: RGBColor = RGBColor(31, 98, 166);
const ORANGE: RGBColor = RGBColor(212, 106, 20);
const FONT: &str = "sans-serif";

/// What a chart shows.
#[derive(Clone, Copy, Debug)]
pub struct ChartData<'a> {
    /// The rates, whose ratios are shown as bars.
    pub figures: &'a [Figure],
    /// The steps and feeds, whose quantities are shown as curves.
    pub growth: &'a [GrowthFinding],
}

/// A named curve. Its points are sorted.
struct Curve {
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// Curves with common axes.
struct Panel {
    title: &'static str,
    below: &'static str,
    curves: Vec<Curve>,
}

/// Draws a chart, and returns it as the text of an SVG file.
///
/// # Errors
///
/// Fails if there is nothing to draw, or the chart cannot be drawn.
pub fn draw_chart(data: ChartData<'_>) -> Result<String, String> {
    let panels: Vec<Panel> = panels_of(data.growth).into_iter().filter(Panel::has_points).collect();
    let height_of_bars = match u32::try_from(data.figures.len()) {
        Ok(0) => 0,
        bars => bars.unwrap_or(u32::MAX).saturating_add(2).saturating_mul(BAR),
    };
    let rows = u32::try_from(panels.len().div_ceil(COLUMNS)).map_err(shown)?;
    let columns = u32::try_from(COLUMNS).map_err(shown)?;
    let (width, height_of_panels) = (PANEL.0.saturating_mul(columns), PANEL.1.saturating_mul(rows));
    if rows == 0 && height_of_bars == 0 {
        return Err("there is nothing to draw: measure growth, or a rate".to_owned());
    }
    let mut svg = String::new();
    {
        let size = (width, height_of_panels.saturating_add(height_of_bars));
        let whole = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        whole.fill(&WHITE).map_err(shown)?;
        let (above, below) = whole.split_vertically(height_of_panels);
        if rows > 0 {
            let places = above.split_evenly((panels.len().div_ceil(COLUMNS), COLUMNS));
            for (panel, place) in panels.iter().zip(&places) {
                panel.draw(place)?;
            }
        }
        if height_of_bars > 0 {
            draw_bars(data.figures, &below, width)?;
        }
        whole.present().map_err(shown)?;
    }
    Ok(svg)
}

fn shown(error: impl Display) -> String {
    format!("the chart cannot be drawn: {error}")
}

/// Converts a count to a place on an axis.
fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

fn panels_of(growth: &[GrowthFinding]) -> Vec<Panel> {
    let curve = |name, color, of: &dyn Fn(&GrowthStep) -> Option<f64>| {
        let point = |finding: &GrowthFinding| match finding {
            GrowthFinding::Step(step) => Some((number(step.leases), of(step)?)),
            _ => None,
        };
        Curve { name, color, points: growth.iter().filter_map(point).collect() }
    };
    let of_feed = |name, color, of: &dyn Fn(&FeedFigure) -> f64| {
        let point = |finding: &GrowthFinding| match finding {
            GrowthFinding::Feed(feed) => Some((number(feed.verifiers), of(feed))),
            _ => None,
        };
        Curve { name, color, points: growth.iter().filter_map(point).collect() }
    };
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    #[expect(clippy::cast_precision_loss, reason = "a curve shows three digits")]
    let mib = |bytes: u64| bytes as f64 / f64::from(1_u32 << 20);
    let leases = |title, curves| Panel { title, below: "live leases", curves };
    vec![
        leases("Resident memory, MiB", vec![curve("memory", BLUE, &|s| Some(mib(s.memory)))]),
        leases(
            "Issue, 64 in flight, ms",
            vec![
                curve("p50", BLUE, &|s| Some(ms(s.issue.p50))),
                curve("p99", ORANGE, &|s| Some(ms(s.issue.p99))),
            ],
        ),
        leases("Look-up, p50, µs", vec![curve("p50", BLUE, &|s| Some(ms(s.look_up.p50) * 1e3))]),
        leases(
            "Revocation of one job, ms",
            vec![
                curve("the call", BLUE, &|s| Some(ms(s.revocation.call))),
                curve("a server refuses", ORANGE, &|s| Some(ms(s.revocation.refused))),
            ],
        ),
        leases(
            "From the last of many deadlines until all are removed, ms",
            vec![curve("all removed", BLUE, &|s| s.storm.as_ref().map(|storm| ms(storm.ended_after)))],
        ),
        Panel {
            title: "From a revocation until the last verifier hears of it, ms",
            below: "verifiers",
            curves: vec![
                of_feed("p50", BLUE, &|feed| ms(feed.heard.p50)),
                of_feed("longest", ORANGE, &|feed| ms(feed.heard.longest)),
            ],
        },
    ]
}

impl Panel {
    fn has_points(&self) -> bool {
        self.curves.iter().any(|curve| !curve.points.is_empty())
    }

    fn draw(&self, place: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), String> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let least = points().map(|(x, _)| *x).fold(f64::MAX, f64::min).max(1.0);
        let most = points().map(|(x, _)| *x).fold(least, f64::max);
        let top = points().map(|(_, y)| *y).fold(f64::EPSILON, f64::max);
        // The names of the curves are above the curves.
        let space = if self.curves.len() > 1 { 1.45 } else { 1.15 };
        let mut chart = ChartBuilder::on(place)
            .caption(self.title, (FONT, 14))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(54)
            .build_cartesian_2d((least / 1.2..most * 1.2).log_scale(), 0.0..top * space)
            .map_err(shown)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(self.below)
            .x_labels(6)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .draw()
            .map_err(shown)?;
        for curve in &self.curves {
            let color = curve.color;
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), color.stroke_width(2)))
                .map_err(shown)?
                .label(curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
            let dots = curve.points.iter().map(|point| Circle::new(*point, 3, color.filled()));
            chart.draw_series(dots).map_err(shown)?;
        }
        if self.curves.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE)
                .draw()
                .map_err(shown)?;
        }
        Ok(())
    }
}

/// A number on an axis, with few characters.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{} M", trimmed(n / 1e6)),
        n if n >= 1e4 => format!("{} k", trimmed(n / 1e3)),
        n => trimmed(n),
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Draws a bar for each ratio, and a line at the ratio 1, which is the limit.
fn draw_bars(
    figures: &[Figure],
    place: &DrawingArea<SVGBackend<'_>, Shift>,
    width: u32,
) -> Result<(), String> {
    let font = |size: i32| (FONT, size).into_font().color(&BLACK);
    let label =
        |text: String, at: (i32, i32), size| place.draw(&Text::new(text, at, font(size))).map_err(shown);
    let bar = i32::try_from(BAR).map_err(shown)?;
    let full = i32::try_from(width).map_err(shown)?.saturating_sub(BARS_FROM).saturating_sub(70);
    let longest = figures.iter().map(Figure::ratio).fold(1.0, f64::max);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a place in the picture, which the longest bar bounds"
    )]
    let length = |ratio: f64| (f64::from(full) * ratio / longest).round() as i32;
    label("Ratio to the limit of this machine".to_owned(), (10, 4), 14)?;
    let mut y = bar;
    for figure in figures {
        let name = format!("{}, {} in flight", figure.workload.as_str(), figure.in_flight);
        label(name, (10, y.saturating_add(4)), 12)?;
        let end = BARS_FROM.saturating_add(length(figure.ratio()));
        let corners = [(BARS_FROM, y), (end, y.saturating_add(bar).saturating_sub(6))];
        place.draw(&Rectangle::new(corners, BLUE.filled())).map_err(shown)?;
        label(format!("{:.2}", figure.ratio()), (end.saturating_add(6), y.saturating_add(4)), 12)?;
        y = y.saturating_add(bar);
    }
    let limit = BARS_FROM.saturating_add(length(1.0));
    place.draw(&PathElement::new([(limit, bar), (limit, y)], ORANGE.stroke_width(2))).map_err(shown)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dev::bench::{
        Measured, StormFigure, growth::JobRevocation, page::tests::figure, plan::Workload,
    };

    fn measured() -> Measured {
        Measured {
            calls: 20,
            per_second: 1.0,
            p50: Duration::from_millis(3),
            p99: Duration::from_millis(9),
            longest: Duration::from_millis(9),
            processor: Duration::ZERO,
        }
    }

    /// Findings of a small run.
    pub(in crate::dev::bench::growth) fn findings() -> Vec<GrowthFinding> {
        let storm = StormFigure {
            leases: 250,
            within: Duration::from_millis(499),
            ended_after: Duration::from_millis(120),
            before: measured(),
            during: measured(),
            checks: 250,
            introspections: 250,
        };
        let revocation = JobRevocation {
            leases: 1_000,
            call: Duration::from_millis(2),
            refused: Duration::from_millis(1),
        };
        let step = |leases, storm| {
            GrowthFinding::Step(GrowthStep {
                leases,
                memory: 64 << 20,
                issue: measured(),
                look_up: measured(),
                storm,
                revocation,
            })
        };
        vec![
            step(1_000, Some(storm)),
            step(640_000, None),
            GrowthFinding::Feed(FeedFigure { verifiers: 100, heard: measured() }),
            GrowthFinding::Stopped("5000 verifiers: the next could not connect".into()),
        ]
    }

    /// Returns the names of the elements in an XML text. Fails if elements are not nested, or a text has a bare `&`.
    fn elements(xml: &str) -> Vec<String> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        let mut rest = xml;
        while let Some((text, after)) = rest.split_once('<') {
            assert!(text.split('&').skip(1).all(|part| part.contains(';')), "{text}");
            let (tag, after) = after.split_once('>').unwrap();
            rest = after;
            let name = tag.split([' ', '\n', '/']).find(|word| !word.is_empty()).unwrap().to_owned();
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.starts_with(['?', '!']) {
                all.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        all
    }

    #[test]
    fn a_chart_is_well_formed_and_has_each_curve_and_bar() {
        let figures = [figure(Workload::Issue, 64, 38.0), figure(Workload::Introspect, 64, 140.0)];
        let svg = draw_chart(ChartData { figures: &figures, growth: &findings() }).unwrap();
        let all = elements(&svg);
        let count = |name: &str| all.iter().filter(|element| *element == name).count();
        assert_eq!(all.first().map(String::as_str), Some("svg"));
        // Memory 2, issue 4, look-up 2, revocation 4, storm 1, feed 2.
        assert_eq!(count("circle"), 15, "{svg}");
        for text in ["Resident memory", "live leases", "verifiers", "issue, 64 in flight", "0.38", "1.40"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }

    #[test]
    fn a_chart_needs_bars_or_curves() {
        let figures = [figure(Workload::Mixed, 100, 50.0)];
        let svg = draw_chart(ChartData { figures: &figures, growth: &[] }).unwrap();
        assert!(
            elements(&svg).iter().any(|element| element == "rect") && svg.contains("mixed, 100"),
            "{svg}"
        );
        let stopped = [GrowthFinding::Stopped("it was too slow".into())];
        assert!(draw_chart(ChartData { figures: &[], growth: &stopped }).is_err());
    }

    #[test]
    fn numbers_on_an_axis_are_short() {
        let numbers = [0.5, 3.0, 1_000.0, 20_000.0, 1_000_000.0].map(short);
        assert_eq!(numbers, ["0.5", "3", "1000", "20 k", "1 M"]);
    }
}

//! Line charts as SVG. Text, axes and grid are drawn in `currentColor`, so that charts suit light and dark pages.

use crate::{Error, Result};
use plotters::prelude::*;
use serde::Serialize;
use std::ops::Range;

pub use plotters::style::RGBColor;

#[derive(Default)]
pub struct Chart {
    pub title: String,
    pub x_label: String,
    /// Logarithmic y axis; values without a logarithm are left out.
    pub log_y: bool,
    /// Whether values fluctuate from step to step, so that smoothing helps.
    pub noisy: bool,
    pub series: Vec<Series>,
}

pub struct Series {
    /// Its name in the legend.
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub colour: RGBColor,
    /// A position on the x axis, marked by a dashed line.
    pub mark: Option<f64>,
}

/// The mapping from values to pixels: the ends of the axes in both.
#[derive(Clone, Debug, Serialize)]
pub struct Frame {
    pub area: Area,
    pub x: (f64, f64),
    pub y: (f64, f64),
}

/// In pixels.
#[derive(Clone, Debug, Serialize)]
pub struct Area {
    pub left: i32,
    pub right: i32,
    pub top: i32,
    pub bottom: i32,
}

/// Pixels of one chart; pages scale it.
const SIZE: (u32, u32) = (560, 280);

/// Readable on white and black, and distinguishable with any colour vision (after Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x2f, 0x86, 0xd1),
    RGBColor(0xe0, 0x7b, 0x12),
    RGBColor(0x13, 0x9e, 0x78),
    RGBColor(0xc4, 0x66, 0xa6),
    RGBColor(0x8a, 0x8a, 0x8a),
    RGBColor(0xb8, 0x99, 0x00),
];

/// The colour of series number `i`.
pub fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// From blue to orange for 0 to 1.
pub fn gradient(share: f64) -> RGBColor {
    let (from, to) = (COLOURS[0], COLOURS[1]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// The colour in CSS notation.
pub fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

/// A chart for an HTML page, and its mapping from values to pixels.
pub fn inline(chart: &Chart) -> Result<(String, Frame)> {
    let (svg, mut frames) = draw(std::slice::from_ref(chart), 1)?;
    let frame = frames.pop().ok_or_else(|| Error::Usage(format!("the chart `{}` was not drawn", chart.title)))?;
    Ok((svg, frame))
}

/// Charts in a grid, as a standalone file with colours for light and dark.
pub fn page(charts: &[Chart], columns: usize) -> Result<String> {
    const STYLE: &str = "<style>:root { color: #1c1c1c; background: #fff } @media (prefers-color-scheme: dark) { \
                         :root { color: #e4e4e4; background: #161616 } }</style>";
    let svg = draw(charts, columns)?.0;
    let start = svg.find('>').map_or(0, |end| end + 1);
    Ok(format!("{}\n{STYLE}{}", &svg[..start], &svg[start..]))
}

fn draw(charts: &[Chart], columns: usize) -> Result<(String, Vec<Frame>)> {
    let columns = columns.clamp(1, charts.len().max(1));
    let rows = charts.len().div_ceil(columns);
    let (mut svg, mut frames) = (String::new(), Vec::new());
    {
        let size = (SIZE.0 * columns as u32, SIZE.1 * rows.max(1) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (area, chart) in root.split_evenly((rows, columns)).iter().zip(charts) {
            let frame = draw_chart(area, chart);
            frames.push(frame.map_err(|e| Error::Usage(format!("the chart `{}`: {e}", chart.title)))?);
        }
        root.present().map_err(|e| Error::Usage(format!("a chart cannot be drawn: {e}")))?;
    }
    // Only text, axes and grid are black.
    Ok((svg.replace("\"#000000\"", "\"currentColor\""), frames))
}

type Drawing<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_chart(area: &Drawing, chart: &Chart) -> std::result::Result<Frame, Box<dyn std::error::Error>> {
    let series: Vec<(Vec<(f64, f64)>, &Series)> =
        chart.series.iter().map(|series| (scaled(&series.points, chart.log_y), series)).collect();
    let all = || series.iter().flat_map(|(points, _)| points);
    let x = range(all().map(|point| point.0), 0.0);
    let y = range(all().map(|point| point.1), 0.05);
    let text = |size: f64| ("sans-serif", size).into_font().color(&BLACK);
    // Ticks are sums of steps, so a 0 may come out as a rounding error.
    let noise = (y.end - y.start) * 1e-9;
    let mut context = ChartBuilder::on(area)
        .caption(&chart.title, text(17.0))
        .margin(8)
        .margin_right(20)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(x, y)?;
    let x_labels = |value: &f64| label(*value);
    let y_labels = |value: &f64| match chart.log_y {
        true => label(10f64.powf(*value)),
        false => label(if value.abs() < noise { 0.0 } else { *value }),
    };
    context
        .configure_mesh()
        .x_desc(&chart.x_label)
        .axis_style(BLACK.mix(0.5))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .label_style(text(14.0))
        .axis_desc_style(text(14.0))
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&x_labels)
        .y_label_formatter(&y_labels)
        .draw()?;
    let ends = context.as_coord_spec().get_y_range();
    for (points, Series { colour, mark, .. }) in series {
        if let Some(x) = mark {
            let line = [(*x, ends.start), (*x, ends.end)];
            context.draw_series(DashedLineSeries::new(line, 4, 4, colour.stroke_width(1)))?;
        }
        match points[..] {
            [point] => drop(context.draw_series([Circle::new(point, 3, colour.filled())])?),
            _ => drop(context.draw_series(LineSeries::new(points, colour.stroke_width(2)))?),
        }
    }
    let area = context.plotting_area();
    let ((x, y), (across, down)) = ((area.get_x_range(), area.get_y_range()), area.get_pixel_range());
    let area = Area { left: across.start, right: across.end, top: down.start, bottom: down.end };
    Ok(Frame { area, x: (x.start, x.end), y: (y.start, y.end) })
}

/// The finite points, with logarithms if requested.
fn scaled(points: &[(f64, f64)], log: bool) -> Vec<(f64, f64)> {
    let scaled = points.iter().map(|&(x, y)| (x, if log { y.log10() } else { y }));
    scaled.filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
}

/// From the smallest to the largest value, widened by this share; never empty.
fn range(values: impl Iterator<Item = f64>, beyond: f64) -> Range<f64> {
    let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), x| (x.min(min), x.max(max)));
    if min > max {
        return 0.0..1.0;
    }
    let pad = (max - min) * beyond;
    if max - min <= f64::EPSILON * max.abs() {
        let pad = if max == 0.0 { 1.0 } else { max.abs() * 0.1 };
        return min - pad..max + pad;
    }
    min - pad..max + pad
}

/// A number with up to three digits: `0.25`, `1200`, `3e-5`.
fn label(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-2..1e5).contains(&size) {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<Vec<(f64, f64)>>, log_y: bool) -> Chart {
        let series = points.into_iter().enumerate();
        let series =
            series.map(|(i, points)| Series { name: String::new(), points, colour: colour(i), mark: None }).collect();
        Chart { title: "loss < 1 & falling".into(), x_label: "step".into(), log_y, series, noisy: false }
    }

    fn lines(svg: &str) -> usize {
        svg.matches("stroke-width=\"2\"").count()
    }

    #[test]
    fn a_chart_has_its_lines_and_no_fixed_text_colour() {
        let (svg, frame) =
            inline(&chart(vec![vec![(0.0, 1.0), (1.0, 0.5)], vec![(0.0, 2.0), (1.0, 0.1)]], false)).unwrap();
        assert_eq!(frame.x, (0.0, 1.0));
        assert!(frame.y.0 < 0.1 && frame.y.1 > 2.0 && frame.area.left < frame.area.right, "{frame:?}");
        assert!(frame.area.top < frame.area.bottom, "{frame:?}");
        assert_eq!(lines(&svg), 2, "{svg}");
        assert!(svg.contains("fill=\"currentColor\"") && !svg.contains("#000000") && !svg.contains("<style>"));
        assert!(svg.contains("loss &lt; 1 &amp; falling"), "titles are escaped: {svg}");
        assert!(svg.contains(&hex(colour(1))));
    }

    #[test]
    fn odd_values_do_no_harm() {
        for log_y in [false, true] {
            for points in [vec![], vec![(1.0, 3.0)], vec![(1.0, 0.0), (2.0, f64::NAN), (3.0, f64::INFINITY)]] {
                inline(&chart(vec![points, vec![(2.0, 2.0), (2.0, 2.0)]], log_y)).unwrap();
            }
            inline(&chart(vec![], log_y)).unwrap();
        }
    }

    #[test]
    fn a_page_is_a_grid_with_its_own_colours() {
        let charts = [(); 3].map(|()| chart(vec![vec![(1.0, 1e-3), (2.0, 10.0)]], true));
        let svg = page(&charts, 2).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("prefers-color-scheme: dark"));
        assert!(svg.contains("width=\"1120\" height=\"560\""), "{}", &svg[..200]);
        assert_eq!(lines(&svg), 3);
    }

    /// 5e-4 - 5 steps of 1e-4 is not 0 in floating point.
    #[test]
    fn an_axis_shows_no_rounding_error() {
        let points = (0..=313).map(|step| (step as f64, 1e-3 * (1.0 - step as f64 / 313.0))).collect();
        let svg = inline(&chart(vec![points], false)).unwrap().0;
        assert!(!svg.contains("e-1") && !svg.contains("e-2") && svg.contains("8e-4"), "{svg}");
    }

    #[test]
    fn labels_are_short() {
        let cases =
            [(0.0, "0"), (0.25, "0.25"), (1200.0, "1200"), (3e-5, "3e-5"), (-0.0001, "-1e-4"), (2.5e7, "2.5e7")];
        for (value, expected) in cases {
            assert_eq!(label(value), expected);
        }
    }
}

//! Agreement over work, drawn.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::report::{grouped, means};
use crate::{Method, Trial};

/// A method's points in the chart: work and agreement, in percent.
type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// Draws a line for each method, with a point for each budget.
pub(crate) fn draw(path: &Path, methods: &[Method], trials: &[Trial]) -> Result<(), Box<dyn Error>> {
    let lines = lines(methods, trials);
    let points = || lines.iter().flat_map(|(_, points)| points.iter());
    let most_work = points().map(|(work, _)| *work).fold(10.0, f64::max);
    let least = points().map(|(_, agreement)| *agreement).fold(99.0, f64::min);
    let root = SVGBackend::new(path, (760, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .caption("Answers equal to cold prefill's, by what was computed", ("sans-serif", 18))
        .build_cartesian_2d(0.0..most_work * 1.05, least - 0.5..100.2)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("work: rows × layers computed, % of a cold prefill of the memories")
        .y_desc("equal answers, %")
        .draw()?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2));
        chart.draw_series(line)?.label(*name).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Methods by name. Repairing everything is left out: it agrees by definition.
fn lines<'a>(methods: &'a [Method], trials: &[Trial]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for (index, method) in methods.iter().enumerate().filter(|(_, method)| method.name != "all") {
        let groups = grouped(trials, index);
        let all = means(groups.get("all").map_or(&[], Vec::as_slice));
        let point = (100.0 * all.work, 100.0 * all.agreement);
        match lines.iter_mut().find(|(name, _)| *name == method.name) {
            Some((_, points)) => points.push(point),
            None => lines.push((method.name, vec![point])),
        }
    }
    lines
}

//! What the questions cost, drawn.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use super::report::Report;

/// Draws, for each way to ask, the tokens computed so far over the questions so far.
pub(super) fn draw(path: &Path, report: &Report) -> Result<(), Box<dyn Error>> {
    let most = report.costs.iter().flat_map(|costs| &costs.computed_tokens).copied().max().unwrap_or(1);
    let root = SVGBackend::new(path, (760, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .caption("Tokens computed, as questions are asked", ("sans-serif", 18))
        .build_cartesian_2d(1..report.questions.max(2), 0..most + most / 20 + 1)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("questions").y_desc("tokens computed").draw()?;
    for (index, costs) in report.costs.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let points = (1..).zip(costs.computed_tokens.iter().copied());
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2));
        let line = LineSeries::new(points, color.stroke_width(2));
        chart.draw_series(line)?.label(costs.way.as_str()).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

//! Which blocks of a launch touched which bytes of an allocation.

use std::ops::Range;

/// Runs of bytes on one page.
const PAGE: usize = 4096;

/// Which blocks touched a run of bytes, each as its number plus one. Zero is none.
#[derive(Clone, Copy, Default)]
pub(crate) struct Touch {
    pub(crate) writer: u32,
    pub(crate) reader: u32,
}

impl Touch {
    /// Whether the run was written, or nothing when it was not touched.
    fn kind(&self) -> Option<bool> {
        (self.reader != 0 || self.writer != 0).then_some(self.writer != 0)
    }
}

/// The touched runs of an allocation, as pages, because a launch touches little of a large allocation.
#[derive(Default)]
pub(crate) struct Touches {
    /// For each page its place in `pages` plus one, or zero when nothing on it was touched.
    places: Vec<u32>,
    pages: Vec<[Touch; PAGE]>,
    /// The touched pages lie in here.
    touched: Range<usize>,
}

impl Touches {
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Calls `visit` for some runs of an allocation that has `count`, until it fails.
    #[inline]
    pub(crate) fn visit<E>(
        &mut self,
        runs: Range<usize>,
        count: usize,
        mut visit: impl FnMut(&mut Touch) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.places.is_empty() {
            self.places = vec![0; count.div_ceil(PAGE)];
        }
        let mut at = runs.start;
        while at < runs.end {
            let page = at / PAGE;
            let end = runs.end.min((page + 1) * PAGE);
            let place = self.place(page);
            for touch in &mut self.pages[place][at % PAGE..=(end - 1) % PAGE] {
                visit(touch)?;
            }
            at = end;
        }
        Ok(())
    }

    #[inline]
    fn place(&mut self, page: usize) -> usize {
        if self.places[page] == 0 {
            self.pages.push([Touch::default(); PAGE]);
            self.places[page] = self.pages.len() as u32;
            self.touched = match self.touched.is_empty() {
                true => page..page + 1,
                false => self.touched.start.min(page)..self.touched.end.max(page + 1),
            };
        }
        self.places[page] as usize - 1
    }

    /// The touched runs in their order, those of one kind that lie side by side as one, and whether they were written.
    pub(crate) fn collect(&self) -> Vec<(Range<usize>, bool)> {
        let mut found: Vec<(Range<usize>, bool)> = Vec::new();
        for page in self.touched.clone() {
            let Some(place) = self.places[page].checked_sub(1) else {
                continue;
            };
            let mut at = page * PAGE;
            for runs in self.pages[place as usize].chunk_by(|a, b| a.kind() == b.kind()) {
                let range = at..at + runs.len();
                at = range.end;
                let Some(written) = runs[0].kind() else {
                    continue;
                };
                match found.last_mut() {
                    Some((before, kind)) if before.end == range.start && *kind == written => before.end = range.end,
                    _ => found.push((range, written)),
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_collected_across_pages() {
        let mut touches = Touches::default();
        let mut touch = |range, writer, reader| {
            let mark = |touch: &mut Touch| {
                *touch = Touch { writer, reader };
                Ok::<(), ()>(())
            };
            touches.visit(range, 10 * PAGE, mark).unwrap();
        };
        touch(PAGE - 2..2 * PAGE + 1, 1, 0);
        touch(7 * PAGE..7 * PAGE + 1, 0, 2);
        touch(5..6, 0, 1);
        touch(6..7, 1, 1);
        let expected =
            vec![(5..6, false), (6..7, true), (PAGE - 2..2 * PAGE + 1, true), (7 * PAGE..7 * PAGE + 1, false)];
        assert_eq!(touches.collect(), expected);
        assert_eq!(touches.pages.len(), 4);
    }
}

//! Notes to remember: short facts, each different from all others.

use std::sync::Arc;

use amem_core::{Layout, Model, Token};

/// A question that a few of the [`note`]s are about.
pub const QUESTION: &str = "Where does the keeper of lighthouse number 17 store the spare lamps?";

const PLACES: [&str; 8] = ["cellar", "attic", "boathouse", "kitchen", "workshop", "tower", "garden shed", "hall"];
const THINGS: [&str; 7] = ["lamps", "ropes", "charts", "lenses", "oil cans", "flags", "ladders"];

/// The note of this number.
pub fn note(number: usize) -> String {
    let (thing, place) = (THINGS[number % THINGS.len()], PLACES[number % PLACES.len()]);
    format!("The keeper of lighthouse number {number} stores the spare {thing} in the {place}.")
}

/// The tokens of as many notes as have `tokens` tokens at most, template marks included.
pub fn notes(model: &dyn Model, layout: &Layout, tokens: usize) -> Vec<Arc<[Token]>> {
    let mut left = tokens;
    let encoded =
        (0..).map(|number| layout.memory(&model.chat().encode(&note(number)).expect("a note can be encoded")));
    let fits = |note: &Arc<[Token]>| {
        let fits = note.len() <= left;
        left = left.saturating_sub(note.len());
        fits
    };
    encoded.take_while(fits).collect()
}

//! What can be had at best: by one who knows the future (Belady's rule, with sizes and costs), and by one who knows only
//! how likely each chunk is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Use;

/// What becomes of a chunk that was just computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It is kept, if it fits at all: demand fill.
    Always,
    /// It may be let go at once, like any other.
    IfWorthIt,
}

/// What the misses cost one who knows the future, in tokens of prefill. The chunk with the least cost per token held and
/// use until its next use leaves. With sizes that differ that is close to the best, not the best.
pub fn clairvoyant(uses: &[Use], budget: u64, fill: Fill) -> f64 {
    let mut next = vec![usize::MAX; uses.len()];
    let mut seen = HashMap::new();
    for (at, u) in uses.iter().enumerate().rev() {
        next[at] = seen.insert(u.chunk, at).unwrap_or(usize::MAX);
    }
    // Chunks of about equal cost per token (to an eighth of a doubling) compare by their next use alone.
    let class = |u: &Use| (8.0 * (f64::from(u.cost) / f64::from(u.tokens)).log2()).round() as i64;
    let mut classes: BTreeMap<i64, BTreeSet<(usize, u32)>> = BTreeMap::new();
    let mut held: HashMap<u32, (i64, usize, u64)> = HashMap::new();
    let (mut tokens, mut work) = (0, 0.0);
    for (at, u) in uses.iter().enumerate() {
        let size = u64::from(u.tokens);
        match held.remove(&u.chunk) {
            Some((class, _, size)) => {
                classes.entry(class).or_default().remove(&(at, u.chunk));
                tokens -= size;
            }
            None => work += f64::from(u.cost),
        }
        let room = match fill {
            Fill::Always if size <= budget => budget - size,
            _ => budget,
        };
        let enter = |tokens: &mut u64, held: &mut HashMap<_, _>, classes: &mut BTreeMap<_, BTreeSet<_>>| {
            *tokens += size;
            classes.entry(class(u)).or_default().insert((next[at], u.chunk));
            held.insert(u.chunk, (class(u), next[at], size));
        };
        if fill == Fill::IfWorthIt {
            enter(&mut tokens, &mut held, &mut classes);
        }
        while tokens > room {
            let worth = |(class, next): (i64, usize)| (class as f64 / 8.0).exp2() / (next - at) as f64;
            let furthest = classes.iter().filter_map(|(class, set)| Some((*class, *set.last()?)));
            let Some((class, last)) = furthest.min_by(|a, b| worth((a.0, a.1.0)).total_cmp(&worth((b.0, b.1.0))))
            else {
                break;
            };
            classes.entry(class).or_default().remove(&last);
            tokens -= held.remove(&last.1).map_or(0, |(_, _, size)| size);
        }
        if fill == Fill::Always && size <= budget {
            enter(&mut tokens, &mut held, &mut classes);
        }
    }
    work
}

/// What the misses cost one who knows how likely each chunk is to be used, but not which is next, and who may keep a part
/// of a chunk: A0 (Aho, Denning and Ullman, "Principles of Optimal Page Replacement", 1971). Where each use is drawn by
/// these odds, no policy that does not know the future costs less on the average. A chunk without odds is not used again.
pub fn by_odds(uses: &[Use], odds: &[f64], budget: u64) -> f64 {
    let worth = |u: &Use| odds.get(u.chunk as usize).map_or(0.0, |odds| odds * f64::from(u.cost) / f64::from(u.tokens));
    let mut seen: BTreeMap<u32, (f64, u64)> = BTreeMap::new();
    let mut work = 0.0;
    for u in uses {
        let (worth, tokens) = (worth(u), u64::from(u.tokens));
        // It keeps what is worth most, of what it has seen. Of equals, the first.
        let is_before = |chunk: u32, other: f64| other > worth || (other == worth && chunk < u.chunk);
        let before =
            seen.iter().filter(|(chunk, (other, _))| is_before(**chunk, *other)).map(|(_, (_, tokens))| tokens);
        let held = if seen.contains_key(&u.chunk) { budget.saturating_sub(before.sum()).min(tokens) } else { 0 };
        work += f64::from(u.cost) * (1.0 - held as f64 / tokens as f64);
        if worth > 0.0 {
            seen.insert(u.chunk, (worth, tokens));
        }
    }
    work
}

//! Fast attention against plain loops in f64, with every set of instructions that the machine has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::ops::Range;

use amem_core::transformer::{Attention, Backend, Rope, Row, Span};
use amem_core::{Dtype, KvShape};
use amem_cpu::{Arithmetic, Cache, Cpu, CpuOptions, Instructions};

/// Noise between -1 and 1.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| number()).collect()
}

fn rounded(dtype: Dtype, numbers: &[f32]) -> Vec<f32> {
    let mut numbers = numbers.to_vec();
    dtype.round(&mut numbers);
    numbers
}

/// What stands in a context, and what asks for it.
struct Case {
    shape: KvShape,
    group: usize,
    dtype: Dtype,
    attention: Attention,
    /// The rows that ask, each with its own slot last.
    rows: Vec<Row>,
    /// `[slots][kv_heads * head_dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[rows][heads * head_dim]`.
    queries: Vec<f32>,
}

/// A row that sees some slots. Its position is 0, so that nothing turns.
fn row(shared: Range<u32>, own: Range<u32>) -> Row {
    Row { token: 0, context: 0, slot: own.end - 1, position: 0, sees: Span { shared, own } }
}

fn causal(slots: Range<u32>) -> Vec<Row> {
    slots.map(|slot| row(0..0, 0..slot + 1)).collect()
}

impl Case {
    fn new(head_dim: usize, kv_heads: usize, group: usize, dtype: Dtype, rows: Vec<Row>) -> Self {
        let shape = KvShape { layers: 2, kv_heads, head_dim };
        let slots = rows.iter().map(|row| row.slot as usize + 1).max().unwrap();
        let [keys, values] = [1, 2].map(|seed| noise(seed, slots * shape.row()));
        let queries = noise(3, rows.len() * group * shape.row());
        // Layers are told apart.
        let attention = Attention::new(1, head_dim);
        Self { shape, group, dtype, attention, rows, keys, values, queries }
    }

    fn name(&self) -> String {
        let Self { shape, group, dtype, attention, rows, .. } = self;
        let (heads, last) = (group * shape.kv_heads, rows.last().unwrap());
        format!(
            "{heads} heads on {} of {}, {dtype:?}, {attention:?}, {} rows up to {last:?}",
            shape.kv_heads,
            shape.head_dim,
            rows.len()
        )
    }

    fn columns(&self) -> usize {
        self.group * self.shape.row()
    }

    /// A cache with all slots, in blocks that stand in no order, and the blocks.
    fn cache(&self, cpu: &Cpu) -> (Cache, Vec<u32>) {
        let slots = self.keys.len() / self.shape.row();
        let blocks = slots.div_ceil(cpu.block_tokens()) as u32;
        let table: Vec<u32> = (0..blocks).rev().map(|block| 2 * block + 1).collect();
        let mut cache = cpu.cache(&self.shape, self.dtype, 2 * blocks as usize).unwrap();
        let all: Vec<Row> = (0..slots as u32).map(|slot| row(0..0, slot..slot + 1)).collect();
        let plan = cpu.plan(&self.rope(), &all, &[&table]).unwrap();
        let [keys, values] = [&self.keys, &self.values].map(|numbers| cpu.upload(self.shape.row(), numbers).unwrap());
        cpu.write_kv(&mut cache, 1, &plan, &keys, &values).unwrap();
        (cache, table)
    }

    fn rope(&self) -> Rope {
        Rope::plain(10_000.0, self.shape.head_dim)
    }

    /// What some of the rows attend to, computed together.
    fn attended(&self, cpu: &Cpu, (cache, table): &(Cache, Vec<u32>), rows: Range<usize>) -> Vec<f32> {
        let plan = cpu.plan(&self.rope(), &self.rows[rows.clone()], &[table]).unwrap();
        let queries = &self.queries[rows.start * self.columns()..rows.end * self.columns()];
        let queries = cpu.upload(self.columns(), queries).unwrap();
        cpu.read(&cpu.attend(cache, self.attention, &plan, &queries).unwrap()).unwrap()
    }

    /// The attention that all slots get from some of the rows.
    fn mass(&self, cpu: &Cpu, (cache, table): &(Cache, Vec<u32>), rows: Range<usize>) -> Vec<f32> {
        let plan = cpu.plan(&self.rope(), &self.rows, &[table]).unwrap();
        let queries = cpu.upload(self.columns(), &self.queries).unwrap();
        let slots = self.keys.len() / self.shape.row();
        let mut mass = cpu.upload(slots, &vec![0.25; slots]).unwrap();
        cpu.attention_mass(cache, self.attention, &plan, rows, &queries, &mut mass).unwrap();
        cpu.read(&mass).unwrap()
    }

    /// The weights of a query, by slot. Products of bf16 round it once it is multiplied by the scale, and that is done here too:
    /// how far scores are from each other says nothing of the kernels then.
    fn weights(&self, cpu: &Cpu, keys: &[f32], index: usize, head: usize) -> Vec<(usize, f64)> {
        let (KvShape { head_dim, .. }, row) = (self.shape, &self.rows[index]);
        let query = &self.queries[index * self.columns() + head * head_dim..][..head_dim];
        let factor = match self.attention.soft_cap {
            None => self.attention.scale * std::f32::consts::LOG2_E,
            Some(cap) => self.attention.scale / cap,
        };
        let query: Vec<f64> = if self.rounds(cpu) {
            let scaled: Vec<f32> = query.iter().map(|x| x * factor).collect();
            rounded(Dtype::Bf16, &scaled).iter().map(|x| f64::from(*x) / f64::from(factor)).collect()
        } else {
            query.iter().map(|x| f64::from(*x)).collect()
        };
        let score = |slot: u32| {
            let key = &keys[slot as usize * self.shape.row() + head / self.group * head_dim..][..head_dim];
            let product: f64 = query.iter().zip(key).map(|(q, k)| q * f64::from(*k)).sum();
            let score = product * f64::from(self.attention.scale);
            let capped = |cap: f32| f64::from(cap) * (score / f64::from(cap)).tanh();
            (slot as usize, self.attention.soft_cap.map_or(score, capped))
        };
        let scores: Vec<(usize, f64)> = row.sees.shared.clone().chain(row.sees.own.clone()).map(score).collect();
        let top = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|(_, score)| (score - top).exp()).sum();
        scores.into_iter().map(|(slot, score)| (slot, (score - top).exp() / total)).collect()
    }

    /// Whether weights and queries are rounded to bf16.
    fn rounds(&self, cpu: &Cpu) -> bool {
        let paired = self.shape.head_dim.is_multiple_of(32);
        self.dtype == Dtype::Bf16 && cpu.instructions() == Instructions::Avx512Bf16 && paired
    }

    fn tolerance(&self, cpu: &Cpu) -> f64 {
        if self.rounds(cpu) { 1.0 / 128.0 } else { 2e-5 }
    }

    /// Compares all rows' attention and the mass of some.
    fn check(&self, cpu: &Cpu) {
        let cache = self.cache(cpu);
        let found = self.attended(cpu, &cache, 0..self.rows.len());
        let [keys, values] = [&self.keys, &self.values].map(|numbers| rounded(self.dtype, numbers));
        let asking = self.rows.len() / 3..self.rows.len();
        let mut mass = vec![0.25; self.keys.len() / self.shape.row()];
        for index in 0..self.rows.len() {
            for head in 0..self.group * self.shape.kv_heads {
                let mut expected = vec![0f64; self.shape.head_dim];
                for (slot, weight) in self.weights(cpu, &keys, index, head) {
                    let at = slot * self.shape.row() + head / self.group * self.shape.head_dim;
                    expected.iter_mut().zip(&values[at..]).for_each(|(sum, x)| *sum += weight * f64::from(*x));
                    if asking.contains(&index) {
                        mass[slot] += weight;
                    }
                }
                let found = &found[index * self.columns() + head * self.shape.head_dim..];
                for (found, expected) in found.iter().zip(expected) {
                    let off = (f64::from(*found) - expected).abs();
                    assert!(
                        off <= self.tolerance(cpu),
                        "{}, row {index}, head {head}: {found} instead of {expected} with {:?}",
                        self.name(),
                        cpu.instructions()
                    );
                }
            }
        }
        for (slot, (found, expected)) in self.mass(cpu, &cache, asking).into_iter().zip(mass).enumerate() {
            let off = (f64::from(found) - expected).abs() / (1.0 + expected);
            assert!(
                off <= self.tolerance(cpu),
                "{}, mass of slot {slot}: {found} instead of {expected} with {:?}",
                self.name(),
                cpu.instructions()
            );
        }
    }
}

fn cpu(instructions: Instructions, threads: usize) -> Cpu {
    Cpu::open(CpuOptions::default().instructions(instructions).threads(threads)).unwrap()
}

fn sets() -> impl Iterator<Item = Instructions> {
    Instructions::ALL.into_iter().filter(|set| set.is_available())
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Texts side by side behind a shared beginning, and one in the middle of a block that sees nothing of it.
fn packed() -> Vec<Row> {
    let texts = [(21, 24), (24, 42), (42, 43), (43, 71), (130, 135)];
    let rows = texts.into_iter().flat_map(|(start, end)| (start..end).map(move |slot| row(0..21, start..slot + 1)));
    rows.chain([row(0..0, 135..136), row(3..19, 70..300)]).collect()
}

#[test]
fn heads_of_every_size_attend_as_plain_loops_do() {
    for instructions in sets() {
        let cpu = cpu(instructions, 2);
        let shapes = [
            (2, 1, 1),
            (6, 2, 2),
            (10, 1, 3),
            (16, 2, 4),
            (20, 1, 7),
            (32, 1, 8),
            (48, 1, 5),
            (64, 2, 7),
            (80, 1, 2),
            (96, 1, 3),
            (128, 1, 4),
            (144, 1, 1),
            (256, 1, 2),
        ];
        for ((head_dim, kv_heads, group), dtype) in
            shapes.into_iter().flat_map(|shape| DTYPES.map(|dtype| (shape, dtype)))
        {
            Case::new(head_dim, kv_heads, group, dtype, packed()).check(&cpu);
            Case::new(head_dim, kv_heads, group, dtype, causal(0..7)).check(&cpu);
        }
    }
}

#[test]
fn tiles_of_every_height_attend_as_plain_loops_do() {
    for instructions in sets() {
        let cpu = cpu(instructions, 1);
        for rows in 1..=14 {
            for (head_dim, dtype) in [(32, Dtype::Bf16), (16, Dtype::F16), (16, Dtype::F32)] {
                Case::new(head_dim, 1, 1, dtype, causal(60..60 + rows)).check(&cpu);
            }
        }
    }
}

#[test]
fn contexts_of_every_length_are_attended_to_as_plain_loops_do_it() {
    for instructions in sets() {
        let cpu = cpu(instructions, 3);
        for slots in [1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 530, 2500] {
            for dtype in DTYPES {
                let last = slots - 1;
                Case::new(64, 1, 3, dtype, causal(last..slots)).check(&cpu);
                // A window that begins somewhere.
                Case::new(64, 2, 1, dtype, vec![row(0..0, last / 3..slots)]).check(&cpu);
            }
        }
        // Rows enough for several tasks.
        Case::new(32, 1, 8, Dtype::F16, causal(0..150)).check(&cpu);
        Case::new(32, 1, 8, Dtype::Bf16, causal(200..300)).check(&cpu);
    }
}

#[test]
fn scores_are_scaled_and_capped_and_may_be_far_from_zero() {
    for instructions in sets() {
        let cpu = cpu(instructions, 2);
        for dtype in DTYPES {
            for attention in [
                Attention::new(1, 32).scale(0.5),
                Attention::new(1, 32).soft_cap(Some(1.5)),
                Attention::new(1, 32).scale(3.0).soft_cap(Some(20.0)),
            ] {
                let case = Case { attention, ..Case::new(32, 1, 3, dtype, causal(0..80)) };
                case.check(&cpu);
            }
            let mut far = Case::new(32, 1, 3, dtype, causal(250..280));
            far.queries.iter_mut().for_each(|x| *x *= 60.0);
            far.check(&cpu);
        }
    }
}

#[test]
fn a_row_yields_the_same_bits_beside_any_rows_and_on_any_number_of_threads() {
    let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    for instructions in sets() {
        let cpus = [1, 2, 5].map(|threads| cpu(instructions, threads));
        for dtype in DTYPES {
            let long = causal(700..719);
            for rows in [packed(), long] {
                let mut case = Case::new(64, 2, 3, dtype, rows);
                // Tops move from part to part.
                case.queries.iter_mut().for_each(|x| *x *= 20.0);
                let cache = case.cache(&cpus[0]);
                let (count, columns) = (case.rows.len(), case.columns());
                let together = bits(case.attended(&cpus[0], &cache, 0..count));
                let mass = bits(case.mass(&cpus[0], &cache, 1..count));
                for cpu in &cpus {
                    assert!(bits(case.attended(cpu, &cache, 0..count)) == together, "{}", case.name());
                    assert!(bits(case.mass(cpu, &cache, 1..count)) == mass, "{}", case.name());
                    for some in [1, 5] {
                        for start in (0..count).step_by(some) {
                            let rows = start..count.min(start + some);
                            let alone = bits(case.attended(cpu, &cache, rows.clone()));
                            assert!(
                                alone == together[rows.start * columns..rows.end * columns],
                                "{rows:?} of {}",
                                case.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_mass_that_many_queries_give_has_the_same_bits_on_any_number_of_threads() {
    for instructions in sets() {
        for dtype in DTYPES {
            // More queries than are computed together, on two key heads.
            let case = Case::new(64, 2, 7, dtype, causal(300..340));
            let bits = |threads| {
                let cpu = cpu(instructions, threads);
                let mass = case.mass(&cpu, &case.cache(&cpu), 1..40);
                mass.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            let alone = bits(1);
            assert!([2, 3, 5].map(bits).iter().all(|found| *found == alone), "{} with {instructions:?}", case.name());
        }
    }
}

#[test]
fn in_exact_arithmetic_all_instructions_give_the_same_bits() {
    for dtype in DTYPES {
        for rows in [packed(), causal(300..340)] {
            let case = Case::new(64, 2, 7, dtype, rows);
            let mut all = Vec::new();
            for instructions in Instructions::ALL.into_iter().filter(|set| set.is_available()) {
                for threads in [1, 3] {
                    let options = CpuOptions::default().arithmetic(Arithmetic::Exact);
                    let cpu = Cpu::open(options.instructions(instructions).threads(threads)).unwrap();
                    let (cache, count) = (case.cache(&cpu), case.rows.len());
                    let [attended, mass] = [case.attended(&cpu, &cache, 0..count), case.mass(&cpu, &cache, 1..count)];
                    all.push([attended, mass].map(|x| x.into_iter().map(f32::to_bits).collect::<Vec<u32>>()));
                }
            }
            assert!(all.iter().all(|bits| *bits == all[0]), "{}", case.name());
        }
    }
}

#[test]
fn a_key_that_is_no_number_shows_in_the_rows_that_see_it_and_in_no_others() {
    for instructions in sets() {
        let cpu = cpu(instructions, 1);
        for dtype in DTYPES {
            for cap in [None, Some(3.0)] {
                let attention = Attention::new(1, 32).soft_cap(cap);
                let mut case = Case { attention, ..Case::new(32, 1, 3, dtype, causal(0..90)) };
                case.keys[70 * 32..71 * 32].fill(f32::NAN);
                let cache = case.cache(&cpu);
                for (row, attended) in case.attended(&cpu, &cache, 0..90).chunks_exact(case.columns()).enumerate() {
                    let shows = attended.iter().all(|x| x.is_nan());
                    let hidden = attended.iter().all(|x| x.is_finite());
                    assert!(if row < 70 { hidden } else { shows }, "row {row}, {dtype:?}, {instructions:?}, {cap:?}");
                }
            }
        }
    }
}

#[test]
fn what_stands_behind_the_slots_that_rows_see_is_of_no_consequence() {
    for instructions in sets() {
        let cpu = cpu(instructions, 1);
        for dtype in DTYPES {
            let case = Case::new(32, 1, 2, dtype, causal(0..41));
            let (clean, width) = (case.cache(&cpu), case.shape.row());
            let [mut keys, mut values] = [case.keys.clone(), case.values.clone()];
            for numbers in [&mut keys, &mut values] {
                // Beside a slot that is seen, and behind an end that is no multiple of anything.
                numbers[37 * width..].fill(f32::NAN);
            }
            let case = Case { keys, values, ..case };
            let dirty = case.cache(&cpu);
            for rows in [0..37, 36..37, 35..36] {
                let [clean, dirty] = [&clean, &dirty].map(|cache| case.attended(&cpu, cache, rows.clone()));
                assert!(clean == dirty, "{rows:?}, {dtype:?}, {instructions:?}");
            }
        }
    }
}

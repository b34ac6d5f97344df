//! A good backend with one fault at a time.

use std::ops::Range;

use amem_core::testing::{self, Profile, Reference};
use amem_core::transformer::{
    Activation, Attention, AttentionWeights, Backend, BlockTable, ExpertWeights, LayerNorm, MlpWeights, Numerics,
    Placement, Qkv, Rope, Row, WeightTensor,
};
use amem_core::{Dtype, KvShape, Result, Token};

use super::each_is_caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    TakesTooFewBytes,
    TakesTooManyBytes,
    EmbedsTheNextToken,
    GathersInOrder,
    JoinsTheWrongWayRound,
    AddsNothing,
    NormsWithoutEps,
    NormsWholeRows,
    ForgetsBiases,
    LinearDependsOnRows,
    GatesWithoutSilu,
    GatesTheWrongHalf,
    GatesWithAnotherGelu,
    GatesTheWrongHalfByGelu,
    ScalesNothing,
    CapsHard,
    CapsUnscaled,
    SumsUnweighted,
    SumsOneOfEach,
    SumsDependOnRows,
    MiscountsColumns,
    RotatesNothing,
    RotatesBackwards,
    RotatesNeighbours,
    ForgetsTheAttentionFactor,
    StretchesPairsThatStay,
    RotatesToSlots,
    RoundsNothing,
    WritesRotated,
    WritesTheFirstRow,
    WritesOtherLayers,
    LoadsTheFirstPlacement,
    LoadsAtTheSlot,
    LoadsAllLayers,
    LoadsOnlyTheFirstLayer,
    CopiesNothing,
    CopiesBackwards,
    CopiesTheFirstLayer,
    SeesNoSharedSlots,
    SeesFromTheBeginning,
    SeesToTheEndOfShared,
    SeesItselfNot,
    SeesOneTable,
    AttendsUnscaled,
    AttendsWithAScaleOfItsOwn,
    AttendsUncapped,
    CapsBeforeTheScale,
    AttendsFirstLayer,
    GroupsHeadsInTurn,
    OverflowsInAttention,
    AttentionDependsOnRows,
    MassReplaces,
    MassOfAllRows,
    MassOfOneHead,
    MassIsUncapped,
    MassDependsOnRows,
    DistanceIsNotSquared,
    DistanceIsNeverZero,
    DistanceDependsOnRows,
    RowDistanceIsNotSquared,
    RowDistanceReplaces,
    RowDistanceForgetsTheFactor,
    ReadsAsWhatItIsNot,
    ChoosesWithoutNeighbours,
    ChoosesWithoutFactors,
    ChoosesTheLaterOfEquals,
    ChoosesWhatHasNoWeight,
    ChoosesByWeight,
    FusedQkvForgetsNorms,
    FusedQkvNormsHeads,
    FusedMlpForgetsTheActivation,
    FusedQkvForgetsRotation,
    FusedQkvDependsOnRows,
    FusedMlpSwapsGateAndUp,
    FusedMlpDependsOnRows,
    ExpertsCountAlike,
    ExpertsCountWithoutTheOthers,
    ExpertsAreTheLastOfEquals,
    ExpertsDependOnRows,
    FusedNormForgetsTheSum,
    FusedNormOfTheAddend,
    FusedNormDependsOnRows,
    LayerNormForgetsTheMean,
    LayerNormForgetsTheBias,
    LayerNormWithoutEps,
    LayerNormScalesTheBias,
    GeluByATangent,
    SeesNothingBehindItself,
    FusedLayerNormForgetsTheSum,
    FusedLayerNormOfTheAddend,
    FusedLayerNormDependsOnRows,
}

const FAULTS: [(Fault, &str); 91] = [
    (Fault::TakesTooFewBytes, "is accepted"),
    (Fault::TakesTooManyBytes, "is accepted"),
    (Fault::EmbedsTheNextToken, "embed"),
    (Fault::GathersInOrder, "gather"),
    (Fault::JoinsTheWrongWayRound, "concat"),
    (Fault::AddsNothing, "add "),
    (Fault::NormsWithoutEps, "rms_norm"),
    (Fault::NormsWholeRows, "rms_norm"),
    (Fault::ForgetsBiases, "bias"),
    (Fault::LinearDependsOnRows, "at once and one by one"),
    (Fault::GatesWithoutSilu, "silu_mul"),
    (Fault::GatesTheWrongHalf, "silu_mul"),
    (Fault::GatesWithAnotherGelu, "gelu_mul"),
    (Fault::GatesTheWrongHalfByGelu, "gelu_mul"),
    (Fault::ScalesNothing, "scale "),
    (Fault::CapsHard, "soft_cap"),
    (Fault::CapsUnscaled, "soft_cap"),
    (Fault::SumsUnweighted, "sum_rows"),
    (Fault::SumsOneOfEach, "sum_rows"),
    (Fault::SumsDependOnRows, "sum_rows"),
    (Fault::MiscountsColumns, "columns"),
    (Fault::RotatesNothing, "rotate"),
    (Fault::RotatesBackwards, "rotate"),
    (Fault::RotatesNeighbours, "rotate"),
    (Fault::ForgetsTheAttentionFactor, "rotate"),
    (Fault::StretchesPairsThatStay, "rotate"),
    (Fault::RotatesToSlots, "packed and in a context of their own"),
    (Fault::RoundsNothing, "packed and in a context of their own"),
    (Fault::WritesRotated, "packed and in a context of their own"),
    (Fault::WritesTheFirstRow, "was never written"),
    (Fault::WritesOtherLayers, "heads on"),
    (Fault::LoadsTheFirstPlacement, "was never written"),
    (Fault::LoadsAtTheSlot, "heads on"),
    (Fault::LoadsAllLayers, "heads on"),
    (Fault::LoadsOnlyTheFirstLayer, "was never written"),
    (Fault::CopiesNothing, "was never written"),
    (Fault::CopiesBackwards, "was never written"),
    (Fault::CopiesTheFirstLayer, "was never written"),
    (Fault::SeesNoSharedSlots, "heads on"),
    (Fault::SeesFromTheBeginning, "heads on"),
    (Fault::SeesToTheEndOfShared, "heads on"),
    (Fault::SeesItselfNot, "heads on"),
    (Fault::SeesOneTable, "heads on"),
    (Fault::AttendsUnscaled, "heads on"),
    (Fault::AttendsWithAScaleOfItsOwn, "capped"),
    (Fault::AttendsUncapped, "capped"),
    (Fault::CapsBeforeTheScale, "capped"),
    (Fault::AttendsFirstLayer, "was never written"),
    (Fault::GroupsHeadsInTurn, "heads on"),
    (Fault::OverflowsInAttention, "scores far from zero"),
    (Fault::AttentionDependsOnRows, "at once and one by one"),
    (Fault::MassReplaces, "heads on"),
    (Fault::MassOfAllRows, "heads on"),
    (Fault::MassOfOneHead, "heads on"),
    (Fault::MassIsUncapped, "capped"),
    (Fault::MassDependsOnRows, "attention mass of rows"),
    (Fault::DistanceIsNotSquared, "heads on"),
    (Fault::DistanceIsNeverZero, "heads on"),
    (Fault::DistanceDependsOnRows, "key distance of rows"),
    (Fault::RowDistanceIsNotSquared, "add_row_distance"),
    (Fault::RowDistanceReplaces, "add_row_distance"),
    (Fault::RowDistanceForgetsTheFactor, "add_row_distance"),
    (Fault::ReadsAsWhatItIsNot, "read_as"),
    (Fault::ChoosesWithoutNeighbours, "heaviest of"),
    (Fault::ChoosesWithoutFactors, "heaviest of"),
    (Fault::ChoosesTheLaterOfEquals, "heaviest of"),
    (Fault::ChoosesWhatHasNoWeight, "heaviest of"),
    (Fault::ChoosesByWeight, "heaviest of"),
    (Fault::FusedQkvForgetsNorms, "of qkv"),
    (Fault::FusedQkvNormsHeads, "of qkv"),
    (Fault::FusedMlpForgetsTheActivation, "mlp"),
    (Fault::FusedQkvForgetsRotation, "queries of qkv"),
    (Fault::FusedQkvDependsOnRows, "qkv of"),
    (Fault::FusedMlpSwapsGateAndUp, "mlp"),
    (Fault::FusedMlpDependsOnRows, "mlp of"),
    (Fault::ExpertsCountAlike, "experts, norm_top_k: true"),
    (Fault::ExpertsCountWithoutTheOthers, "experts, norm_top_k: false"),
    (Fault::ExpertsAreTheLastOfEquals, "scores up to 0 apart"),
    (Fault::ExpertsDependOnRows, "rows at once and one by one"),
    (Fault::FusedNormForgetsTheSum, "add_rms_norm"),
    (Fault::FusedNormOfTheAddend, "add_rms_norm"),
    (Fault::FusedNormDependsOnRows, "add_rms_norm of"),
    (Fault::LayerNormForgetsTheMean, "layer_norm"),
    (Fault::LayerNormForgetsTheBias, "layer_norm"),
    (Fault::LayerNormWithoutEps, "layer_norm"),
    (Fault::LayerNormScalesTheBias, "layer_norm"),
    (Fault::GeluByATangent, "gelu "),
    (Fault::SeesNothingBehindItself, "texts in both directions"),
    (Fault::FusedLayerNormForgetsTheSum, "add_layer_norm"),
    (Fault::FusedLayerNormOfTheAddend, "add_layer_norm"),
    (Fault::FusedLayerNormDependsOnRows, "add_layer_norm of"),
];

/// Few sizes and types, for the suite runs once for each fault.
fn profile() -> Profile {
    let mut profile = Profile::default();
    (profile.head_dims, profile.weights, profile.caches) = (vec![4, 2], vec![Dtype::F32], vec![Dtype::F16]);
    profile
}

#[test]
fn each_fault_of_a_backend_is_caught() {
    testing::backend(&profile(), || Faulty(None));
    each_is_caught(&FAULTS, |fault| testing::backend(&profile(), || Faulty(Some(fault))));
}

/// A good backend, but for one fault.
struct Faulty(Option<Fault>);

type Table = <Reference as Backend>::Tensor;
type Cache = <Reference as Backend>::Cache;

/// A plan of the inner backend, and what it was made of.
struct Plan {
    inner: <Reference as Backend>::Plan,
    rope: Rope,
    rows: Vec<Row>,
    tables: Vec<Vec<u32>>,
}

/// A cache of the inner backend, and its shape.
struct Kept {
    inner: Cache,
    shape: KvShape,
}

const INNER: Reference = Reference;

fn read(x: &Table) -> Vec<f32> {
    INNER.read(x).unwrap()
}

/// The same tensor with every number changed.
fn map(x: &Table, columns: usize, change: impl Fn(usize, f32) -> f32) -> Table {
    let numbers: Vec<f32> = read(x).into_iter().enumerate().map(|(index, number)| change(index, number)).collect();
    INNER.upload(columns, &numbers).unwrap()
}

/// The tensor with its numbers a little off, if there is more than one row.
fn off_in_company(x: Table, rows: usize) -> Table {
    let columns = read(&x).len() / rows.max(1);
    if rows > 1 { map(&x, columns, |_, number| number * (1.0 + 1e-6)) } else { x }
}

impl Faulty {
    fn has(&self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }

    /// A plan with its rows changed.
    fn replanned(&self, plan: &Plan, change: impl Fn(&mut Row)) -> Plan {
        let mut rows = plan.rows.clone();
        rows.iter_mut().for_each(change);
        self.planned(&plan.rope, rows, plan.tables.clone())
    }

    fn planned(&self, rope: &Rope, rows: Vec<Row>, tables: Vec<Vec<u32>>) -> Plan {
        let borrowed: Vec<BlockTable<'_>> = tables.iter().map(Vec::as_slice).collect();
        let inner = INNER.plan(rope, &rows, &borrowed).unwrap();
        Plan { inner, rope: rope.clone(), rows, tables }
    }

    /// The plan with what each row sees, as the fault has it.
    fn seen(&self, plan: &Plan) -> Plan {
        self.replanned(plan, |row| match self.0 {
            Some(Fault::SeesNoSharedSlots) => row.sees.shared = 0..0,
            Some(Fault::SeesFromTheBeginning) if row.sees.shared.is_empty() && row.context == 0 => {
                row.sees.own.start = 0;
            }
            Some(Fault::SeesToTheEndOfShared) if !row.sees.shared.is_empty() => {
                row.sees.shared.end = row.sees.own.start
            }
            Some(Fault::SeesItselfNot) if row.sees.own.len() > 1 => row.sees.own.end -= 1,
            Some(Fault::SeesOneTable) => row.context = 0,
            Some(Fault::SeesNothingBehindItself) => row.sees.own.end = row.sees.own.end.min(row.slot + 1),
            _ => {}
        })
    }
}

impl Backend for Faulty {
    type Matrix = Table;
    type Vector = Vec<f64>;
    type Tensor = Table;
    type Cache = Kept;
    type Plan = Plan;

    fn numerics(&self) -> Numerics {
        INNER.numerics()
    }

    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<Table> {
        let Some(wanted) = tensor.dtype.matrix_bytes(tensor.rows, tensor.columns) else { return INNER.matrix(tensor) };
        let mut bytes = tensor.bytes.to_vec();
        match self.0 {
            Some(Fault::TakesTooFewBytes) => bytes.resize(wanted.max(bytes.len()), 0),
            Some(Fault::TakesTooManyBytes) => bytes.truncate(wanted),
            _ => {}
        }
        INNER.matrix(&WeightTensor::new(tensor.role, tensor.dtype, tensor.rows, tensor.columns, &bytes))
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f64>> {
        INNER.vector(values)
    }

    fn block_tokens(&self) -> usize {
        INNER.block_tokens()
    }

    fn cache(&self, shape: &KvShape, dtype: Dtype, blocks: usize) -> Result<Kept> {
        let dtype = if self.has(Fault::RoundsNothing) { Dtype::F32 } else { dtype };
        Ok(Kept { inner: INNER.cache(shape, dtype, blocks)?, shape: *shape })
    }

    fn copy_block(&self, cache: &mut Kept, from: u32, to: u32) -> Result<()> {
        match self.0 {
            Some(Fault::CopiesNothing) => Ok(()),
            Some(Fault::CopiesBackwards) => INNER.copy_block(&mut cache.inner, to, from),
            Some(Fault::CopiesTheFirstLayer) if cache.shape.layers > 1 => Ok(()),
            _ => INNER.copy_block(&mut cache.inner, from, to),
        }
    }

    fn plan(&self, rope: &Rope, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Plan> {
        Ok(self.planned(rope, rows.to_vec(), tables.iter().map(|table| table.to_vec()).collect()))
    }

    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<Table> {
        INNER.upload(columns, numbers)
    }

    fn columns(&self, x: &Table) -> usize {
        INNER.columns(x) + usize::from(self.has(Fault::MiscountsColumns))
    }

    fn embed(&self, table: &Table, tokens: &[Token]) -> Result<Table> {
        let mut tokens = tokens.to_vec();
        if self.has(Fault::EmbedsTheNextToken) {
            tokens.rotate_left(1);
        }
        INNER.embed(table, &tokens)
    }

    fn rms_norm(&self, x: &Table, weight: &Vec<f64>, eps: f32) -> Result<Table> {
        match self.0 {
            Some(Fault::NormsWithoutEps) => INNER.rms_norm(x, weight, 0.0),
            Some(Fault::NormsWholeRows) => {
                let weight = weight.repeat((read(x).len() / weight.len()).max(1));
                INNER.rms_norm(x, &weight, eps)
            }
            _ => INNER.rms_norm(x, weight, eps),
        }
    }

    fn linear(&self, x: &Table, w: &Table, bias: Option<&Vec<f64>>) -> Result<Table> {
        let bias = bias.filter(|_| !self.has(Fault::ForgetsBiases));
        let y = INNER.linear(x, w, bias)?;
        let outputs = INNER.linear(&INNER.gather(x, &[0])?, w, bias)?;
        let (numbers, outputs) = (read(&y).len(), read(&outputs).len());
        Ok(if self.has(Fault::LinearDependsOnRows) { off_in_company(y, numbers / outputs) } else { y })
    }

    fn add(&self, x: &mut Table, y: &Table) -> Result<()> {
        if self.has(Fault::AddsNothing) { Ok(()) } else { INNER.add(x, y) }
    }

    fn silu_mul(&self, gate: &Table, up: &Table) -> Result<Table> {
        match self.0 {
            Some(Fault::GatesTheWrongHalf) => INNER.silu_mul(up, gate),
            Some(Fault::GatesWithoutSilu) => {
                let up = read(up);
                Ok(map(gate, INNER.columns(gate), |index, gate| gate * up[index]))
            }
            _ => INNER.silu_mul(gate, up),
        }
    }

    fn gelu_mul(&self, gate: &Table, up: &Table) -> Result<Table> {
        match self.0 {
            Some(Fault::GatesTheWrongHalfByGelu) => INNER.gelu_mul(up, gate),
            Some(Fault::GatesWithAnotherGelu) => {
                // The approximation with a logistic function.
                let ups = read(up);
                Ok(map(gate, INNER.columns(up), |index, x| x / (1.0 + (-1.702 * x).exp()) * ups[index]))
            }
            _ => INNER.gelu_mul(gate, up),
        }
    }

    fn layer_norm(&self, x: &Table, norm: &LayerNorm<Self>) -> Result<Table> {
        let numbers = |vector: &[f64]| vector.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let (weight, mut bias, mut eps) = (numbers(&norm.weight), numbers(&norm.bias), norm.eps);
        match self.0 {
            Some(Fault::LayerNormForgetsTheMean) => {
                let columns = INNER.columns(x);
                let normed = INNER.rms_norm(x, &norm.weight, eps)?;
                return Ok(map(&normed, columns, |index, x| x + bias[index % columns]));
            }
            Some(Fault::LayerNormForgetsTheBias) => bias.fill(0.0),
            Some(Fault::LayerNormScalesTheBias) => {
                bias.iter_mut().zip(&weight).for_each(|(bias, weight)| *bias *= weight)
            }
            Some(Fault::LayerNormWithoutEps) => eps = 0.0,
            _ => {}
        }
        INNER.layer_norm(x, &LayerNorm::new(&INNER, weight, bias, eps)?)
    }

    fn gelu(&self, x: &mut Table) -> Result<()> {
        if !self.has(Fault::GeluByATangent) {
            return INNER.gelu(x);
        }
        let columns = INNER.columns(x);
        *x = INNER.gelu_mul(x, &map(x, columns, |_, _| 1.0))?;
        Ok(())
    }

    fn scale(&self, x: &mut Table, factor: f32) -> Result<()> {
        if self.has(Fault::ScalesNothing) { Ok(()) } else { INNER.scale(x, factor) }
    }

    fn soft_cap(&self, x: &mut Table, cap: f32) -> Result<()> {
        let columns = INNER.columns(x);
        match self.0 {
            Some(Fault::CapsHard) => *x = map(x, columns, |_, x| x.clamp(-cap, cap)),
            Some(Fault::CapsUnscaled) => *x = map(x, columns, |_, x| cap * x.tanh()),
            _ => return INNER.soft_cap(x, cap),
        }
        Ok(())
    }

    fn sum_rows(&self, x: &Table, picked: &[(usize, f32)], each: usize) -> Result<Table> {
        let mut picked = picked.to_vec();
        match self.0 {
            Some(Fault::SumsUnweighted) => picked.iter_mut().for_each(|(_, weight)| *weight = 1.0),
            Some(Fault::SumsOneOfEach) => {
                let all = picked.iter_mut().enumerate();
                all.filter(|(index, _)| index % each > 0).for_each(|(_, (_, weight))| *weight = 0.0);
            }
            _ => {}
        }
        let sums = INNER.sum_rows(x, &picked, each)?;
        let rows = picked.len() / each;
        Ok(if self.has(Fault::SumsDependOnRows) { off_in_company(sums, rows) } else { sums })
    }

    fn rotate(&self, x: &mut Table, plan: &Plan) -> Result<()> {
        match self.0 {
            Some(Fault::RotatesNothing) => Ok(()),
            Some(Fault::RotatesBackwards) => {
                let mut rope = plan.rope.clone();
                rope.inverse_frequencies.iter_mut().for_each(|frequency| *frequency = -*frequency);
                INNER.rotate(x, &self.planned(&rope, plan.rows.clone(), plan.tables.clone()).inner)
            }
            Some(Fault::RotatesNeighbours) => {
                let half = plan.rope.inverse_frequencies.len();
                let columns = read(x).len() / plan.rows.len();
                let place = |index: usize| {
                    let (head, at) = (index / (2 * half), index % (2 * half));
                    head * 2 * half + at / 2 + at % 2 * half
                };
                let numbers = read(x);
                let mut apart = vec![0.0; numbers.len()];
                numbers.iter().enumerate().for_each(|(index, number)| apart[place(index)] = *number);
                let mut turned = INNER.upload(columns, &apart)?;
                INNER.rotate(&mut turned, &plan.inner)?;
                let turned = read(&turned);
                *x = map(x, columns, |index, _| turned[place(index)]);
                Ok(())
            }
            Some(Fault::ForgetsTheAttentionFactor) => {
                let rope = Rope { attention_factor: 1.0, ..plan.rope.clone() };
                INNER.rotate(x, &self.planned(&rope, plan.rows.clone(), plan.tables.clone()).inner)
            }
            Some(Fault::StretchesPairsThatStay) => {
                let mut rope = plan.rope.clone();
                rope.inverse_frequencies.iter_mut().for_each(|frequency| *frequency += f32::MIN_POSITIVE);
                INNER.rotate(x, &self.planned(&rope, plan.rows.clone(), plan.tables.clone()).inner)
            }
            Some(Fault::RotatesToSlots) => INNER.rotate(x, &self.replanned(plan, |row| row.position = row.slot).inner),
            _ => INNER.rotate(x, &plan.inner),
        }
    }

    fn gather(&self, x: &Table, rows: &[usize]) -> Result<Table> {
        let mut rows = rows.to_vec();
        if self.has(Fault::GathersInOrder) {
            rows.sort_unstable();
        }
        INNER.gather(x, &rows)
    }

    fn concat(&self, x: &mut Table, y: &Table) -> Result<()> {
        if self.has(Fault::JoinsTheWrongWayRound) {
            let mut joined = y.clone();
            INNER.concat(&mut joined, x)?;
            *x = joined;
            return Ok(());
        }
        INNER.concat(x, y)
    }

    fn read(&self, x: &Table) -> Result<Vec<f32>> {
        INNER.read(x)
    }

    fn write_kv(&self, cache: &mut Kept, layer: usize, plan: &Plan, keys: &Table, values: &Table) -> Result<()> {
        match self.0 {
            Some(Fault::WritesRotated) => {
                // Rotated before they are rounded: only the second rounding is left.
                let mut turned = keys.clone();
                INNER.rotate(&mut turned, &plan.inner)?;
                INNER.write_kv(
                    &mut cache.inner,
                    layer,
                    &self.replanned(plan, |row| row.position = 0).inner,
                    &turned,
                    values,
                )
            }
            Some(Fault::WritesTheFirstRow) => {
                let plan = self.planned(&plan.rope, plan.rows[..1].to_vec(), plan.tables.clone());
                INNER.write_kv(&mut cache.inner, layer, &plan.inner, keys, values)
            }
            Some(Fault::WritesOtherLayers) => (0..cache.shape.layers)
                .try_for_each(|layer| INNER.write_kv(&mut cache.inner, layer, &plan.inner, keys, values)),
            _ => INNER.write_kv(&mut cache.inner, layer, &plan.inner, keys, values),
        }
    }

    fn load_kv(&self, cache: &mut Kept, rope: &Rope, layers: &[usize], placed: &[Placement<'_>]) -> Result<()> {
        let mut placed = placed.to_vec();
        let mut layers = layers.to_vec();
        match self.0 {
            Some(Fault::LoadsTheFirstPlacement) => placed.truncate(1),
            Some(Fault::LoadsAtTheSlot) => placed.iter_mut().for_each(|placement| placement.position = placement.slot),
            Some(Fault::LoadsAllLayers) => layers = (0..cache.shape.layers).collect(),
            Some(Fault::LoadsOnlyTheFirstLayer) => layers.retain(|layer| *layer == 0),
            _ => {}
        }
        INNER.load_kv(&mut cache.inner, rope, &layers, &placed)
    }

    fn attend(&self, cache: &Kept, attention: Attention, plan: &Plan, queries: &Table) -> Result<Table> {
        let seen = self.seen(plan);
        let columns = read(queries).len() / plan.rows.len();
        let attended = match self.0 {
            Some(Fault::AttendsUnscaled) => INNER.attend(&cache.inner, attention.scale(1.0), &seen.inner, queries),
            Some(Fault::AttendsWithAScaleOfItsOwn) => {
                let scale = 1.0 / (cache.shape.head_dim as f32).sqrt();
                INNER.attend(&cache.inner, attention.scale(scale), &seen.inner, queries)
            }
            Some(Fault::AttendsUncapped) => INNER.attend(&cache.inner, attention.soft_cap(None), &seen.inner, queries),
            Some(Fault::CapsBeforeTheScale) => {
                // scale · c · tanh(product / c) is c' · tanh(score / c') for c' = scale · c.
                let cap = attention.soft_cap.map(|cap| cap * attention.scale);
                INNER.attend(&cache.inner, attention.soft_cap(cap), &seen.inner, queries)
            }
            Some(Fault::AttendsFirstLayer) => {
                let mut first = attention;
                first.layer = 0;
                INNER.attend(&cache.inner, first, &seen.inner, queries)
            }
            Some(Fault::GroupsHeadsInTurn) => {
                // Query head h belongs to key head h modulo the number of key heads.
                let KvShape { kv_heads, head_dim, .. } = cache.shape;
                let group = columns / (kv_heads * head_dim);
                let numbers = read(queries);
                let place = |index: usize| {
                    let (row, head, at) = (index / columns, index % columns / head_dim, index % head_dim);
                    row * columns + (head % kv_heads * group + head / kv_heads) * head_dim + at
                };
                let mut grouped = vec![0.0; numbers.len()];
                numbers.iter().enumerate().for_each(|(index, number)| grouped[place(index)] = *number);
                let attended = INNER.attend(&cache.inner, attention, &seen.inner, &INNER.upload(columns, &grouped)?)?;
                let attended = read(&attended);
                Ok(map(queries, columns, |index, _| attended[place(index)]))
            }
            _ => INNER.attend(&cache.inner, attention, &seen.inner, queries),
        }?;
        Ok(match self.0 {
            Some(Fault::OverflowsInAttention) if read(queries).iter().any(|query| query.abs() > 100.0) => {
                map(&attended, columns, |_, _| f32::NAN)
            }
            Some(Fault::AttentionDependsOnRows) => off_in_company(attended, plan.rows.len()),
            _ => attended,
        })
    }

    fn attention_mass(
        &self,
        cache: &Kept,
        attention: Attention,
        plan: &Plan,
        rows: Range<usize>,
        queries: &Table,
        mass: &mut Table,
    ) -> Result<()> {
        let slots = read(mass).len();
        match self.0 {
            Some(Fault::MassReplaces) => *mass = map(mass, slots, |_, _| 0.0),
            Some(Fault::MassOfAllRows) => {
                let context = plan.rows[rows.start].context;
                let first = plan.rows.iter().position(|row| row.context == context).unwrap();
                let last = plan.rows.iter().rposition(|row| row.context == context).unwrap();
                return INNER.attention_mass(&cache.inner, attention, &plan.inner, first..last + 1, queries, mass);
            }
            Some(Fault::MassDependsOnRows) if plan.rows.len() > rows.len() => {
                *mass = map(mass, slots, |_, mass| mass + 1e-6);
            }
            _ => {}
        }
        let before = read(mass);
        let attention = if self.has(Fault::MassIsUncapped) { attention.soft_cap(None) } else { attention };
        INNER.attention_mass(&cache.inner, attention, &plan.inner, rows, queries, mass)?;
        if self.has(Fault::MassOfOneHead) {
            let heads = (read(queries).len() / plan.rows.len() / cache.shape.head_dim) as f32;
            *mass = map(mass, slots, |slot, mass| before[slot] + (mass - before[slot]) / heads);
        }
        Ok(())
    }

    fn key_distance(&self, cache: &Kept, layer: usize, plan: &Plan, keys: &Table) -> Result<Table> {
        let distance = INNER.key_distance(&cache.inner, layer, &plan.inner, keys)?;
        Ok(match self.0 {
            Some(Fault::DistanceIsNotSquared) => map(&distance, 1, |_, square| square.sqrt()),
            Some(Fault::DistanceIsNeverZero) => map(&distance, 1, |_, square| square + 0.01),
            Some(Fault::DistanceDependsOnRows) => off_in_company(distance, plan.rows.len()),
            _ => distance,
        })
    }

    fn read_as(&self, x: &Table, dtype: Dtype) -> Result<Vec<u8>> {
        let other = if self.has(Fault::ReadsAsWhatItIsNot) && dtype == Dtype::F16 { Dtype::Bf16 } else { dtype };
        INNER.read_as(x, other)
    }

    fn add_row_distance(&self, x: &Table, y: &Table, factor: f32, sums: &mut Table) -> Result<()> {
        let before = read(sums);
        let factor = if self.has(Fault::RowDistanceForgetsTheFactor) { 1.0 } else { factor };
        INNER.add_row_distance(x, y, factor, sums)?;
        match self.0 {
            Some(Fault::RowDistanceIsNotSquared) => {
                *sums = map(sums, 1, |row, sum| before[row] + (sum - before[row]).max(0.0).sqrt());
            }
            Some(Fault::RowDistanceReplaces) => *sums = map(sums, 1, |row, sum| sum - before[row]),
            _ => {}
        }
        Ok(())
    }

    fn heaviest(&self, mass: &Table, slots: &[u32], factors: Option<&[f32]>, count: usize) -> Result<Vec<usize>> {
        let mass = read(mass);
        let at = |slot: i64| usize::try_from(slot).ok().and_then(|slot| mass.get(slot)).copied().unwrap_or(0.0);
        let weight = |(index, &slot): (usize, &u32)| {
            let slot = i64::from(slot);
            let neighbours = if self.has(Fault::ChoosesWithoutNeighbours) { 0.0 } else { 0.5 };
            let factor = factors.filter(|_| !self.has(Fault::ChoosesWithoutFactors)).map_or(1.0, |all| all[index]);
            (index, (at(slot) + neighbours * (at(slot - 1) + at(slot + 1))) * factor)
        };
        let mut ranked: Vec<(usize, f32)> = slots.iter().enumerate().map(weight).collect();
        if !self.has(Fault::ChoosesWhatHasNoWeight) {
            ranked.retain(|(_, weight)| *weight > 0.0);
        }
        ranked.sort_by(|a, b| {
            let earlier = if self.has(Fault::ChoosesTheLaterOfEquals) { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) };
            b.1.total_cmp(&a.1).then(earlier)
        });
        ranked.truncate(count);
        if !self.has(Fault::ChoosesByWeight) {
            ranked.sort_unstable_by_key(|(index, _)| *index);
        }
        Ok(ranked.into_iter().map(|(index, _)| index).collect())
    }

    fn qkv(&self, x: &Table, w: &AttentionWeights<Self>, plan: &Plan) -> Result<Qkv<Table>> {
        let norms = !self.has(Fault::FusedQkvForgetsNorms);
        let project = |linear: &amem_core::transformer::Linear<Self>, norm: Option<&Vec<f64>>| {
            let y = self.linear(x, &linear.weight, linear.bias.as_ref())?;
            match norm.filter(|_| norms) {
                Some(norm) if self.has(Fault::FusedQkvNormsHeads) => {
                    self.rms_norm(&y, &norm[..plan.rope.inverse_frequencies.len() * 2].to_vec(), w.norm_eps)
                }
                Some(norm) => self.rms_norm(&y, norm, w.norm_eps),
                None => Ok(y),
            }
        };
        let mut queries = project(&w.query, w.query_norm.as_ref())?;
        let (mut keys, values) = (project(&w.key, w.key_norm.as_ref())?, project(&w.value, None)?);
        if !self.has(Fault::FusedQkvForgetsRotation) {
            self.rotate(&mut queries, plan)?;
        }
        if self.has(Fault::FusedQkvDependsOnRows) {
            keys = off_in_company(keys, plan.rows.len());
        }
        Ok(Qkv { queries, keys, values })
    }

    fn add_rms_norm(&self, x: &mut Table, y: &Table, weight: &Vec<f64>, eps: f32) -> Result<Table> {
        let before = x.clone();
        self.add(x, y)?;
        let normed = self.rms_norm(if self.has(Fault::FusedNormOfTheAddend) { y } else { x }, weight, eps)?;
        if self.has(Fault::FusedNormForgetsTheSum) {
            *x = before;
        }
        let rows = read(&normed).len() / weight.len();
        Ok(if self.has(Fault::FusedNormDependsOnRows) { off_in_company(normed, rows) } else { normed })
    }

    fn add_layer_norm(&self, x: &mut Table, y: &Table, norm: &LayerNorm<Self>) -> Result<Table> {
        let before = x.clone();
        self.add(x, y)?;
        let normed = self.layer_norm(if self.has(Fault::FusedLayerNormOfTheAddend) { y } else { x }, norm)?;
        if self.has(Fault::FusedLayerNormForgetsTheSum) {
            *x = before;
        }
        let rows = read(&normed).len() / norm.weight.len();
        Ok(if self.has(Fault::FusedLayerNormDependsOnRows) { off_in_company(normed, rows) } else { normed })
    }

    fn mlp(&self, x: &Table, w: &MlpWeights<Self>) -> Result<Table> {
        let [gate, up] = [&w.gate, &w.up].map(|linear| self.linear(x, &linear.weight, linear.bias.as_ref()));
        let (gate, up) = if self.has(Fault::FusedMlpSwapsGateAndUp) { (up?, gate?) } else { (gate?, up?) };
        let silu = w.activation == Activation::Silu || self.has(Fault::FusedMlpForgetsTheActivation);
        let gated = if silu { self.silu_mul(&gate, &up)? } else { self.gelu_mul(&gate, &up)? };
        let y = self.linear(&gated, &w.down.weight, w.down.bias.as_ref())?;
        let one = INNER.linear(&INNER.gather(&gate, &[0])?, &w.down.weight, None)?;
        let rows = read(&y).len() / read(&one).len();
        Ok(if self.has(Fault::FusedMlpDependsOnRows) { off_in_company(y, rows) } else { y })
    }

    fn experts(&self, x: &Table, w: &ExpertWeights<Self>) -> Result<Table> {
        let scores = read(&self.linear(x, &w.router, None)?);
        let of_experts: Vec<Table> = w.experts.iter().map(|mlp| self.mlp(x, mlp)).collect::<Result<_>>()?;
        let mut sums = Vec::new();
        for (row, scores) in scores.chunks_exact(w.experts.len()).enumerate() {
            let mut ranked: Vec<usize> = (0..scores.len()).collect();
            ranked.sort_by(|&a, &b| {
                let first = if self.has(Fault::ExpertsAreTheLastOfEquals) { b.cmp(&a) } else { a.cmp(&b) };
                scores[b].total_cmp(&scores[a]).then(first)
            });
            let share = |expert: &usize| (scores[*expert] - scores[ranked[0]]).exp();
            let among_chosen = w.norm_top_k || self.has(Fault::ExpertsCountWithoutTheOthers);
            let counted = if among_chosen { w.top_k } else { scores.len() };
            let total: f32 = ranked[..counted].iter().map(share).sum();
            let mut sum = Vec::new();
            for expert in &ranked[..w.top_k] {
                let share = match self.has(Fault::ExpertsCountAlike) {
                    true => 1.0 / w.top_k as f32,
                    false => share(expert) / total,
                };
                let made = read(&INNER.gather(&of_experts[*expert], &[row])?);
                sum.resize(made.len(), 0.0);
                sum.iter_mut().zip(made).for_each(|(sum, made)| *sum += share * made);
            }
            sums.extend(sum);
        }
        let rows = scores.len() / w.experts.len();
        let y = INNER.upload(sums.len() / rows.max(1), &sums)?;
        Ok(if self.has(Fault::ExpertsDependOnRows) { off_in_company(y, rows) } else { y })
    }
}

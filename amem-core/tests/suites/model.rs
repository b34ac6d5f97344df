//! A good model with one fault at a time.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use amem_core::testing::Reference;
use amem_core::transformer::Transformer;
use amem_core::{
    AppendOptions, Budget, Chat, Context, Error, HostKv, KvChunk, Model, ModelInfo, Piece, PrefillText, Prefilling,
    Progress, Repair, Reservation, Result, Sampler, Sampling, Step, Token, TokenMask, Usage, testing,
};

use super::{each_is_caught, tiny};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    PrefillsInReverse,
    NamesChunksOfAllOwnersAlike,
    ForgetsTheModelOfChunks,
    MeasuresAlways,
    MeasuresNever,
    MeasuringMovesKv,
    KvDependsOnCompany,
    SensitivityDependsOnCompany,
    LosesTextsInRuns,
    PrefillsBehindNothing,
    PrefillsUncounted,
    PrefillsEmptyTexts,
    PrefillsLongTexts,
    PrefillsUnknownTokens,
    RefusesTextsThatFit,
    RefusesNoTexts,
    OpensMoreThanAContext,
    ReservesMoreThanAContext,
    ReservesNothingForForks,
    ReservesWhatThereIs,
    PutsAChunkInOnce,
    PutsFreshPiecesFirst,
    CountsCachedAsFresh,
    HasLogitsAfterCachedPieces,
    TruncatesLogitsOnly,
    TruncatesAllButLogits,
    TruncatesLogitsForNothing,
    TruncatedRowsLeaveATrace,
    LogitsDependOnHowTokensCame,
    RepairsNothing,
    RepairsNoFirstRows,
    RepairsExactRows,
    RepairsOneMore,
    TakesAnyBudget,
    TakesLongPrompts,
    TakesUnknownTokens,
    TakesOtherShapes,
    TakesOtherModels,
    TakesDamagedKv,
    DamageSpreads,
    RefusedCallsLoseLogits,
    RefusedCallsLeaveTokens,
    LogitsDependOnCompany,
    LogitsDependOnRowsPerStep,
    UsageDependsOnRowsPerStep,
    AnswersTheFirstStepOnly,
    IsNeverPending,
    IsAlwaysPending,
    ForksLoseLogits,
    ForksWriteThrough,
    ForksChangeWithTheirParents,
    ForksWhatIsNotComplete,
    AppendsToWhatIsNotComplete,
    GivesUpNothing,
    GivesUpAllButLogits,
    IsBrokenByGivingUp,
    HoldsNoMemory,
    ScoresOneRow,
    ScoresUnasked,
    ScoresRowsOfOtherPieces,
    DrawsWhatIsNotAllowed,
    IsFullForWhateverReason,
    DrawsAfterAnEarlierToken,
    DrawsTheUnlikely,
    ContextsShareState,
}

const FAULTS: [(Fault, &str); 65] = [
    (Fault::PrefillsInReverse, "chunks come in the order of their texts"),
    (Fault::NamesChunksOfAllOwnersAlike, "a chunk has the id that the model says"),
    (Fault::ForgetsTheModelOfChunks, "a chunk knows the model that computed it"),
    (Fault::MeasuresAlways, "what was not to be measured is not"),
    (Fault::MeasuresNever, "what was to be measured is"),
    (Fault::MeasuringMovesKv, "measuring changes no KV"),
    (Fault::KvDependsOnCompany, "what is computed beside a text does not touch its KV"),
    (Fault::SensitivityDependsOnCompany, "nor its sensitivity"),
    (Fault::LosesTextsInRuns, "runs cost what prefilling at once does"),
    (Fault::PrefillsBehindNothing, "a chunk behind its prefix is exact as it is"),
    (Fault::PrefillsUncounted, "usage counts the tokens of the texts"),
    (Fault::PrefillsEmptyTexts, "a text without tokens is refused"),
    (Fault::PrefillsLongTexts, "one token more is refused"),
    (Fault::PrefillsUnknownTokens, "a token that is not in the vocabulary is refused"),
    (Fault::RefusesTextsThatFit, "a text may fill a context behind the prefix"),
    (Fault::RefusesNoTexts, "no texts may be prefilled"),
    (Fault::OpensMoreThanAContext, "no context is opened for more than one may hold"),
    (Fault::ReservesMoreThanAContext, "no room is reserved for more than a context may hold"),
    (Fault::ReservesNothingForForks, "forks count where room is reserved for them"),
    (Fault::ReservesWhatThereIs, "a reservation that has no room takes none"),
    (Fault::PutsAChunkInOnce, "repeated chunks too"),
    (Fault::PutsFreshPiecesFirst, "tokens stand in the order of their pieces"),
    (Fault::CountsCachedAsFresh, "usage counts cached and fresh tokens"),
    (Fault::HasLogitsAfterCachedPieces, "behind a cached piece there are no logits"),
    (Fault::TruncatesLogitsOnly, "with tokens, the logits are cut off"),
    (Fault::TruncatesAllButLogits, "with tokens, the logits are cut off"),
    (Fault::TruncatesLogitsForNothing, "cutting nothing off changes nothing"),
    (Fault::TruncatedRowsLeaveATrace, "what was cut off leaves no trace"),
    (Fault::LogitsDependOnHowTokensCame, "token by token comes to the same as all at once"),
    (Fault::RepairsNothing, "are a cold prompt"),
    (Fault::RepairsExactRows, "exact rows are never repaired"),
    (Fault::RepairsOneMore, "as many rows are repaired as were allowed"),
    (Fault::RepairsNoFirstRows, "repairs the rows that it names"),
    (Fault::TakesAnyBudget, "makes no sense"),
    (Fault::TakesLongPrompts, "more than a context holds is refused"),
    (Fault::TakesUnknownTokens, "a token that is not in the vocabulary is refused"),
    (Fault::TakesOtherShapes, "a chunk of another shape is refused"),
    (Fault::TakesOtherModels, "a chunk of another model is refused"),
    (Fault::TakesDamagedKv, "a chunk that cannot be read is refused"),
    (Fault::DamageSpreads, "it is not damaged"),
    (Fault::RefusedCallsLoseLogits, "a refused call leaves the logits"),
    (Fault::RefusedCallsLeaveTokens, "a refused call adds no tokens"),
    (Fault::LogitsDependOnCompany, "is the same alone and with others"),
    (Fault::LogitsDependOnRowsPerStep, "is the same alone and with others"),
    (Fault::UsageDependsOnRowsPerStep, "is the same alone and with others"),
    (Fault::AnswersTheFirstStepOnly, "each step has a result"),
    (Fault::IsNeverPending, "what is not computed is pending"),
    (Fault::IsAlwaysPending, "what is computed is not pending"),
    (Fault::ForksLoseLogits, "a fork begins with the same logits"),
    (Fault::ForksWriteThrough, "the forked context knows nothing of it"),
    (Fault::ForksChangeWithTheirParents, "a fork knows nothing of what it was forked from"),
    (Fault::ForksWhatIsNotComplete, "a context that is not complete cannot be forked"),
    (Fault::AppendsToWhatIsNotComplete, "what was appended has to be computed first"),
    (Fault::GivesUpNothing, "nothing stays of what was not computed"),
    (Fault::GivesUpAllButLogits, "what was given up has no logits"),
    (Fault::IsBrokenByGivingUp, "can go on"),
    (Fault::HoldsNoMemory, "a context that holds tokens holds memory"),
    (Fault::ScoresOneRow, "the logits of the last five rows"),
    (Fault::ScoresUnasked, "no logits where none are asked for"),
    (Fault::ScoresRowsOfOtherPieces, "no more logits than the last piece has tokens"),
    (Fault::DrawsWhatIsNotAllowed, "only tokens that are allowed are drawn"),
    (Fault::IsFullForWhateverReason, "says that it would have room if contexts ended"),
    (Fault::DrawsAfterAnEarlierToken, "a token follows the last one"),
    (Fault::DrawsTheUnlikely, "as a sampler draws it from the logits"),
    (Fault::ContextsShareState, ""),
];

#[test]
fn each_fault_of_a_model_is_caught() {
    testing::model(|| Faulty::new(None));
    each_is_caught(&FAULTS, |fault| testing::model(|| Faulty::new(Some(fault))));
}

/// A good model, but for one fault.
struct Faulty {
    inner: Arc<Transformer<Reference>>,
    fault: Option<Fault>,
    opened: Arc<AtomicUsize>,
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Self {
        Self { inner: Arc::new(tiny::model()), fault, opened: Arc::default() }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

/// The same chunk with a bit of its KV changed.
fn moved(chunk: &KvChunk) -> KvChunk {
    let mut bytes = chunk.to_bytes().unwrap();
    bytes[0] ^= 1;
    let data = HostKv::new(chunk.encoding(), chunk.shape().layers, bytes);
    chunk.clone().with_data(Arc::new(data)).unwrap()
}

/// The same chunk, without the model that computed it.
fn of_nobody(chunk: &KvChunk) -> KvChunk {
    let (tokens, data) = (Arc::clone(chunk.tokens()), Arc::clone(chunk.data()));
    let bare = KvChunk::new(chunk.id(), chunk.prefix(), *chunk.shape(), tokens, data).unwrap();
    chunk.sensitivity().map_or(bare.clone(), |found| bare.with_sensitivity(Arc::clone(found)).unwrap())
}

impl Model for Faulty {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn chat(&self) -> &dyn Chat {
        self.inner.chat()
    }

    fn sampling(&self) -> Sampling {
        self.inner.sampling()
    }

    fn sample(&self, context: &dyn Context, sampler: &mut Sampler, allowed: Option<&TokenMask>) -> Result<Token> {
        match self.fault {
            Some(Fault::DrawsWhatIsNotAllowed) => sampler.pick(context.logits(), context.tokens()),
            Some(Fault::DrawsAfterAnEarlierToken) => {
                sampler.pick_among(&context.logits()[..self.info().vocabulary], context.tokens(), allowed)
            }
            Some(Fault::DrawsTheUnlikely) => {
                let turned: Vec<f32> = context.logits().iter().map(|score| -score).collect();
                sampler.pick_among(&turned, context.tokens(), allowed)
            }
            _ => self.inner.sample(context, sampler, allowed),
        }
    }

    fn prefill(&self, prefix: &[Token], texts: &[PrefillText], measure: bool) -> Result<(Vec<KvChunk>, Usage)> {
        let (mut texts, room) = (texts.to_vec(), self.info().context - prefix.len());
        for text in &mut texts {
            match self.fault {
                Some(Fault::NamesChunksOfAllOwnersAlike) => {
                    text.id = self.info().chunk_id("", &amem_core::PrefixId::of(prefix), &text.tokens);
                }
                Some(Fault::PrefillsEmptyTexts) if text.tokens.is_empty() => text.tokens = [0].into(),
                Some(Fault::PrefillsLongTexts) => text.tokens = text.tokens.iter().copied().take(room).collect(),
                Some(Fault::PrefillsUnknownTokens) => {
                    let known = |token: &Token| token % self.info().vocabulary as Token;
                    text.tokens = text.tokens.iter().map(known).collect();
                }
                Some(Fault::RefusesTextsThatFit) if text.tokens.len() == room => {
                    return Err(Error::TooLong { what: "memory", tokens: room, limit: room });
                }
                _ => {}
            }
        }
        if texts.is_empty() && self.has(Fault::RefusesNoTexts) {
            return Err(Error::Empty { what: "texts" });
        }
        let fit = texts.iter().all(|text| text.tokens.len() <= room);
        let behind = if fit && self.has(Fault::PrefillsBehindNothing) { &[] } else { prefix };
        let measured = (measure || self.has(Fault::MeasuresAlways)) && !self.has(Fault::MeasuresNever);
        let (mut chunks, mut usage) = self.inner.prefill(behind, &texts, measured)?;
        if measure && !measured {
            usage.work_prefilling *= 2;
        }
        for chunk in &mut chunks {
            match self.fault {
                Some(Fault::ForgetsTheModelOfChunks) => *chunk = of_nobody(chunk),
                Some(Fault::MeasuringMovesKv) if measure => *chunk = moved(chunk),
                Some(Fault::KvDependsOnCompany) if texts.len() > 1 => *chunk = moved(chunk),
                Some(Fault::SensitivityDependsOnCompany) if measure && texts.len() > 1 => {
                    let otherwise = vec![0.5; chunk.tokens().len()];
                    *chunk = chunk.clone().with_sensitivity(otherwise.into()).unwrap();
                }
                Some(Fault::PrefillsBehindNothing) => {
                    let (tokens, data) = (Arc::clone(chunk.tokens()), Arc::clone(chunk.data()));
                    let of = amem_core::PrefixId::of(prefix);
                    let labelled = KvChunk::new(chunk.id(), of, *chunk.shape(), tokens, data)?;
                    let labelled = labelled.with_model(self.info().fingerprint);
                    *chunk = match chunk.sensitivity() {
                        Some(found) => labelled.with_sensitivity(Arc::clone(found))?,
                        None => labelled,
                    };
                }
                _ => {}
            }
        }
        match self.fault {
            Some(Fault::PrefillsInReverse) => chunks.reverse(),
            Some(Fault::PrefillsUncounted) => usage.prefilled = 0,
            _ => {}
        }
        Ok((chunks, usage))
    }

    fn begin_prefill<'m>(
        &'m self,
        prefix: &[Token],
        mut texts: Vec<PrefillText>,
        measure: bool,
    ) -> Result<Box<dyn Prefilling + 'm>> {
        if self.has(Fault::LosesTextsInRuns) {
            texts.truncate(1);
        }
        self.inner.begin_prefill(prefix, texts, measure)
    }

    fn open(&self, tokens: usize) -> Result<Box<dyn Context>> {
        let tokens = if self.has(Fault::OpensMoreThanAContext) { tokens.min(self.info().context) } else { tokens };
        self.opened.fetch_add(1, SeqCst);
        let inner = self.inner.open(tokens).map_err(|error| match error {
            Error::KvCacheFull { .. } if self.has(Fault::IsFullForWhateverReason) => Error::Model("no room".into()),
            error => error,
        })?;
        Ok(Box::new(FaultyContext {
            inner,
            model: Arc::clone(&self.inner),
            fault: self.fault,
            tokens: Vec::new(),
            logits: Vec::new(),
            appended: 0,
            cached_last: false,
            traces: 0,
            repairs_all: false,
            computed: Arc::default(),
            is_fork: false,
            usable: true,
        }))
    }

    fn advance(&self, steps: &mut [Step<'_>]) -> Vec<Result<Progress>> {
        let (company, opened) = (steps.len(), self.opened.load(SeqCst));
        let mut of_steps: Vec<(&mut FaultyContext, usize)> = Vec::new();
        for step in steps {
            let context: &mut dyn Any = &mut *step.context;
            of_steps.push((context.downcast_mut::<FaultyContext>().unwrap(), step.max_rows));
        }
        let mut inner: Vec<Step<'_>> =
            of_steps.iter_mut().map(|(context, rows)| Step { context: &mut *context.inner, max_rows: *rows }).collect();
        let mut results = self.inner.advance(&mut inner);
        for ((context, rows), result) in of_steps.iter_mut().zip(&mut results) {
            context.look();
            let odd = match self.fault {
                Some(Fault::LogitsDependOnCompany) => company > 3,
                Some(Fault::LogitsDependOnRowsPerStep) => *rows == 3 && company > 1,
                Some(Fault::LogitsDependOnHowTokensCame) => context.appended == 1 && context.tokens.len() == 12,
                Some(Fault::TruncatedRowsLeaveATrace) => context.traces > 0,
                Some(Fault::ForksWriteThrough) => !context.is_fork && context.computed[1].load(SeqCst) > 0,
                Some(Fault::ForksChangeWithTheirParents) => context.is_fork && context.computed[0].load(SeqCst) > 0,
                Some(Fault::ContextsShareState) => opened.is_multiple_of(3),
                _ => false,
            };
            if let (true, Some(first)) = (odd, context.logits.first_mut()) {
                *first += 0.5;
            }
            if self.has(Fault::HasLogitsAfterCachedPieces) && context.cached_last {
                context.logits = vec![0.0; self.info().vocabulary];
            }
            if let Ok(Progress::Done(usage)) = result {
                context.computed[usize::from(context.is_fork)].fetch_add(1, SeqCst);
                match self.fault {
                    Some(Fault::CountsCachedAsFresh) => {
                        usage.prefilled += usage.cached;
                        usage.cached = 0;
                    }
                    Some(Fault::RepairsExactRows) if context.repairs_all => usage.repaired = usage.cached,
                    Some(Fault::UsageDependsOnRowsPerStep) if *rows == 3 => usage.work_choosing += 1,
                    _ => {}
                }
            }
        }
        if self.has(Fault::DamageSpreads) && results.iter().any(Result::is_err) {
            results.iter_mut().for_each(|result| *result = Err(Error::Model("somebody's chunk is damaged".into())));
        }
        if self.has(Fault::AnswersTheFirstStepOnly) {
            results.truncate(1);
        }
        results
    }
}

struct FaultyContext {
    inner: Box<dyn Context>,
    model: Arc<Transformer<Reference>>,
    fault: Option<Fault>,
    /// What is shown of the inner one.
    tokens: Vec<Token>,
    logits: Vec<f32>,
    /// Tokens of the last append, and whether its last piece was cached.
    appended: usize,
    cached_last: bool,
    traces: usize,
    repairs_all: bool,
    /// How often something was computed since the last fork, in what was forked and in forks of it.
    computed: Arc<[AtomicUsize; 2]>,
    is_fork: bool,
    usable: bool,
}

impl FaultyContext {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Shows what the inner one has now.
    fn look(&mut self) {
        self.tokens = self.inner.tokens().to_vec();
        if !self.has(Fault::GivesUpAllButLogits) || self.inner.pending() == 0 {
            self.logits = self.inner.logits().to_vec();
        }
    }

    /// The pieces and options as the inner one gets them.
    fn taken(&self, pieces: &[Piece], options: &AppendOptions) -> (Vec<Piece>, AppendOptions) {
        let (mut pieces, mut options) = (pieces.to_vec(), options.clone());
        let (info, mut seen) = (self.model.info(), Vec::new());
        match self.fault {
            Some(Fault::PutsAChunkInOnce) => pieces.retain(|piece| match piece {
                Piece::Cached(chunk) if seen.contains(&chunk.id()) => false,
                Piece::Cached(chunk) => {
                    seen.push(chunk.id());
                    true
                }
                Piece::Fresh(_) => true,
            }),
            Some(Fault::PutsFreshPiecesFirst) => pieces.sort_by_key(|piece| matches!(piece, Piece::Cached(_))),
            Some(Fault::RepairsNothing) if options.repair == Repair::All => options.repair = Repair::None,
            Some(Fault::RepairsNoFirstRows) if matches!(options.repair, Repair::FirstRows(_)) => {
                options.repair = Repair::None;
            }
            Some(Fault::RepairsOneMore) => {
                if let Repair::Weighted { budget: Budget::Rows(rows), .. } = &mut options.repair {
                    *rows += 1;
                }
            }
            Some(Fault::TakesAnyBudget) => {
                if let Repair::Weighted { budget: Budget::Ratio(_) | Budget::Mass(_), .. } = options.repair {
                    options.repair = Repair::None;
                }
            }
            Some(Fault::TakesLongPrompts) => {
                let mut room = info.context - self.inner.tokens().len();
                pieces.retain(|piece| {
                    let fits = piece.tokens().len() <= room;
                    room = room.saturating_sub(piece.tokens().len());
                    fits
                });
            }
            Some(Fault::TakesUnknownTokens) => {
                pieces.retain(|piece| piece.tokens().iter().all(|token| (*token as usize) < info.vocabulary));
            }
            Some(Fault::TakesOtherShapes) => {
                pieces.retain(|piece| !matches!(piece, Piece::Cached(chunk) if *chunk.shape() != info.shape));
            }
            Some(Fault::TakesOtherModels) => pieces.iter_mut().for_each(|piece| {
                if let Piece::Cached(chunk) = piece {
                    *chunk = chunk.clone().with_model(info.fingerprint);
                }
            }),
            Some(Fault::TakesDamagedKv) => {
                pieces.retain(|piece| !matches!(piece, Piece::Cached(chunk) if chunk.to_bytes().is_err()));
            }
            Some(Fault::ScoresOneRow) => options.logits = options.logits.min(1),
            Some(Fault::ScoresUnasked) => options.logits = options.logits.max(1),
            Some(Fault::ScoresRowsOfOtherPieces) if options.logits > 1 => {
                let all: Vec<Token> = pieces.iter().flat_map(|piece| piece.tokens()).copied().collect();
                pieces = vec![Piece::Fresh(all.into())];
            }
            _ => {}
        }
        (pieces, options)
    }
}

impl Context for FaultyContext {
    fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    fn append(&mut self, pieces: &[Piece], options: &AppendOptions) -> Result<()> {
        let (taken, options) = self.taken(pieces, options);
        let appended = self.inner.append(&taken, &options);
        match appended {
            Ok(()) => {
                self.appended = taken.iter().map(|piece| piece.tokens().len()).sum();
                self.repairs_all = options.repair == Repair::All;
                self.cached_last = matches!(taken.last(), Some(Piece::Cached(_)));
                self.look();
            }
            Err(_) if self.has(Fault::RefusedCallsLoseLogits) => self.logits.clear(),
            Err(_) if self.has(Fault::RefusedCallsLeaveTokens) => self.tokens.extend(pieces[0].tokens()),
            Err(_) if self.has(Fault::AppendsToWhatIsNotComplete) && self.inner.pending() > 0 => return Ok(()),
            Err(_) => {}
        }
        appended
    }

    fn pending(&self) -> usize {
        match self.fault {
            Some(Fault::IsNeverPending) => 0,
            Some(Fault::IsAlwaysPending) => 1,
            _ => self.inner.pending(),
        }
    }

    fn reserve(&mut self, room: Reservation) -> Result<()> {
        let most = self.model.info().context;
        match self.fault {
            Some(Fault::ReservesMoreThanAContext) => {
                self.inner.reserve(Reservation { tokens: room.tokens.min(most), ..room })
            }
            Some(Fault::ReservesNothingForForks) => self.inner.reserve(Reservation::new(room.tokens)),
            Some(Fault::ReservesWhatThereIs) => self.inner.reserve(room).inspect_err(|_| {
                let _ = self.inner.reserve(Reservation::new(room.tokens));
            }),
            _ => self.inner.reserve(room),
        }
    }

    fn release(&mut self) {
        self.inner.release();
    }

    fn fork(&mut self) -> Result<Box<dyn Context>> {
        let inner = match self.inner.fork() {
            Err(_) if self.has(Fault::ForksWhatIsNotComplete) => self.model.open(0),
            forked => forked,
        }?;
        if !self.is_fork {
            self.computed.iter().for_each(|count| count.store(0, SeqCst));
        }
        let logits = if self.has(Fault::ForksLoseLogits) { Vec::new() } else { self.logits.clone() };
        Ok(Box::new(Self {
            inner,
            model: Arc::clone(&self.model),
            fault: self.fault,
            tokens: self.tokens.clone(),
            logits,
            computed: Arc::clone(&self.computed),
            is_fork: true,
            ..*self
        }))
    }

    fn truncate(&mut self, len: usize) {
        let (cut, incomplete) = (len < self.tokens.len(), self.inner.pending() > 0);
        let (tokens, logits) = (self.tokens.clone(), self.logits.clone());
        self.traces += usize::from(cut);
        self.inner.truncate(len);
        self.look();
        match self.fault {
            Some(Fault::TruncatesLogitsOnly) => self.tokens = tokens,
            Some(Fault::TruncatesAllButLogits) if !incomplete => self.logits = logits,
            Some(Fault::TruncatesLogitsForNothing) => self.logits.clear(),
            Some(Fault::GivesUpNothing) if incomplete => self.tokens = tokens,
            Some(Fault::GivesUpAllButLogits) if incomplete => self.logits = logits,
            Some(Fault::IsBrokenByGivingUp) if incomplete => self.usable = false,
            _ => {}
        }
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn bytes(&self) -> u64 {
        if self.has(Fault::HoldsNoMemory) { 0 } else { self.inner.bytes() }
    }

    fn is_usable(&self) -> bool {
        self.usable && self.inner.is_usable()
    }
}

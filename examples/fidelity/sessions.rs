//! What does it cost to keep memories in place over a session, and repair them a few rows at a time?
//!
//! The same questions are put to sessions that repair differently, one after another in the same order. The one that everything
//! is compared with computes all of its memories anew in each turn, as a cold prefill of its context would. A session goes its
//! own way: once it has answered otherwise, this answer stands before its later questions, and no later one need be the same.
//! So what is counted is what a user would see, and not each answer by itself.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amem_core::transformer::{Options, Transformer};
use amem_core::{Ask, Budget, Generation, Memory, Model, Repair, Result, SessionOptions, Usage};
use amem_cpu::Cpu;
use amem_demo::world::{Question, World};
use futures_lite::future::block_on;

use crate::LONGEST_ANSWER;
use crate::report::standard_error;

/// Memories that a question recalls at most, so that some are left for later ones.
const RECALLED: usize = 4;

/// A way of repairing the memories of a session: those that it begins with, and all of them in each turn.
struct Way {
    name: &'static str,
    opening: Repair,
    turn: Repair,
}

fn ways() -> [Way; 6] {
    let SessionOptions { opening_repair, turn_repair, .. } = SessionOptions::default();
    let sensitive = |ratio| Repair::Weighted { budget: Budget::Ratio(ratio), layers: 0..0 };
    let asked = |budget| Repair::Weighted { budget, layers: 1..2 };
    [
        Way { name: "none", opening: Repair::None, turn: Repair::None },
        Way { name: "10 % once, none in a turn", opening: opening_repair.clone(), turn: Repair::None },
        Way { name: "10 % once, 8 rows in a turn", opening: opening_repair, turn: turn_repair },
        Way { name: "10 % once, 16 rows in a turn", opening: sensitive(0.1), turn: asked(Budget::Rows(16)) },
        Way { name: "20 % once, 16 rows in a turn", opening: sensitive(0.2), turn: asked(Budget::Rows(16)) },
        Way { name: "all", opening: Repair::All, turn: Repair::All },
    ]
}

/// How much of a world stands in a session from the start.
#[derive(Clone, Copy)]
enum Standing {
    All,
    /// Half of its tokens. What a later question recalls of the rest is put before that question.
    Half,
}

/// An answer, and what it cost.
struct Answered {
    text: String,
    right: bool,
    usage: Usage,
}

/// What one way did, summed over answers.
#[derive(Clone, Default)]
struct Sums {
    sessions: usize,
    /// Sessions in which all answers were the same.
    same_throughout: usize,
    answers: usize,
    same: usize,
    right: usize,
    usage: Usage,
}

/// Asks the questions of all worlds in sessions, and prints a table for each [`Standing`].
pub(crate) fn compare(worlds: &[(World, Vec<Question>)], threads: usize) -> std::result::Result<(), Box<dyn Error>> {
    let model = Transformer::load(&amem_demo::files(), Cpu::with_threads(1)?, Options::default().name("demo"))?;
    let model = Arc::new(model);
    for (standing, name) in [
        (Standing::All, "All memories stand from the start:"),
        (Standing::Half, "Half of them do, the others come with the questions that recall them:"),
    ] {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<Sums>> {
            let mut sums = vec![Sums::default(); ways().len()];
            let memory = Memory::builder(model.clone()).system(amem_demo::SYSTEM).build()?;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((world, questions)) = worlds.get(index) else { return Ok(sums) };
                let answered = block_on(answers(&memory, &format!("world-{index}"), world, questions, standing))?;
                if let Some(reference) = answered.last() {
                    sums.iter_mut().zip(&answered).for_each(|(sums, answers)| sums.count(answers, reference));
                }
            }
        };
        let mut all = vec![Sums::default(); ways().len()];
        std::thread::scope(|scope| -> std::result::Result<(), Box<dyn Error>> {
            let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                let sums = thread.join().map_err(|_| "a thread panicked")??;
                all.iter_mut().zip(sums).for_each(|(all, sums)| all.add(&sums));
            }
            Ok(())
        })?;
        println!("{name}\n");
        print_table(&all, model.info().shape.layers);
    }
    println!(
        "same: the answers that are equal to those of the last row, ± their standard error, and the sessions in which"
    );
    println!(
        "all are; work: rows times layers computed to choose and to repair, of what prefilling the memories once takes;"
    );
    println!("all in percent");
    Ok(())
}

/// The answers of a session for each way of repairing.
async fn answers(
    memory: &Memory,
    namespace: &str,
    world: &World,
    questions: &[Question],
    standing: Standing,
) -> Result<Vec<Vec<Answered>>> {
    memory.remember_all(namespace, world.memories.iter().map(String::as_str)).await?;
    memory.prefill(namespace, |_, _| {}).await?;
    let mut tokens = 0;
    for text in &world.memories {
        tokens += memory.tokens(text)?.len();
    }
    let share = match standing {
        Standing::All => 1.0,
        Standing::Half => 0.5 * tokens as f32 / memory.model().info().context as f32,
    };
    let mut all = Vec::new();
    for Way { opening, turn, .. } in ways() {
        let options = SessionOptions::default().memory_share(share).opening_repair(opening).turn_repair(turn);
        let mut session = memory.session(namespace, options)?;
        let mut answered = Vec::new();
        for question in questions {
            let ask =
                Ask::new(&*question.text).k(RECALLED).generation(Generation::default().max_tokens(LONGEST_ANSWER));
            let answer = session.ask(ask).await?;
            answered.push(Answered { right: answer.text == question.answer, text: answer.text, usage: answer.usage });
        }
        all.push(answered);
    }
    memory.delete_namespace(namespace).await?;
    Ok(all)
}

fn print_table(sums: &[Sums], layers: usize) {
    println!("{:<29} {:>7} {:>5} {:>9} {:>7} {:>7}", "repair", "same", "±", "sessions", "right", "work");
    for (way, sums) in ways().iter().zip(sums) {
        let share = |count: usize, of: usize| 100.0 * count as f64 / of.max(1) as f64;
        let same = share(sums.same, sums.answers);
        let error = 100.0 * standard_error(same / 100.0, sums.answers);
        let Usage { cached, work_choosing, work_repairing, .. } = sums.usage;
        let work = 100.0 * (work_choosing + work_repairing) as f64 / (cached * layers).max(1) as f64;
        let (sessions, right) = (share(sums.same_throughout, sums.sessions), share(sums.right, sums.answers));
        println!("{:<29} {same:>7.2} {error:>5.2} {sessions:>9.2} {right:>7.2} {work:>7.1}", way.name);
    }
    println!();
}

impl Sums {
    fn count(&mut self, answers: &[Answered], reference: &[Answered]) {
        let same = answers.iter().zip(reference).filter(|(answer, reference)| answer.text == reference.text).count();
        self.add(&Self {
            sessions: 1,
            same_throughout: usize::from(same == answers.len()),
            answers: answers.len(),
            same,
            right: answers.iter().filter(|answer| answer.right).count(),
            usage: answers.iter().map(|answer| answer.usage).sum(),
        });
    }

    fn add(&mut self, more: &Self) {
        self.sessions += more.sessions;
        self.same_throughout += more.same_throughout;
        self.answers += more.answers;
        self.same += more.same;
        self.right += more.right;
        self.usage += more.usage;
    }
}

//! `amem import`: remembering what was exported, or what the reference system kept.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, IsTerminal, Read, stderr, stdin};
use std::path::{Path, PathBuf};

use amem_core::Namespace;
use amem_store::{Became, Imported, ImportedLine, ReferenceFile};
use indicatif::{ProgressBar, ProgressStyle};

use super::open::Records;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Lines of JSON, as `amem export` writes them; `-` reads standard input.
    #[arg(required_unless_present = "reference")]
    file: Option<PathBuf>,
    /// Remembers all of them here; without it, each where its line says.
    #[arg(long, conflicts_with = "reference", value_parser = super::open::namespace)]
    namespace: Option<Namespace>,
    /// The data directory of the reference system (~/amem_data), whose users become namespaces.
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    reference: Option<PathBuf>,
    /// A user of the reference system, for a log whose name holds only a hash of the user's. May be given several times.
    #[arg(long = "user", value_name = "NAME", requires = "reference", value_parser = super::open::namespace)]
    users: Vec<Namespace>,
    #[command(flatten)]
    records: Records,
}

impl Args {
    /// Says on standard error what was not imported, and fails if something could not be read.
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let imported = match (&self.reference, &self.file) {
            (Some(dir), _) => reference(&self.records, dir, &self.users).await?,
            (None, Some(file)) => lines(&self.records, file, self.namespace.as_ref()).await?,
            (None, None) => return Err("name a file to import".into()),
        };
        match imported.refused {
            0 => Ok(()),
            refused => Err(format!("{refused} lines could not be imported; the others were").into()),
        }
    }
}

async fn lines(records: &Records, file: &Path, namespace: Option<&Namespace>) -> Result<Imported, Box<dyn Error>> {
    let (input, bar): (Box<dyn Read>, ProgressBar) = if file == Path::new("-") {
        (Box::new(stdin().lock()), ProgressBar::hidden())
    } else {
        let input = File::open(file).map_err(|error| format!("cannot open {}: {error}", file.display()))?;
        let bar = match stderr().is_terminal() {
            true => ProgressBar::new(input.metadata()?.len()),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {eta} left")?;
        (Box::new(input), bar.with_style(style))
    };
    let ledger = records.open().await?;
    let told = |line: &ImportedLine| bar.suspend(|| tell(None, line));
    let imported = amem_store::import(ledger.as_ref(), namespace, BufReader::new(bar.wrap_read(input)), told).await?;
    bar.finish_and_clear();
    println!("{}", summary(&imported));
    Ok(imported)
}

async fn reference(records: &Records, dir: &Path, users: &[Namespace]) -> Result<Imported, Box<dyn Error>> {
    let ledger = records.open().await?;
    let files = amem_store::import_reference(ledger.as_ref(), dir, users, |file, line| tell(Some(file), line)).await?;
    let mut all = Imported::default();
    for file in files {
        match file {
            ReferenceFile::Read { file, namespace, named, imported } => {
                let hashed = file.starts_with("user_") && !named;
                let hint = if hashed { " (name its user with --user to import it under that name)" } else { "" };
                println!("{file} into {namespace}{hint}: {}", summary(&imported));
                all.refused += imported.refused;
            }
            ReferenceFile::PassedOver { file, reason } => eprintln!("{file}: not imported: {reason}"),
            _ => {}
        }
    }
    Ok(all)
}

/// Says what a line came to if it was not imported.
fn tell(file: Option<&str>, line: &ImportedLine) {
    let place = file.map_or_else(String::new, |file| format!("{file}, "));
    match &line.became {
        Became::Refused { reason } => eprintln!("{place}line {}: {reason}", line.line),
        Became::LeftOut { reason } => eprintln!("{place}line {}: left out: {reason}", line.line),
        _ => {}
    }
}

fn summary(imported: &Imported) -> String {
    let Imported { added, superseding, duplicates, changed, applied, left_out, refused, .. } = imported;
    let mut said = format!("{added} added, {superseding} superseding others, {duplicates} known");
    if *changed > 0 {
        said += &format!(", {changed} known and changed");
    }
    for (count, what) in [(applied, "changes"), (left_out, "left out"), (refused, "refused")] {
        if *count > 0 {
            said += &format!(", {count} {what}");
        }
    }
    said
}

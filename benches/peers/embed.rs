//! Embeds texts as often as it is told to, and says how long it took: amem's side of `encoders.py`.
//!
//! ```text
//! embed DIR TEXTS as-stored|int8|exact
//! ```
//!
//! TEXTS is a file with a list of lists of texts as JSON. For each number on standard input the list of that number is
//! embedded, and the seconds that it took and its tokens are printed. At the end comes the most memory that was held, in
//! KiB.

use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

use amem_core::transformer::{Encoder, EncoderOptions, Purpose};
use amem_cpu::{Arithmetic, Cpu, CpuOptions, WeightFormat};
use amem_store::ModelDir;
use futures_lite::future::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, texts, weights] = arguments.as_slice() else {
        return Err("give DIR TEXTS as-stored|int8|exact".into());
    };
    let options = match weights.as_str() {
        "int8" => CpuOptions::default().weights(WeightFormat::Int8),
        "exact" => CpuOptions::default().arithmetic(Arithmetic::Exact),
        _ => CpuOptions::default(),
    };
    let lists: Vec<Vec<String>> = serde_json::from_slice(&std::fs::read(texts)?)?;
    let begun = Instant::now();
    let encoder = Encoder::load(&ModelDir::open(dir)?, Cpu::open(options)?, EncoderOptions::default())?;
    println!("loaded {:.3}", begun.elapsed().as_secs_f64());
    for line in std::io::stdin().lock().lines() {
        let list = lists.get(line?.trim().parse::<usize>()?).ok_or("there is no such list")?;
        let texts: Vec<&str> = list.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let encoded = block_on(encoder.encode(&texts, Purpose::Plain))?;
        let seconds = begun.elapsed().as_secs_f64();
        println!("{seconds:.6} {}", encoded.iter().map(|encoded| encoded.tokens).sum::<usize>());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("peak {}", peak.unwrap_or("unknown").trim());
    Ok(())
}

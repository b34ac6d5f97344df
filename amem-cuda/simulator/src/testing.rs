//! Runs tests on the simulator.

use crate::counts::Counts;
use crate::ffi::client;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the process that a test's body runs in.
const INSIDE: &str = "AMEM_SIM";

/// Set by whoever wants the tests to use the device that is there.
const DEVICE: &str = "AMEM_CUDA_DEVICE";

/// Which files there are of CUDA.
const NAMES: &str = "AMEM_SIM_NAMES";

/// They are, if nothing is said: those of a driver and of two versions of cuBLASLt, with and without versions.
const ALL_NAMES: &str = "libcuda.so,libcuda.so.1,libcublasLt.so,libcublasLt.so.12,libcublasLt.so.13";

/// Runs the body of the test that is called `test_name` with the simulator as its CUDA.
///
/// A library is found by its name when a process starts, so the test runs itself again, in a process that finds the
/// simulator. `test_name` is the test's whole name with its modules, as the test program prints it, and `settings` are
/// environment variables for it:
///
/// - `AMEM_SIM_SEED`: which order unordered operations run in (0). Seeds that are a multiple of 3 run an operation as late
///   as possible, those with a remainder of 2 at once, and the others in between.
/// - `AMEM_SIM_MEMORY`: bytes of device memory (16 GiB)
/// - `AMEM_SIM_DEVICES`: how many devices there are (1)
/// - `AMEM_SIM_DRIVER`: the CUDA version of the driver (13000)
/// - `AMEM_SIM_CUBLAS`: the version of cuBLASLt (120804)
/// - `AMEM_SIM_NAMES`: the files that there are of CUDA, separated by commas: `libcuda.so.1,libcublasLt.so.13` as on a machine
///   that has what programs need to run, and not what they need to be built (those and names without versions)
/// - `AMEM_SIM_CAPABILITY`: the device's compute capability (90)
/// - `AMEM_SIM_POOLS`: 0 for a device without `cuMemAllocAsync` (1)
/// - `AMEM_SIM_FAIL`: calls that fail, such as `cuMemAlloc_v2:3:2` for the third call, with `CUresult` 2. Several are
///   separated by commas. After a code that stands for a broken device, such as 700, every later call fails with it.
/// - `AMEM_SIM_TRACE`: 1 to print every operation when it runs (0)
///
/// At the body's end all that is queued runs, and a fault that [`take_fault`] has not returned fails the test.
///
/// With the environment variable `AMEM_CUDA_DEVICE=1` the body runs on the device that is there, in a process of its own as
/// well: after a broken kernel a process gets nothing else from its device. With settings it does not run, for a device
/// ignores them; that is said.
///
/// # Panics
/// When the body does, and when the simulator found a mistake.
#[allow(clippy::panic, reason = "a test fails by panicking")]
pub fn in_simulator(test_name: &str, settings: &[(&str, &str)], body: impl FnOnce()) {
    if flag(DEVICE)
        && let Some((name, _)) = settings.first()
    {
        println!("{test_name}: not run, for a device ignores {name}");
        return;
    }
    if flag(INSIDE) {
        body();
        if let Some(fault) = client::finish() {
            panic!("the simulator found a fault: {fault}");
        }
        return;
    }
    if let Err(reason) = run_again(test_name, settings) {
        panic!("{reason}");
    }
}

/// Whether the test's body runs on the simulator, and not on a device.
#[must_use]
pub fn is_simulated() -> bool {
    flag(INSIDE) && !flag(DEVICE)
}

/// The first fault. Without a fault, or on a device, there is none.
#[must_use]
pub fn last_fault() -> Option<String> {
    client::last_fault()
}

/// The fault that a test expects. Runs what is queued first. A second call returns nothing.
#[must_use]
pub fn take_fault() -> Option<String> {
    client::finish()
}

/// What the program has called. On a device, all counts are zero.
#[must_use]
pub fn counts() -> Counts {
    client::counts().unwrap_or_default()
}

/// Counts from zero again.
pub fn reset_counts() {
    client::reset_counts();
}

/// Makes the `calls`-th next call of a function of the driver, or of cuBLASLt, return a status. Returns whether there is
/// a simulator to do so.
pub fn fail_call(function: &str, calls: u64, status: u32) -> bool {
    client::fail(function, calls, status)
}

/// How many failures that a test asked for have not happened yet.
#[must_use]
pub fn pending_failures() -> usize {
    client::pending_failures()
}

/// Begins anew with a seed, as a new process does: nothing is allocated and nothing has failed. Everything that the
/// program holds of CUDA has to be dropped before, because its handles are not valid any more.
pub fn reset(seed: u64) {
    client::reset(seed);
}

/// What `LD_LIBRARY_PATH` has to be for another program to find the simulator as its CUDA.
///
/// # Errors
/// When the library is not beside this program.
pub fn library_path() -> Result<std::ffi::OsString, String> {
    let program = std::env::current_exe().map_err(|error| format!("the test program's path: {error}"))?;
    let folder = link_folder(&find_library(&program)?, ALL_NAMES)
        .map_err(|error| format!("a folder for the libraries: {error}"))?;
    Ok(search_path(&folder))
}

fn flag(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value == "1")
}

fn run_again(test_name: &str, settings: &[(&str, &str)]) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| format!("the test program's path: {error}"))?;
    let mut command = Command::new(&program);
    command.args(["--exact", test_name, "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(INSIDE, "1").env("RUST_BACKTRACE", "0").envs(settings.iter().copied());
    if !flag(DEVICE) {
        let library = find_library(&program)?;
        let names = settings.iter().find(|(name, _)| *name == NAMES).map_or(ALL_NAMES, |(_, names)| *names);
        let folder = link_folder(&library, names).map_err(|error| format!("a folder for the libraries: {error}"))?;
        command.env("LD_LIBRARY_PATH", search_path(&folder));
    }
    let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        let on = if flag(DEVICE) { "device" } else { "simulator" };
        return Err(format!("{test_name} failed on the {on} ({}):\n{printed}{errors}", output.status));
    }
    if !printed.contains("1 passed") {
        return Err(format!("no test is called {test_name}: in_simulator needs its whole name\n{printed}{errors}"));
    }
    Ok(())
}

/// The simulator as a shared library, which cargo puts beside the test program or one folder above.
fn find_library(program: &Path) -> Result<PathBuf, String> {
    let name = "libamem_cuda_simulator.so";
    let folders = program.ancestors().skip(1).take(2);
    let candidates: Vec<PathBuf> =
        folders.flat_map(|folder| [folder.join(name), folder.join("deps").join(name)]).collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(format!("{name} is not beside {}; build amem-cuda-simulator", program.display())),
    }
}

/// A folder in which the library has these names, separated by commas. It stays, as the library does.
fn link_folder(library: &Path, names: &str) -> std::io::Result<PathBuf> {
    let folder = library.with_file_name("simulated-cuda").join(names);
    std::fs::create_dir_all(&folder)?;
    for name in names.split(',') {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        // Tests in other processes make the same links at the same time, so each link appears complete or not at all.
        let draft = folder.join(format!("{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
        make_link(library, &draft)?;
        std::fs::rename(&draft, &link)?;
    }
    Ok(folder)
}

#[cfg(unix)]
fn make_link(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn make_link(target: &Path, link: &Path) -> std::io::Result<()> {
    std::fs::copy(target, link).map(|_| ())
}

/// The folder, before those where libraries are looked for anyway.
fn search_path(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_os_string();
    if let Some(before) = std::env::var_os("LD_LIBRARY_PATH").filter(|before| !before.is_empty()) {
        path.push(":");
        path.push(before);
    }
    path
}
